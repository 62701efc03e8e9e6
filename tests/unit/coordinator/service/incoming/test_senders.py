"""Senders are judged before a tensor is decoded, on both queues."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from fedmq.broker_config.topology import Topology
from fedmq.broker_config.transport import Delivery
from fedmq.coordinator.decisions.events import ParticipantSeen, PoisonArrived, TaskDeclined, UpdateArrived
from fedmq.coordinator.members import Everybody
from fedmq.coordinator.service.incoming.control import ControlPoison, read_control
from fedmq.coordinator.service.incoming.senders import LOOK_S, MOST_LOOKS, Senders
from fedmq.coordinator.service.incoming.update_reader import NO_PAYLOAD, read_update
from fedmq.schemas.codec import encode
from fedmq.schemas.limits import DEFAULT_LIMITS
from fedmq.schemas.messages import Decline, Hello, Notice, Update, update_id
from fedmq.schemas.parameters import Parameters

TOPOLOGY = Topology()
TENSORS = Parameters({"w": np.ones(3, np.float32)})
UPDATE = Update(
    update_id=update_id("r", "t-1", "alice"), task_id="t-1", run_id="r", participant_id="alice", base_version=0,
    payload="delta", num_examples=1, num_steps=1, train_s=0.0,
)  # fmt: skip
HELLO = Hello(participant_id="alice", session_id="s", num_examples=1)
DECLINE = Decline(task_id="t-1", run_id="r", participant_id="alice", reason="busy")
GOOD = encode(UPDATE, TENSORS)


class Fleet:
    """Members by their standing; everybody else is unknown."""

    def __init__(self, **standings: str) -> None:
        self.standings = standings
        self.asked = 0

    def standing(self, participant_id: str) -> Any:
        self.asked += 1
        return self.standings.get(participant_id, "unknown")

    def max_examples(self, participant_id: str) -> int | None:
        return None


class Core:
    """A core that knows these participants; its task t-1 is alice's."""

    def __init__(self, *known: str) -> None:
        self.known = list(known)
        self.revoked: set[str] = set()

    def participant_ids(self) -> list[str]:
        return list(self.known)

    def knows(self, participant_id: str) -> bool:
        return participant_id in self.known

    def is_revoked(self, participant_id: str) -> bool:
        return participant_id in self.revoked

    def stranger(self, participant_id: str, user: str | None) -> str | None:
        return None

    def holds(self, task_id: str) -> bool:
        return task_id == "t-1"

    def is_from_owner(self, task_id: str, user: str | None) -> bool:
        return user == "alice"


def senders(kind: Any = "user", members: Any = None, core: Any = None) -> Senders:
    return Senders(cast(Any, core or Core("alice")), kind, members or Everybody())


def delivery(body: bytes, user: str | None) -> Delivery:
    return Delivery(TOPOLOGY.updates.name, body, "m", "t-1", user, {}, False, 0, "token")


def read(body: bytes, user: str | None, **who: Any) -> UpdateArrived | PoisonArrived:
    core = who.setdefault("core", Core("alice"))
    return read_update(core, senders(**who), DEFAULT_LIMITS, 7, delivery(body, user))


def broken(body: bytes) -> bytes:
    """Return the message with a blob that is cut short: only somebody who looks at the tensors sees it."""
    return body[:-4]


@pytest.mark.parametrize(
    ("user", "members", "reason"),
    [
        (None, None, "unknown_sender"),
        ("mallory", None, "wrong_sender"),
        ("mallory", Fleet(alice="enrolled", mallory="revoked"), "wrong_sender"),
        ("alice", Fleet(), "not_enrolled"),
        (None, Fleet(), "unknown_sender"),
    ],
)
def test_an_update_of_another_sender_is_poison_without_a_look_at_its_tensors(
    user: str | None, members: Any, reason: str
) -> None:
    for body in (GOOD, broken(GOOD)):
        event = read(body, user, members=members)
        assert isinstance(event, PoisonArrived)
        assert (event.delivery, event.reason, event.task_id) == (7, reason, None)


def test_an_update_of_its_own_participant_is_decoded() -> None:
    event = read(GOOD, "alice", members=Fleet(alice="enrolled"))
    assert isinstance(event, UpdateArrived)
    assert (event.update, list(event.payload)) == (UPDATE, ["w"])
    poison = read(broken(GOOD), "alice")
    assert isinstance(poison, PoisonArrived)
    assert (poison.reason, poison.task_id) == ("malformed", "t-1")


