"""The doctor's findings on the messages that wait on the broker, and on whose they are."""

from __future__ import annotations

from collections.abc import Iterator

from fedmq.broker_config.amqp.probe import Probe
from fedmq.broker_config.topology import Topology
from fedmq.views.finding import Finding, Role


def depths(
    probe: Probe, topology: Topology, role: Role | None, participant_id: str, *, strangers: str | None = None
) -> Iterator[Finding]:
    """Yield a finding for each queue. `strangers` says why updates that wait cannot be this run's; None if they may."""
    queues = (topology.participant(participant_id),) if role == "participant" else topology.shared_queues
    for queue in queues:
        waiting = probe.depth(queue.name)
        if waiting is None:  # a participant's own queue, before its first start
            continue
        if queue == topology.dead and waiting:
            what = f"{queue.name}: {waiting} message(s) that were refused as poison"
            yield Finding("warning", what, "fedmq status names the reasons; their headers say what and from where")
        elif queue == topology.updates and waiting and strangers is not None:
            what = f"{queue.name}: {waiting} update(s) of another run wait here: {strangers}, and would throw them away"
            advice = (
                "give each run a broker.prefix of its own; or start the coordinator of their run, which takes them; "
                f"or, if nobody wants them, rabbitmqctl purge_queue {queue.name}"
            )
            yield Finding("wrong", what, advice)
        else:
            yield Finding("ok", f"{queue.name}: {waiting} message(s) waiting")
