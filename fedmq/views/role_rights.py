"""The rights of our user on the broker, checked by doing what the role does in a run.

Rules
1. A participant leaves nothing behind: it deletes what it has made, unless somebody uses it. What the coordinator makes
   is shared and stays, as after its start.
2. Where a right can be asked about by a name that nobody uses, that is done.
3. Advice is the three expressions of the role (`broker_config.rights`), and never wider ones.
4. What only the coordinator makes is waited for in a run. So it is a warning here if it is missing.
"""

from __future__ import annotations

import shlex
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from fedmq.broker_config.amqp.address import BrokerAddress
from fedmq.broker_config.amqp.probe import Probe, Refusal
from fedmq.broker_config.rights import Rights, coordinator_rights, device_rights
from fedmq.broker_config.topology import DEFAULT_EXCHANGE, Exchange, Queue, Topology
from fedmq.schemas.errors import TopologyConflict
from fedmq.views.finding import Finding, Level, Role

Right = Literal["configure", "write", "read"]


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that a role does on the broker, and the right that it takes."""

    right: Right
    what: str
    """The act, as in "declare fedmq.updates"."""
    act: Callable[[Probe], Refusal | None]
    made: Queue | Exchange | None = None
    """The queue or exchange that the act declares."""


@dataclass(frozen=True, slots=True)
class Asked:
    """The user, and the role whose work it must be able to do."""

    user: str
    vhost: str
    who: str
    """The role in words, as in "participant 'sensor-1'"."""
    rights: Rights
    """The least rights of the role."""

    def command(self) -> str:
        """Return the command that gives exactly the role's rights."""
        words = (self.user, self.rights.configure, self.rights.write, self.rights.read)
        return f"rabbitmqctl set_permissions -p {' '.join(map(shlex.quote, (self.vhost, *words)))}"


def asked(address: BrokerAddress, role: Role | None, prefix: str, participant_id: str) -> Asked:
    """Return the rights that the role takes. None is both roles with one user, and takes the coordinator's."""
    if role == "participant":
        rights = device_rights(prefix, participant_id)
        return Asked(address.user, address.vhost, f"participant {participant_id!r}", rights)
    who = "the coordinator" if role == "coordinator" else "a user of both roles"
    return Asked(address.user, address.vhost, who, coordinator_rights(prefix))


def check(probe: Probe, topology: Topology, role: Role | None, participant_id: str) -> Iterator[Finding]:
    """Do the role's work on the broker, and yield what came of it. With None, both roles' work."""
    want = asked(probe.address, role, topology.prefix, participant_id)
    nobody = f"doctor-{uuid.uuid4().hex[:12]}"
    refused: list[tuple[Right, str]] = []
    if role != "participant":
        missing = _missing(probe, topology)
        yield from _did(probe, coordinators_steps(topology, nobody), refused)
        yield from _put_back(topology, missing, [name for name in missing if name in _missing(probe, topology)])
    if role == "participant":
        yield from _waits(probe, topology, participant_id)
    if role != "coordinator":
        yield from _as_participant(probe, topology, participant_id, refused)
    if refused:
        yield from lacking(want, refused, role, participant_id)
    else:
        yield Finding("ok", f"rights: user {want.user!r} may do all that {want.who} does")
    if role is not None:
        more = beyond(topology, role, nobody)
        found = [step.what for step in more if (answer := step.act(probe)) is None or not answer.by_rights]
        if found:
            yield wider(want, found)


def lacking(
    want: Asked, refused: Sequence[tuple[Right, str]], role: Role | None, participant_id: str
) -> Iterator[Finding]:
    """Yield a finding for each expression that refuses something, with the command that gives the role's rights."""
    for right in get_args(Right):
        acts = [what for its, what in refused if its == right]
        if not acts:
            continue
        advice = f"its {right} expression must be {shlex.quote(getattr(want.rights, right))}: {want.command()}"
        if role is None:
            advice = (
                f"fedmq doctor --role participant --id {participant_id} if this is a device's user, which needs less; "
                f"for one user of both roles {advice}"
            )
        yield Finding("wrong", f"right to {right}: user {want.user!r} may not {', '.join(acts)}", advice)


def wider(want: Asked, acts: Sequence[str]) -> Finding:
    """Return the finding on a user that may do more than its role does."""
    what = f"rights: user {want.user!r} may do more than {want.who} does: {', '.join(acts)}"
    return Finding("warning", what, f"take that from it: {want.command()}")


def _as_participant(
    probe: Probe, topology: Topology, participant_id: str, refused: list[tuple[Right, str]]
) -> Iterator[Finding]:
    own, upload = topology.participant(participant_id), topology.upload(participant_id, uuid.uuid4().hex)
    missing = probe.look(own)
    ours = [upload, *([own] if missing is not None and missing.missing else [])]
    try:
        yield from _did(probe, participants_steps(topology, participant_id, own, upload), refused)
    finally:
        for queue in ours:
            probe.delete_queue(queue.name)


def _waits(probe: Probe, topology: Topology, participant_id: str) -> Iterator[Finding]:
    """Look at what the coordinator makes."""
    shared: tuple[Queue | Exchange, ...] = (*topology.seen_exchanges, *topology.seen_queues)
    missing = sorted({one.name for one in shared if (found := probe.look(one)) is not None and found.missing})
    if missing:
        what = f"shared objects: the coordinator has not made {' and '.join(missing)} yet"
        advice = "start the coordinator, or compare broker.prefix and the virtual host; the participant waits for it"
        yield Finding("warning", what, advice)
        return
    yield Finding("ok", f"shared objects: {' and '.join(sorted({one.name for one in shared}))} are there")
    uploads = topology.upload_exchange(participant_id)
    if (found := probe.look(uploads)) is not None and found.missing:
        yield Finding("ok", f"uploads: the coordinator makes {uploads.name} before the first task, and it is not there")


