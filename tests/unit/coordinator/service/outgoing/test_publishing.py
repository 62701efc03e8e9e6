"""Tasks go out within a window of bytes, and wait as references until then."""

from concurrent.futures import Future
from typing import Any

import numpy as np

from fedmq.broker_config.topology import Topology
from fedmq.coordinator.decisions.commands import IssueTask
from fedmq.coordinator.service.commits.after_commit import tell
from fedmq.coordinator.service.commits.effects import Pending
from fedmq.coordinator.service.outgoing.publishing import REFUSED_TRIES, CoordinatorPublisher
from fedmq.schemas.codec import decode
from fedmq.schemas.errors import BrokerRefused, PublishRejected, Unroutable
from fedmq.schemas.messages import Notice, Task, TrainingConfig
from fedmq.schemas.parameters import Parameters

PARAMETERS = Parameters({"w": np.zeros(250, np.float32)})  # 1000 bytes


class Wire:
    """A stand-in for a transport: it keeps each publish until the test confirms it."""

    def __init__(self) -> None:
        self.sent: list[tuple[object, Future[None]]] = []
        self.queues: list[str] = []
        self.exchanges: list[str] = []
        self.answers = True
        self.unanswered: list[Future[int]] = []
        """Answers about exchanges that the test gives itself, once `answers` is False."""

    def declare(self, queue, timeout_s):
        self.queues.append(queue.name)
        future: Future[int] = Future()
        future.set_result(0)
        return future

    def declare_exchange(self, exchange, timeout_s):
        self.exchanges.append(exchange.name)
        future: Future[int] = Future()
        if self.answers:
            future.set_result(0)
        else:
            self.unanswered.append(future)
        return future

    def delete_queue(self, name):
        self.queues.remove(name)

    def publish(self, message, timeout_s):
        future: Future[None] = Future()
        self.sent.append((message, future))
        return future


def publisher(wire: Wire, window_bytes: int, **changed: Any) -> tuple[CoordinatorPublisher, list]:
    done: list = []
    made = CoordinatorPublisher(
        wire, Topology(), run_id="r", reply="delta", window_bytes=window_bytes, timeout_s=1, put=done.append,  # type: ignore[arg-type]
        **changed,
    )  # fmt: skip
    return made, done


def order(seq: int, base_version: int = 0) -> IssueTask:
    return IssueTask(f"t-{seq}", seq, "p1", base_version, TrainingConfig(seed=seq), 60.0)


def test_a_task_carries_its_order_and_the_parameters_and_expires_with_its_lease():
    wire = Wire()
    made, _ = publisher(wire, 10_000)
    made.task(order(1, base_version=4), PARAMETERS)
    made.pump()
    message, _ = wire.sent[0]
    assert (message.exchange, message.routing_key, message.correlation_id) == ("", "fedmq.participant.p1", "t-1")
    assert message.expiration_s == 60.0
    decoded = decode(message.body)
    assert isinstance(decoded.message, Task)
    assert (decoded.message.base_version, decoded.message.training.seed, decoded.message.reply) == (4, 1, "delta")
    np.testing.assert_array_equal(decoded.parameters["w"], PARAMETERS["w"])


def test_the_end_of_a_run_is_news_for_ten_minutes_and_other_notices_stay():
    wire = Wire()
    made, _ = publisher(wire, 10)
    for event in ("run_finished", "task_withdrawn", "say_hello"):
        made.notice(Notice(run_id="r", participant_id="p1", event=event))
    assert [message.expiration_s for message, _ in wire.sent] == [600.0, None, None]


def test_no_more_than_the_window_is_in_flight():
    wire = Wire()
    made, done = publisher(wire, 3_500)
    for seq in range(1, 6):
        made.task(order(seq, base_version=seq), PARAMETERS)
    made.pump()
    assert len(wire.sent) == 2
    assert made.versions_waiting == 3
    wire.sent[0][1].set_result(None)
    assert (done[0].task_id, done[0].error) == ("t-1", None)
    made.task_done(done[0])
    assert len(wire.sent) == 3
    assert made.versions_waiting == 2


