"""Payloads are put together one at a time: their turns, their acks, and the faults that break a payload."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fedmq.broker_config.chunks.receiver import MORE_UNWANTED, PATIENCE_S, ChunkArrived
from fedmq.broker_config.topology import Topology
from fedmq.broker_config.transport import Delivery
from fedmq.coordinator.service.incoming import payloads
from fedmq.coordinator.service.incoming.intake import (
    BUDGET_S,
    GIVE_WAY_S,
    MOST_BUDGETS,
    MOST_IDLE_BUDGETS,
    MOST_TRIES,
    ONE_TRY_S,
    SLOW_BYTES_PER_S,
    Intake,
)
from fedmq.coordinator.service.incoming.payloads import Broken, Manifest, Whole
from fedmq.schemas import chunks
from fedmq.schemas.errors import BrokerError, BrokerUnavailable, LimitExceeded, SpecMismatch
from fedmq.schemas.messages import ChunkedPayload, Update, update_id

PARTS = [bytes([number]) * 1024 for number in range(3)]
BODY = b"".join(PARTS)
TOPOLOGY = Topology("p")


def manifest(payload_id: str = "one", num_bytes: int = len(BODY)) -> ChunkedPayload:
    digest = chunks.digest_of_all(chunks.digest_of(part) for part in PARTS)
    return ChunkedPayload(
        payload_id=payload_id, num_bytes=num_bytes, chunk_bytes=1024, count=-(-num_bytes // 1024), digest=digest
    )


def update(name: str, payload_id: str = "one") -> Update:
    return Update(
        update_id=update_id("r", f"t-{name}", name), task_id=f"t-{name}", run_id="r", participant_id=name,
        base_version=0, payload="delta", num_examples=1, num_steps=1, train_s=0.0, chunks=manifest(payload_id),
    )  # fmt: skip


def queue_of(name: str) -> str:
    return TOPOLOGY.upload(name, update(name).update_id).name


class Queues:
    """A stand-in for a transport: it hands over what the test says, and notes consumers and acks."""

    def __init__(self) -> None:
        self.depths: dict[str, int | Exception] = {}
        self.consumers: dict[str, Callable[[Delivery], None]] = {}
        self.acked: list[Any] = []

    def depth(self, queue: str) -> int:
        found = self.depths.get(queue, 3)
        if isinstance(found, Exception):
            raise found
        return found

    def consume(self, queue: str, on_delivery: Callable[[Delivery], None], prefetch: int) -> None:
        assert prefetch >= 2 * len(PARTS)
        self.consumers[queue] = on_delivery

    def stop_consuming(self, queue: str) -> None:
        del self.consumers[queue]

    def ack(self, delivery: Delivery) -> bool:
        self.acked.append(delivery.token)
        return True


class Desk:
    """An intake, and the chunks that its transport's thread has handed over."""

    def __init__(self) -> None:
        self.queues = Queues()
        self.placed: list[ChunkArrived] = []
        self.intake = Intake(self.queues, TOPOLOGY, put=self.placed.append, payload_bytes=len(BODY))  # type: ignore[arg-type]

    def offer(self, handle: int, name: str, payload_id: str = "one") -> int | None:
        sent = update(name, payload_id)
        assert sent.chunks is not None
        return self.intake.offer(Manifest(handle, sent, sent.chunks))

    def begin(self, now: float = 0.0) -> Broken | None:
        found = self.intake.next(now)
        assert found is not None, "nothing is due"
        return self.intake.begin(found, now)

    def chunk(
        self, name: str, index: int, now: float = 0.0, body: bytes | None = None, **label: Any
    ) -> Whole | Broken | None:
        headers = chunks.headers("one", index, chunks.digest_of(PARTS[index])) | label
        token = f"{name}.{index}"
        self.queues.consumers[queue_of(name)](
            Delivery(queue_of(name), body or PARTS[index], None, None, None, headers, False, 0, token)
        )
        return self.intake.on_chunk(self.placed.pop(), now)

    def reading(self) -> str | None:
        found = self.intake.reading
        return None if found is None else found.update.participant_id


