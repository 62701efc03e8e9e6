"""The doctor's findings on the messages that wait on the broker, and on whose they are."""

from __future__ import annotations

from collections.abc import Iterator

from fedmq.broker_config.amqp.probe import Depth, Probe
from fedmq.broker_config.topology import Queue, Topology
from fedmq.views.finding import Finding, Role


def depths(
    probe: Probe, topology: Topology, role: Role | None, participant_id: str, *, strangers: str | None = None
) -> Iterator[Finding]:
    """Yield a finding for each queue. `strangers` says why updates that wait cannot be this run's; None if they may."""
    own = topology.participant(participant_id)
    queues = {None: (*topology.shared_queues, own), "participant": (own,), "coordinator": topology.shared_queues}[role]
    for queue in queues:
        depth = probe.depth(queue.name)
        if depth is None:  # a participant's own queue, before its first start
            continue
        waiting = depth.ready
        if queue.max_length is not None and waiting >= queue.max_length:
            yield _full(queue, depth, f"participant {participant_id}" if queue == own else "the coordinator")
        elif queue == topology.dead and waiting:
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


def _full(queue: Queue, depth: Depth, reader: str) -> Finding:
    """Return the finding on a queue that has reached its limit, and drops its oldest message for each new one."""
    what = f"{queue.name}: {depth.ready} message(s) waiting, its limit: the oldest is dropped for each new one"
    purge = f"rabbitmqctl purge_queue {queue.name}"
    if queue.routing_key == "dead":
        return Finding("warning", what, f"fedmq status names the reasons; if nobody wants them, {purge}")
    if not depth.consumers:
        return Finding("warning", f"{what}. Nobody reads it", f"start {reader}, which reads them; or {purge}")
    advice = f"see if {reader} hangs, or if another process reads this queue"
    return Finding("wrong", f"{what}. Its {depth.consumers} consumer(s) do not keep up", advice)