def test_one_task_is_sent_however_large():
    wire = Wire()
    made, _ = publisher(wire, 10)
    made.task(order(1), PARAMETERS)
    made.task(order(2), PARAMETERS)
    made.pump()
    assert len(wire.sent) == 1


def test_a_failed_publish_gives_its_room_back_and_says_why():
    wire = Wire()
    made, done = publisher(wire, 10)
    made.task(order(1), PARAMETERS)
    made.task(order(2), PARAMETERS)
    made.pump()
    wire.sent[0][1].set_exception(Unroutable("its queue is gone"))
    assert str(done[0].error) == "its queue is gone"
    made.task_done(done[0])
    assert len(wire.sent) == 2


def test_a_task_that_is_withdrawn_while_it_waits_is_not_sent():
    """The task would come after the notice that withdraws it, and be trained in vain."""
    wire = Wire()
    made, done = publisher(wire, 10)
    for seq in (1, 2, 3):
        made.task(order(seq, base_version=seq), PARAMETERS)
    made.pump()
    made.withdraw({"t-2"})
    assert made.versions == {3}
    wire.sent[0][1].set_result(None)
    made.task_done(done[0])
    assert [message.message_id for message, _ in wire.sent] == ["t-1", "t-3"]


def test_a_task_that_is_withdrawn_while_its_chunks_go_out_makes_way_for_the_next():
    wire = Wire()
    made, done = publisher(wire, 10_000, max_message_bytes=512, chunk_bytes=100)
    for seq in (1, 2):
        made.task(order(seq, base_version=seq), PARAMETERS)
    made.pump()
    made.uploads_prepared(done[0])
    done[1].sender.on_news(done[1])  # declared
    assert {message.correlation_id for message, _ in wire.sent} == {"t-1"}
    (queue,) = wire.queues
    made.withdraw({"t-1"})
    assert wire.queues == []
    for _, chunk in wire.sent:
        chunk.set_result(None)
    for news in done[2:]:
        news.sender.on_news(news)
    assert made.versions == {2}
    assert {message.correlation_id for message, _ in wire.sent} == {"t-1"}
    made.pump()
    assert len(wire.queues) == 1
    assert wire.queues != [queue]


def test_one_who_leaves_leaves_no_queue_of_half_a_payload():
    wire = Wire()
    made, done = publisher(wire, 10_000, max_message_bytes=512, chunk_bytes=100)
    for seq in (1, 2):
        made.task(order(seq), PARAMETERS)
    made.pump()
    done[1].sender.on_news(done[1])
    made.withdraw_all()
    made.pump()
    assert (wire.queues, made.versions) == ([], set())


def test_a_task_that_is_withdrawn_in_the_commit_that_issues_it_is_not_sent():
    wire = Wire()
    made, _ = publisher(wire, 10_000)
    done = Pending(tasks=[(order(seq), PARAMETERS) for seq in (1, 2)])
    done.notices.append(Notice(run_id="r", participant_id="p1", event="task_withdrawn", task_id="t-1"))
    tell("r", done, made, ledger=None)
    assert [message.correlation_id for message, _ in wire.sent] == ["t-1", "t-2"]
    assert [message.headers["kind"] for message, _ in wire.sent] == ["notice", "task"]


def test_the_last_words_are_waited_for_as_long_as_they_leave():
    """The last notice for a thousand participants takes longer than any single one may."""
    wire = Wire()
    made, _ = publisher(wire, 10)
    for number in range(30):
        made.notice(Notice(run_id="r", participant_id=f"p{number}", event="run_finished"))
    asked = []

    def wait(oldest, timeout_s):
        asked.append(timeout_s)
        oldest[0].set_result(None)

    assert made.flush(5.0, wait) == 0
    assert asked == [5.0] * 30


def test_a_broker_that_takes_nothing_ends_the_last_words():
    wire = Wire()
    made, _ = publisher(wire, 10)
    for name in ("p1", "p2", "p3"):
        made.notice(Notice(run_id="r", participant_id=name, event="run_finished"))
    wire.sent[0][1].set_exception(Unroutable("gone"))
    asked = []
    assert made.flush(5.0, lambda _, timeout_s: asked.append(timeout_s)) == 2
    assert asked == [5.0]