def desk(*names: str) -> Desk:
    made = Desk()
    for handle, name in enumerate(names, 1):
        assert made.offer(handle, name) is None
    return made


def test_chunks_in_any_order_make_the_body_and_none_is_acked() -> None:
    one = desk("a")
    assert one.begin() is None
    assert [one.chunk("a", index) for index in (2, 0)] == [None, None]
    whole = one.chunk("a", 1)
    assert isinstance(whole, Whole)
    assert (whole.manifest.handle, bytes(whole.take_body())) == (1, BODY)
    assert (one.queues.acked, one.queues.consumers) == ([], {})
    assert one.intake.idle


def test_one_payload_is_read_at_a_time_in_the_order_of_the_manifests() -> None:
    one = desk("a", "b")
    one.begin()
    assert one.intake.next(0.0) is None
    assert list(one.queues.consumers) == [queue_of("a")]
    for index in range(3):
        one.chunk("a", index)
    one.begin()
    assert one.reading() == "b"


def test_repeated_chunks_and_those_of_another_payload_are_acked_so_that_the_window_has_room() -> None:
    one = desk("a")
    one.begin()
    one.chunk("a", 0)
    one.chunk("a", 0)
    one.chunk("a", 1, payload_id="other")
    assert one.queues.acked == ["a.0", "a.1"]
    one.chunk("a", 1)
    assert isinstance(one.chunk("a", 2), Whole)


@pytest.mark.parametrize(
    ("changed", "detail"),
    [
        ({"body": b"\xff" * 1024}, "chunk 1 of 3 was damaged"),
        ({"body": b"short"}, "chunk 1 has 5 bytes"),
        ({"chunk": 3}, "chunk index 3, expected 0 to 2"),
    ],
)
def test_a_chunk_that_cannot_be_right_breaks_the_payload(changed: dict[str, Any], detail: str) -> None:
    one = desk("a", "b")
    one.begin()
    broken = one.chunk("a", 1, **changed)
    assert isinstance(broken, Broken)
    assert (detail in broken.detail, broken.final) == (True, False)
    assert one.reading() is None
    one.begin()
    assert one.reading() == "b"


def test_chunks_that_are_not_the_manifest_s_break_the_payload() -> None:
    one = desk("a")
    one.begin()
    other = b"\x07" * 1024
    one.chunk("a", 0, body=other, digest=chunks.digest_of(other).hex())
    one.chunk("a", 1)
    broken = one.chunk("a", 2)
    assert isinstance(broken, Broken)
    assert "digest of all differs" in broken.detail


def test_the_third_broken_try_is_the_last_and_a_whole_one_begins_the_count_anew() -> None:
    one = Desk()
    one.queues.depths[queue_of("a")] = BrokerError("no such queue")
    finals = []
    for handle in range(MOST_TRIES):
        one.offer(handle, "a")
        broken = one.begin(now=handle * ONE_TRY_S)
        assert broken is not None
        finals.append(broken.final)
    assert finals == [False, False, True]
    one.intake.forget(update("a").update_id)
    one.offer(9, "a")
    again = one.begin()
    assert again is not None
    assert not again.final


def test_a_manifest_that_comes_again_before_its_participant_could_send_again_is_no_further_try() -> None:
    """The connection may be lost each time before the ack, for example."""
    one = Desk()
    one.queues.depths[queue_of("a")] = BrokerError("no such queue")
    for handle in range(5):
        one.offer(handle, "a")
        broken = one.begin(now=handle)
        assert broken is not None
        assert not broken.final


def test_a_broker_that_is_away_breaks_nothing() -> None:
    one = desk("a")
    one.queues.depths[queue_of("a")] = BrokerUnavailable("away")
    assert one.begin() is None
    assert one.intake.tick(PATIENCE_S) is None
    assert one.reading() == "a"