def _missing(probe: Probe, topology: Topology) -> list[str]:
    """Return the names of the coordinator's exchanges and queues that are not there, in words."""
    shared: tuple[Queue | Exchange, ...] = (*topology.exchanges, *topology.coordinator_queues)
    return [f"{_kind(one)} {one.name}" for one in shared if (found := probe.look(one)) is not None and found.missing]


def _put_back(topology: Topology, missing: Sequence[str], still: Sequence[str]) -> Iterator[Finding]:
    """Yield the finding on shared objects that were missing before we declared them."""
    made = [name for name in missing if name not in still]
    if made and len(missing) == len(topology.exchanges) + len(topology.coordinator_queues):
        yield Finding("ok", "shared objects: none was there, and they are made now, as by a coordinator's first start")
    elif made:
        what = f"shared objects: {', '.join(made)} {'was' if len(made) == 1 else 'were'} missing, and made again now"
        advice = "see who deletes them, and who may: what was sent meanwhile was lost, and its senders send it again"
        yield Finding("warning", what, advice)


def _did(probe: Probe, steps: Sequence[Step], refused: list[tuple[Right, str]]) -> Iterator[Finding]:
    """Do the steps. Note what the rights refuse, and yield what else stands in the way."""
    declared, conflicts = [], 0
    for step in steps:
        answer = step.act(probe)
        if answer is not None and answer.by_rights:
            # A binding takes two rights, and RabbitMQ names the object of the one that is missing.
            right: Right = "read" if step.what.startswith("bind") and "exchange '" in answer.text else step.right
            refused.append((right, step.what))
        elif step.made is not None and answer is not None:
            conflicts += 1
            error = probe.meaning(f"{_kind(step.made)} {step.made.name!r}", answer)
            level: Level = "wrong" if isinstance(error, TopologyConflict) else "warning"
            yield Finding(level, f"queues: {error}", "do what the message says, then run fedmq doctor again", error)
        elif isinstance(step.made, Queue):
            declared.append(step.made.name)
    if declared and not conflicts:
        yield Finding("ok", f"queues: {', '.join(declared)} can be declared, with our arguments")


def _kind(item: Queue | Exchange) -> str:
    return "queue" if isinstance(item, Queue) else "exchange"


# What each role does


def participants_steps(topology: Topology, participant_id: str, own: Queue, upload: Queue) -> list[Step]:
    """Return what a participant does: its own queue, an upload, and one message to each exchange that it sends to.

    The messages go to nobody, because no queue has their routing key.
    """
    uploads = topology.upload_exchange(participant_id)
    sent = (topology.updates_exchange, topology.control_exchange, uploads)
    return [
        _declare(own),
        Step("configure", f"declare {_shown(upload)}", lambda probe: probe.declare(upload)),
        *(_publish(exchange.name) for exchange in sent),
        _bind(upload, _shown(upload)),
        _read(own.name),
        _read(upload.name, _shown(upload)),
        _read(topology.models_name),
    ]


def coordinators_steps(topology: Topology, nobody: str) -> list[Step]:
    """Return what a coordinator does: all that is shared, and what it makes for a participant `nobody`."""
    uploads = topology.upload_exchange(nobody)
    download, own = topology.download(nobody, "0" * 32), topology.participant(nobody)
    models = topology.models_name
    return [
        *map(_declare, topology.exchanges),
        *map(_declare, topology.coordinator_queues),
        Step("configure", "make exchanges for uploads", lambda probe: probe.delete_exchange(uploads.name)),
        Step("configure", "make queues for downloads", lambda probe: probe.delete_queue(download.name)),
        Step("configure", "make a stream of models", lambda probe: probe.delete_queue(f"{models}.none")),
        *(_publish(exchange.name) for exchange in topology.exchanges),
        _publish(DEFAULT_EXCHANGE, own.name),
        *map(_bind, topology.shared_queues),
        *(_read(queue.name) for queue in topology.coordinator_queues),
        _read(download.name, "the queues of uploads"),
        _read(models),
    ]


def beyond(topology: Topology, role: Role, nobody: str) -> list[Step]:
    """Return what the role's rights must refuse. Nothing is taken or made, if they do not."""
    if role == "coordinator":
        other = f"{nobody}.queue"
        delete = Step("configure", "delete queues outside the prefix", lambda probe: probe.delete_queue(other))
        return [delete, _read(other, "queues outside the prefix")]
    uploads, other = topology.upload_exchange(nobody), topology.participant(nobody).name
    return [
        *(_read(queue.name) for queue in topology.coordinator_queues),
        _read(other, "the queues of other participants"),
        Step("configure", "delete others' exchanges", lambda probe: probe.delete_exchange(uploads.name)),
        Step("configure", "delete others' queues", lambda probe: probe.delete_queue(other)),
        _publish(topology.dead_exchange.name),
        _publish(DEFAULT_EXCHANGE, other),
    ]


def _shown(upload: Queue) -> str:
    return f"{upload.name.rpartition('.')[0]}.*"


def _declare(item: Queue | Exchange) -> Step:
    return Step("configure", f"declare {item.name}", lambda probe: probe.declare(item), made=item)


def _bind(queue: Queue, shown: str = "") -> Step:
    return Step("write", f"bind {shown or queue.name} to {queue.exchange}", lambda probe: probe.bind(queue))


def _publish(exchange: str, routing_key: str = "doctor") -> Step:
    name = exchange or "the default exchange (amq.default)"
    return Step("write", f"publish to {name}", lambda probe: probe.publish(exchange, routing_key))


def _read(queue: str, shown: str = "") -> Step:
    return Step("read", f"read {shown or queue}", lambda probe: probe.read(queue))