def test_the_end_of_a_run_that_a_nack_met_is_told_again_and_nothing_else_is():
    wire = Wire()
    made, _ = publisher(wire, 10_000)
    refusals = iter([True, True, False, True])  # the end's for p1, p2; a withdrawal; the end's second try for p2
    told: list[tuple[str, str]] = []
    pauses: list[float] = []

    def wait(waited, _):
        message, future = next(one for one in wire.sent if one[1] is waited[0])
        told.append((message.routing_key, decode(message.body).message.event))
        if next(refusals, False) or told[-1][1] == "task_withdrawn":
            future.set_exception(PublishRejected("the broker said nack"))
        else:
            future.set_result(None)

    ends = [Notice(run_id="r", participant_id=p, event="run_finished") for p in ("p1", "p2")]
    for notice in (*ends, Notice(run_id="r", participant_id="p3", event="task_withdrawn", task_id="t-1")):
        made.notice(notice)
    assert made.flush(5.0, wait, pauses.append) == 0
    assert [name.rpartition(".")[2] for name, _ in told] == ["p1", "p2", "p3", "p1", "p2", "p1"]
    assert len(pauses) == 2


def test_a_queue_that_refuses_the_end_of_a_run_for_ever_does_not_keep_the_coordinator():
    wire = Wire()
    made, _ = publisher(wire, 10_000)
    made.notice(Notice(run_id="r", participant_id="p1", event="run_finished"))
    pauses: list[float] = []

    def wait(*_):
        wire.sent[-1][1].set_exception(PublishRejected("the broker said nack"))

    assert made.flush(5.0, wait, pauses.append) == 1
    assert len(wire.sent) == 1 + REFUSED_TRIES == 1 + len(pauses)


def test_a_task_waits_for_the_exchange_of_its_participant_s_uploads():
    wire = Wire()
    wire.answers = False
    made, done = publisher(wire, 10_000, update_bytes=40_000)
    made.task(order(1), PARAMETERS)
    made.pump()
    assert (wire.exchanges, wire.sent) == (["fedmq.up.p1"], [])
    wire.unanswered[0].set_result(0)
    made.uploads_prepared(done[0])
    made.task(order(2), PARAMETERS)
    made.pump()
    assert [message.message_id for message, _ in wire.sent] == ["t-1", "t-2"]
    assert wire.exchanges == ["fedmq.up.p1"]


def test_an_exchange_that_cannot_be_made_makes_its_task_undeliverable_and_the_next_task_tries_again():
    wire = Wire()
    wire.answers = False
    made, done = publisher(wire, 10_000, update_bytes=40_000)
    made.task(order(1), PARAMETERS)
    wire.unanswered[0].set_exception(BrokerRefused("may not configure"))
    made.uploads_prepared(done[0])
    assert (done[1].task_id, done[1].num_bytes, str(done[1].error)) == ("t-1", 0, "may not configure")
    made.task_done(done[1])
    made.task(order(2), PARAMETERS)
    wire.unanswered[1].set_result(0)
    made.pump()
    assert [message.message_id for message, _ in wire.sent] == ["t-2"]


def test_exchanges_are_made_again_after_a_lost_connection():
    wire = Wire()
    made, _ = publisher(wire, 10_000, update_bytes=40_000)
    for _ in range(2):
        made.prepare_uploads("p1")
        made.prepare_uploads("p1")
        made.doubt_exchanges()
    assert wire.exchanges == ["fedmq.up.p1", "fedmq.up.p1"]


def test_exchanges_are_made_again_after_three_seconds_because_somebody_may_have_deleted_them():
    wire, now = Wire(), [0.0]
    made, _ = publisher(wire, 10_000, update_bytes=40_000, clock=lambda: now[0])
    for now[0] in (0.0, 2.9, 3.0, 3.1):
        made.prepare_uploads("p1")
    assert len(wire.exchanges) == 2


def test_updates_that_fit_into_any_single_message_need_no_exchange():
    wire = Wire()
    made, _ = publisher(wire, 10_000, update_bytes=32 * 1024)
    made.task(order(1), PARAMETERS)
    made.pump()
    assert (wire.exchanges, len(wire.sent)) == ([], 1)