def test_a_payload_with_chunks_missing_and_an_empty_queue_is_broken_after_a_while() -> None:
    one = desk("a")
    one.begin(now=0.0)
    one.chunk("a", 0, now=5.0)
    one.queues.depths[queue_of("a")] = 0
    assert one.intake.tick(5.0 + PATIENCE_S - 0.1) is None
    broken = one.intake.tick(5.0 + PATIENCE_S)
    assert broken is not None
    assert broken.detail == "2 of 3 chunks are missing"


def test_chunks_that_are_in_the_queue_are_waited_for() -> None:
    one = desk("a")
    one.begin(now=0.0)
    assert one.intake.tick(PATIENCE_S) is None
    one.queues.depths[queue_of("a")] = 0
    assert one.intake.tick(2 * PATIENCE_S - 0.1) is None
    assert one.intake.tick(2 * PATIENCE_S) is not None


def test_an_empty_queue_lets_the_others_go_first_and_is_broken_no_later_for_it() -> None:
    one = desk("a", "b")
    one.begin(now=0.0)
    one.queues.depths[queue_of("a")] = 0
    assert one.intake.due_s() == GIVE_WAY_S
    assert one.intake.tick(GIVE_WAY_S) is None
    one.begin(now=1.0)
    assert one.reading() == "b"
    assert one.queues.consumers.keys() == {queue_of("b")}
    for index in range(3):
        one.chunk("b", index, now=20.0)
    one.begin(now=20.0)
    assert (one.reading(), one.intake.due_s()) == ("a", PATIENCE_S)
    assert one.intake.tick(PATIENCE_S) is not None


def test_one_that_gave_way_is_put_together_when_its_chunks_come_back() -> None:
    one = desk("a", "b")
    one.begin(now=0.0)
    one.chunk("a", 0)
    one.queues.depths[queue_of("a")] = 0
    assert one.intake.tick(1.0) is None
    one.begin(now=1.0)
    assert one.reading() == "b"
    one.queues.depths[queue_of("b")] = 0
    assert one.intake.tick(2.0) is None
    assert one.reading() == "b", "nobody could go first: a has no chunks either"
    one.queues.depths[queue_of("a")] = 3
    assert one.intake.tick(3.0) is None
    one.begin(now=3.0)
    assert [type(one.chunk("a", index, now=20.0)) for index in range(3)][-1] is Whole
    one.begin(now=20.0)
    assert one.reading() == "b"
    assert one.intake.tick(32.0) is not None, "it had its time"


def test_a_payload_without_all_its_chunks_in_the_queue_is_not_begun_while_others_wait() -> None:
    one = desk("short", "b")
    one.queues.depths[queue_of("short")] = 2
    one.begin(now=0.0)
    assert (one.reading(), one.queues.consumers) == (None, {})
    one.begin(now=0.0)
    assert one.reading() == "b"
    for index in range(3):
        one.chunk("b", index, now=0.5)
    one.offer(9, "c")
    one.begin(now=0.5)
    assert one.reading() == "c", "the short one is not looked at before its time"


def test_a_short_payload_is_looked_at_ever_more_rarely_and_broken_when_its_time_is_over() -> None:
    one = desk("a", "b")
    one.queues.depths[queue_of("a")] = one.queues.depths[queue_of("b")] = 2
    looks, now = 0, 0.0
    while True:
        manifest = one.intake.next(now)
        if manifest is None:
            assert one.intake.due_s(has_room=False) == float("inf")
            now = one.intake.due_s()
            continue
        broken = one.intake.begin(manifest, now)
        looks += 1
        if broken is not None:
            break
    assert (broken.detail, PATIENCE_S <= now <= PATIENCE_S + 9) == ("1 of 3 chunks are missing in its queue", True)
    assert looks <= 2 * 15, "a look costs the broker a question"


