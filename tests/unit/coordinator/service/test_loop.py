"""The loop: what the core is told of an update."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any, cast

import pytest

from fedmq.broker_config.chunks.receiver import ChunkArrived
from fedmq.broker_config.topology import Topology
from fedmq.broker_config.transport import Delivery, TransportState
from fedmq.coordinator.decisions.events import (
    ClosedTask,
    ParticipantRevoked,
    ParticipantSeen,
    TaskDeclined,
    UpdateArrived,
)
from fedmq.coordinator.members import Everybody
from fedmq.coordinator.service.commits.effects import Effects
from fedmq.coordinator.service.incoming.chunked_updates import Superseded
from fedmq.coordinator.service.incoming.control import MOST_TOLD, LeftOut, Refusals
from fedmq.coordinator.service.incoming.inbox import Inbox
from fedmq.coordinator.service.incoming.senders import Senders
from fedmq.coordinator.service.incoming.update_reader import NO_PAYLOAD
from fedmq.coordinator.service.leading.downtime import Downtime
from fedmq.coordinator.service.leading.standby import Stop
from fedmq.coordinator.service.loop import CONTROL_IN_A_ROW, Loop
from fedmq.coordinator.state.ledger.rows import BrokerRow
from fedmq.schemas.codec import Limits, encode
from fedmq.schemas.messages import Hello, Update, update_id
from fedmq.schemas.parameters import Parameters

TOPOLOGY = Topology()
SENT = Update(
    update_id=update_id("r", "t-a", "a"), task_id="t-a", run_id="r", participant_id="a", base_version=0,
    payload="delta", num_examples=1, num_steps=1, train_s=0.0,
)  # fmt: skip
DELIVERY = Delivery(TOPOLOGY.updates.name, encode(SENT, Parameters({})), "m", "t-a", None, {}, False, 0, "token")


class Desk:
    """A loop that stops at the first update, with a core that notes it and a ledger that has the end of task t-a."""

    def __init__(self, holds: bool, hellos_per_s: float = 100.0, members: Any = None) -> None:
        self.revoked: list[str] = []
        self.events: list[UpdateArrived] = []
        self.core = SimpleNamespace(
            accepted=0, finished=None, mistake=None, version=0, payload_bytes=0, holds=lambda _task_id: holds,
            stranger=lambda _participant_id, _user: None, next_wakeup=lambda: None,
            step=self._step, participant_ids=list, knows=lambda _id: True, is_revoked=lambda _id: False,
            proven_of=lambda _user: 0, has_room_for=lambda _participant_id: True, awaits_from=lambda *_: False,
            doubtful=lambda *_: [], distilling=False,
        )  # fmt: skip
        self.broker: list[BrokerRow] = []
        ledger = SimpleNamespace(
            closed_task=lambda task_id: ClosedTask(task_id, "a", "withdrawn"), check_epoch=lambda: None,
            note_broker=self._note_broker,
        )  # fmt: skip
        self.transport = SimpleNamespace(
            consume=lambda *_: None, ack=lambda _: True, delete_queue=lambda _: None, dead_letter=lambda *_: None
        )
        self.inbox = Inbox(cast(Any, self.transport), TOPOLOGY)
        publisher = SimpleNamespace(
            versions_waiting=0, versions=set(), withdraw=lambda _: None, withdraw_all=lambda: None, pump=lambda: None,
            look=lambda: None, reference_found=lambda _: None,
        )  # fmt: skip
        self.chunked = SimpleNamespace(idle=True, on_news=self._on_news, clear=list, due_s=lambda: float("inf"))
        self.effects = Effects(
            run_id="r", core=cast(Any, self.core), intake=cast(Any, None), evaluator=None, in_chunks=False,
            put=lambda _: None, wall_s=lambda: 0.0, control_queue=TOPOLOGY.control.name,
        )  # fmt: skip
        collaborators: Any = {
            "core": self.core,
            "ledger": ledger,
            "committer": SimpleNamespace(commit=lambda *_: None),
            "pace": SimpleNamespace(window=1, due_s=lambda *_, **__: float("inf"), succeeded=lambda *_: None),
            "transport": self.transport,
            "publisher": publisher,
            "chunked": self.chunked,
            "leadership": SimpleNamespace(
                active=True, pass_time=lambda: None, owns=lambda _: False, wait_s=lambda: 0.0
            ),
        }
        senders = Senders(cast(Any, self.core), "open", members or Everybody())
        self.loop = Loop(
            run_id="r", senders=senders, dead_exchange="dead", effects=self.effects, inbox=self.inbox, limits=Limits(),
            hellos_per_s=hellos_per_s, run_s=lambda: 1.0, wall_s=lambda: 1.0, downtime=Downtime(1.0, 1.0),
            **collaborators,
        )  # fmt: skip

    def _note_broker(self, row: BrokerRow) -> None:
        self.broker.append(row)
        if row.state == "connected":
            raise OSError("the disk is full")

    def _on_news(self, _chunk: object, _now: float) -> list[UpdateArrived]:
        """The last chunk: the update is whole."""
        return [UpdateArrived(self.effects.hold(DELIVERY), SENT, NO_PAYLOAD, owned=True)]

    def _step(self, event: object, _now: float) -> list[Any]:
        if isinstance(event, ParticipantRevoked):
            assert not self.events, "the core hears of it before it judges the update"
            self.revoked.append(event.participant_id)
        if isinstance(event, UpdateArrived):
            self.events.append(event)
            self.inbox.put(Stop())
        return []


@pytest.mark.parametrize("in_chunks", [False, True])
@pytest.mark.parametrize(("holds", "closed"), [(True, None), (False, ClosedTask("t-a", "a", "withdrawn"))])
def test_the_core_hears_how_a_task_ended_that_it_holds_no_more(
    in_chunks: bool, holds: bool, closed: ClosedTask | None
) -> None:
    """An update of a task that was closed and committed meanwhile is not one of an unknown task."""
    desk = Desk(holds)
    desk.inbox.put(ChunkArrived(cast(Any, None), 0, DELIVERY, None) if in_chunks else DELIVERY)
    desk.loop.run()
    assert [(event.update, event.closed_task, event.owned) for event in desk.events] == [(SENT, closed, in_chunks)]


def test_a_participant_that_is_revoked_while_its_chunks_come_is_so_before_its_update_is_judged() -> None:
    desk = Desk(holds=True, members=SimpleNamespace(standing=lambda _: "revoked"))
    desk.inbox.put(ChunkArrived(cast(Any, None), 0, DELIVERY, None))
    desk.loop.run()
    assert desk.revoked == ["a"]
    assert len(desk.events) == 1


def test_a_manifest_with_a_later_copy_is_acked_at_once() -> None:
    desk = Desk(holds=True)
    acked: list[Delivery] = []
    desk.transport.ack = acked.append
    handle = desk.effects.hold(DELIVERY)

    def on_news(_chunk: object, _now: float) -> list[Superseded]:
        desk.inbox.put(Stop())
        return [Superseded(handle)]

    desk.chunked.on_news = on_news
    desk.inbox.put(ChunkArrived(cast(Any, None), 0, DELIVERY, None))
    desk.loop.run()
    assert acked == [DELIVERY]


def hello_of(name: str, user: str | None = "u") -> Delivery:
    body = encode(Hello(participant_id=name, session_id="s", num_examples=1))
    return Delivery(TOPOLOGY.control.name, body, None, None, user, {}, False, 0, name)


def test_a_flood_of_hellos_lets_an_update_through_after_sixteen_of_them() -> None:
    desk = Desk(holds=True)
    seen: list[object] = []
    step = desk.core.step

    def noted(event: object, now: float) -> list[Any]:
        seen.append(type(event).__name__)
        return step(event, now)

    desk.core.step = noted
    for number in range(100):
        desk.inbox.put(hello_of(f"p{number}"))
    desk.inbox.put(DELIVERY)
    desk.loop.run()
    assert seen[1:].index("UpdateArrived") == CONTROL_IN_A_ROW


def test_hellos_beyond_the_rate_are_acked_and_never_decoded() -> None:
    desk = Desk(holds=True, hellos_per_s=0.1)
    acked: list[object] = []
    seen: list[object] = []
    desk.transport.ack = lambda delivery: acked.append(delivery.token)
    step = desk.core.step
    desk.core.step = lambda event, now: (seen.append(event), step(event, now))[1]
    for number in range(10):
        desk.inbox.put(hello_of(f"p{number}"))
    desk.inbox.put(DELIVERY)
    desk.loop.run()
    assert [event.hello.participant_id for event in seen if isinstance(event, ParticipantSeen)] == ["p0", "p1"]
    assert acked[:8] == [f"p{number}" for number in range(2, 10)]


def test_the_ledger_hears_of_the_broker_and_a_full_disk_ends_nothing() -> None:
    desk = Desk(holds=True)
    desk.transport.stop_consuming = lambda _queue: None
    desk.loop._leadership.doubt = lambda: None  # type: ignore[method-assign]
    desk.loop._leadership.renew = lambda: None  # type: ignore[method-assign]
    desk.loop._publisher.doubt_exchanges = lambda: None  # type: ignore[method-assign]
    for name in ("disconnected", "connected", "consumer_lost", "blocked", "unblocked"):
        desk.inbox.put(TransportState(name, "x" * 501))  # type: ignore[arg-type]
    desk.inbox.put(Stop())
    desk.loop.run()
    assert [row.state for row in desk.broker] == ["disconnected", "connected", "blocked", "connected"]
    assert desk.broker[0] == BrokerRow("disconnected", "x" * 500, 1.0)


def test_log_lines_about_those_left_out_are_told_once_and_their_memory_is_bounded(caplog: Any) -> None:
    core = SimpleNamespace(knows=lambda name: name != "stranger", has_room_for=lambda _: False)
    left_out = LeftOut(cast(Any, core))
    with caplog.at_level(logging.WARNING, "fedmq"):
        for name in ("a", "a", "stranger", "stranger"):
            left_out.on_hello(Hello(participant_id=name, session_id="s", num_examples=1), "u")
    assert [record.getMessage().split()[0] for record in caplog.records] == [
        "event=participant_left_out",
        "event=participant_turned_away",
    ]
    for number in range(2 * MOST_TOLD):
        left_out.on_hello(Hello(participant_id="a", session_id=f"s{number}", num_examples=1), "u")
    assert len(left_out._told) == MOST_TOLD


def test_a_reason_for_which_everybody_declines_is_told_once_until_somebody_trains(caplog: Any) -> None:
    core = SimpleNamespace(holds=lambda task_id: task_id != "forged", here=3)
    refusals = Refusals(cast(Any, core))

    def decline(*names: str, reason: Any = "trainer_error", task_id: str = "t") -> list[str]:
        caplog.clear()
        with caplog.at_level(logging.WARNING, "fedmq"):
            for name in names:
                refusals.on_decline(TaskDeclined(name, task_id, "r", reason, "x has nan at [3, 1]", None))
        return [record.getMessage() for record in caplog.records]

    assert decline("a", "b", "a", "b") == []
    assert decline("c", reason="no_data") == []
    assert decline("c", task_id="forged") == []
    (line,) = decline("c", "a", "b", "c")
    assert "event=every_participant_declines participants=3 reason=trainer_error" in line
    assert "x has nan at [3, 1]" in line
    core.here = 1
    assert decline("d", "e", "a") == []
    assert "participants=6" in decline("f")[0]
    refusals.on_accepted()
    core.here = 2
    assert decline("a") == []
    assert len(decline("b")) == 1
    assert decline("a", "b", reason="not_idle") == []