def test_an_unreadable_message_closes_its_senders_task_alone_and_is_the_senders_fault_first() -> None:
    members = Fleet(alice="enrolled", gone="revoked")
    found = [cast(PoisonArrived, read(b"noise", user, members=members)) for user in ("alice", "gone", "bob", None)]
    assert [event.reason for event in found] == ["malformed", "revoked", "not_enrolled", "unknown_sender"]
    assert [event.task_id for event in found] == ["t-1", None, None, None]
    event = cast(PoisonArrived, read(b"noise", "bob"))
    assert (event.reason, event.task_id) == ("malformed", None)


def test_an_update_of_a_revoked_participant_goes_to_the_core_without_its_tensors() -> None:
    core, members = Core("alice"), Fleet(alice="revoked")
    judge = senders(members=members, core=core)
    event = read_update(cast(Any, core), judge, DEFAULT_LIMITS, 7, delivery(broken(GOOD), "alice"))
    assert event == UpdateArrived(7, UPDATE, NO_PAYLOAD)
    assert judge.news() == ["alice"], "the core is told first"
    assert judge.news() == []
    core.revoked.add("alice")
    read_update(cast(Any, core), judge, DEFAULT_LIMITS, 7, delivery(GOOD, "alice"))
    assert judge.news() == []


def test_an_update_of_a_revoked_participant_that_this_run_never_heard_of_is_counted_too() -> None:
    event = read(GOOD, "alice", members=Fleet(alice="revoked"), core=Core())
    assert isinstance(event, PoisonArrived)
    assert event.reason == "revoked"


@pytest.mark.parametrize("message", [HELLO, DECLINE])
@pytest.mark.parametrize(
    ("user", "members", "reason"),
    [
        (None, None, "unknown_sender"),
        ("mallory", None, "wrong_sender"),
        ("alice", Fleet(), "not_enrolled"),
        ("alice", Fleet(alice="revoked"), "revoked"),
        ("alice", None, None),
    ],
)
def test_hellos_and_declines_are_judged_alike(
    message: Hello | Decline, user: str | None, members: Any, reason: str | None
) -> None:
    event = read_control(senders(members=members), DEFAULT_LIMITS, delivery(encode(message), user))
    if reason is None:
        assert isinstance(event, ParticipantSeen | TaskDeclined)
    else:
        assert isinstance(event, ControlPoison)
        assert event.reason == reason


def test_a_message_that_is_not_for_us_is_its_senders_fault_first() -> None:
    notice = encode(Notice(run_id="r", participant_id="alice", event="run_finished"))
    found = [read_control(senders(), DEFAULT_LIMITS, delivery(notice, user)) for user in ("alice", "bob")]
    assert [cast(ControlPoison, event).reason for event in found] == ["malformed", "wrong_sender"]
    assert cast(PoisonArrived, read(notice, "bob")).reason == "wrong_sender"


@pytest.mark.parametrize("user", [None, "mallory", "alice"])
def test_open_identity_believes_whoever_may_publish(user: str | None) -> None:
    judge = senders("open")
    assert isinstance(read(GOOD, user, kind="open"), UpdateArrived)
    assert isinstance(read_control(judge, DEFAULT_LIMITS, delivery(encode(HELLO), user)), ParticipantSeen)
    assert judge.chunk_sender("alice") is None
    assert senders("user").chunk_sender("alice") == "alice"


# Revoked participants


def test_a_look_finds_revoked_participants_that_say_nothing() -> None:
    core, members = Core("a", "b", "c"), Fleet(a="enrolled", b="revoked", c="enrolled")
    judge = senders(members=members, core=core)
    assert judge.due_s <= 0.0
    judge.look(5.0)
    assert (judge.news(), judge.due_s) == (["b"], 5.0 + LOOK_S)
    assert judge.revoked_before() == ("b",)


def test_a_look_at_a_large_federation_goes_on_where_the_last_one_ended() -> None:
    names = [f"p{number}" for number in range(2 * MOST_LOOKS + 1)]
    members = Fleet(**dict.fromkeys(names, "enrolled"))
    members.standings[names[-1]] = "revoked"
    judge = senders(members=members, core=Core(*names))
    found = []
    for second in range(4):
        judge.look(float(second))
        found.append(judge.news())
    assert found == [[], [], [names[-1]], []]
    assert members.asked == 3 * MOST_LOOKS + 1


def test_nobody_is_asked_about_where_there_is_no_fleet() -> None:
    judge = Senders(cast(Any, SimpleNamespace(participant_ids=None)), "user", Everybody())
    assert (judge.due_s, judge.revoked_before()) == (float("inf"), ())