def test_a_short_payload_that_was_begun_gives_way_as_soon_as_another_one_can_be_read() -> None:
    """The device drips chunks, each in time to count as progress."""
    one = desk("slow")
    one.queues.depths[queue_of("slow")] = 1
    one.begin(now=0.0)
    one.chunk("slow", 0, now=0.1)
    one.offer(2, "b")
    assert one.intake.due_s() <= 0.1
    assert one.intake.tick(0.1) is None
    one.begin(now=0.1)
    assert one.reading() == "b"


def test_a_filled_queue_of_other_chunks_gives_way_when_they_have_come_and_is_broken_the_third_time() -> None:
    one = desk("junk", "b")
    broken = None
    for turn in range(3):
        one.begin(now=float(turn))
        assert one.reading() == "junk"
        for _ in range(3):
            one.chunk("junk", 0, now=float(turn))
        broken = one.intake.tick(float(turn))
        assert one.reading() is None
        if turn < 2:
            assert broken is None
            one.begin(now=float(turn))
            assert one.reading() == "b"
            for index in range(3):
                one.chunk("b", index, now=float(turn))
            one.offer(7, "b")
    assert broken is not None
    assert broken.detail == "2 of 3 chunks are missing, and others are in its queue, 3 times"


def test_chunks_that_are_not_wanted_are_no_progress_and_too_many_break_the_payload() -> None:
    one = desk("a")
    one.queues.depths[queue_of("a")] = 1000
    one.begin(now=0.0)
    one.chunk("a", 0, now=1.0)
    for _ in range(2 * 3 + MORE_UNWANTED):
        assert one.chunk("a", 0, now=5.0) is None
    assert one.intake.due_s() == 1.0 + PATIENCE_S, "repeats are not heard"
    broken = one.chunk("a", 0, now=5.0)
    assert isinstance(broken, Broken)
    assert broken.detail.startswith("71 chunks came that are repeats or of another payload, at most 70 expected")


def test_a_budget_that_is_used_up_lets_the_others_go_first_and_doubles() -> None:
    """The link between the broker and the coordinator may be slow: each payload gets through in the end."""
    one, now = desk("a"), 0.0
    first = BUDGET_S + len(BODY) / SLOW_BYTES_PER_S
    one.queues.depths[queue_of("a")] = 100
    one.begin(now)
    for turn in range(3):
        began, budget = now, first * 2**turn
        one.offer(9, "b")
        one.chunk("a", 0, now=now)
        while (now := one.intake.due_s()) < began + budget:
            assert one.intake.tick(now) is None
            assert one.reading() == "a", "there are chunks in its queue"
        assert now == began + budget
        assert one.intake.tick(now) is None
        one.begin(now)
        assert one.reading() == "b"
        for index in range(3):
            one.chunk("b", index, now=now)
        one.begin(now)
        assert one.reading() == "a"
    assert [type(one.chunk("a", index, now=now)) for index in range(3)][-1] is Whole


@pytest.mark.parametrize(("chunks_a_turn", "turns"), [(0, MOST_IDLE_BUDGETS), (1, MOST_BUDGETS)])
def test_budgets_that_are_used_up_again_and_again_break_the_payload(chunks_a_turn: int, turns: int) -> None:
    """A participant that consumes its own queue does this, for example."""
    one, now = desk("a"), 0.0
    one.queues.depths[queue_of("a")] = 100
    one.begin(now)
    for turn in range(turns):
        one.offer(9, "b")
        for index in range(chunks_a_turn):
            one.chunk("a", index, now=now)
        until = now + (BUDGET_S + len(BODY) / SLOW_BYTES_PER_S) * 2**turn
        while now < until and (broken := one.intake.tick(now)) is None:
            now = one.intake.due_s()
        broken = one.intake.tick(now)
        assert (broken is not None) == (turn == turns - 1)
        one.begin(now)
        assert one.reading() == "b"
        for index in range(3):
            one.chunk("b", index, now=now)
        if broken is None:
            one.begin(now)
    assert broken is not None
    assert broken.detail == f"{3 - chunks_a_turn} of 3 chunks are missing after {turns} turns"


def test_nobody_gives_way_to_a_payload_that_cannot_be_read() -> None:
    one = desk("a", "short")
    one.queues.depths[queue_of("a")] = 100
    one.queues.depths[queue_of("short")] = 0
    one.begin(now=0.0)
    assert one.intake.tick(100.0) is None
    assert one.reading() == "a"
    assert one.intake.due_s() >= 101.0, "the loop does not spin"
    broken = one.intake.tick(131.0)
    assert broken is not None
    assert broken.manifest.update.participant_id == "short"
    assert one.reading() == "a"


def test_a_payload_whose_queue_is_gone_holds_no_ram(monkeypatch: pytest.MonkeyPatch) -> None:
    """Receiver and store refer to each other, and many such payloads may come before a garbage collection."""
    made: list[weakref.ref[Any]] = []

    def empty(*shape: Any) -> Any:
        buffer = np.zeros(*shape)
        made.append(weakref.ref(buffer))
        return buffer

    monkeypatch.setattr(payloads, "np", SimpleNamespace(empty=empty, uint8=np.uint8))
    one = desk("a")
    one.queues.depths[queue_of("a")] = BrokerError("no such queue")
    gc.disable()
    try:
        assert isinstance(one.begin(), Broken)
        assert [buffer() for buffer in made] == [None]
    finally:
        gc.enable()


def test_a_queue_that_is_gone_is_not_waited_for_while_others_wait() -> None:
    one = desk("a", "b")
    one.begin(now=0.0)
    one.queues.depths[queue_of("a")] = BrokerError("no such queue")
    assert one.intake.tick(GIVE_WAY_S) is not None


@pytest.mark.parametrize("begun", [True, False])
def test_the_latest_copy_of_a_manifest_stands_for_all(begun: bool) -> None:
    """The others came through a consumer that was lost, and can no longer be acked."""
    one = desk("a", "b")
    if begun:
        one.begin()
        one.chunk("a", 0)
    assert one.offer(7, "a") == 1
    if not begun:
        one.begin()
        one.chunk("a", 0)
    one.chunk("a", 1)
    whole = one.chunk("a", 2)
    assert isinstance(whole, Whole)
    assert whole.manifest.handle == 7
    one.begin()
    assert one.reading() == "b"


def test_a_manifest_of_another_payload_for_the_same_task_takes_the_place_of_the_former_behind_the_others() -> None:
    one = desk("a", "b")
    one.begin()
    one.chunk("a", 0)
    assert one.offer(7, "a", payload_id="two") == 1
    assert one.reading() is None
    one.begin()
    assert one.reading() == "b", "a new manifest is no new turn"
    for index in range(3):
        one.chunk("b", index)
    one.begin()
    for index in range(2):
        assert one.chunk("a", index, payload_id="two") is None
    assert isinstance(one.chunk("a", 2, payload_id="two"), Whole)


def test_clearing_gives_back_all_in_their_order() -> None:
    one = desk("a", "b", "c")
    one.begin()
    assert [left.handle for left in one.intake.clear()] == [1, 2, 3]
    assert (one.intake.idle, one.queues.consumers) == (True, {})


def test_a_chunk_that_comes_after_its_payload_was_given_up_touches_nothing() -> None:
    one = desk("a")
    one.begin()
    late = one.queues.consumers[queue_of("a")]
    one.intake.abandon()
    headers = chunks.headers("one", 0, chunks.digest_of(PARTS[0]))
    late(Delivery(queue_of("a"), PARTS[0], None, None, None, headers, False, 0, "late"))
    assert (one.placed, one.queues.acked) == ([], [])


def test_a_manifest_that_is_not_of_the_model_s_size_is_refused_before_anything_is_allocated() -> None:
    one = Desk()
    one.intake.check(manifest())
    with pytest.raises(LimitExceeded, match="announces 2000000 bytes"):
        one.intake.check(manifest(num_bytes=2_000_000))
    with pytest.raises(SpecMismatch, match="announces 3071 bytes, an update of this model has 3072"):
        one.intake.check(manifest(num_bytes=3071))
