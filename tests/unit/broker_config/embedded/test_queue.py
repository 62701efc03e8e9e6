"""The queue model alone. Times are numbers, and nothing else moves."""

from __future__ import annotations

from typing import Any, Literal

import pytest

from fedmq.broker_config.embedded.queue import Consumer, Content, Dead, Outcome, QueueModel, dead_lettered
from fedmq.broker_config.topology import Queue


def queue(kind: Literal["classic", "quorum"] = "classic", **limits: Any) -> Queue:
    return Queue("q", kind, "x", "k", **limits)


def content(name: str, size: int = 1, expiration_s: float | None = None, **headers: object) -> Content:
    return Content("x", "k", bytes(size), name, None, None, headers, expiration_s)


def filled(of: Queue, *names: str) -> QueueModel:
    model = QueueModel(of, now=0.0)
    for name in names:
        assert model.push(content(name), now=0.0)
    return model


def handed(outcome: Outcome) -> list[str | None]:
    return [handout.stored.content.message_id for handout in outcome.handouts]


def died(outcome: Outcome) -> list[tuple[str | None, str]]:
    return [(dead.content.message_id, dead.reason) for dead in outcome.dead]


def attached(model: QueueModel, prefetch: int = 0) -> Consumer:
    consumer = Consumer(owner=None, prefetch=prefetch)
    model.attach(consumer)
    return consumer


def test_messages_leave_in_their_order_up_to_the_prefetch() -> None:
    model = filled(queue(), "a", "b", "c")
    attached(model, prefetch=2)
    outcome = model.advance(0.0)
    assert handed(outcome) == ["a", "b"]
    assert (len(model), model.num_unsettled) == (1, 2)
    assert model.ack(outcome.handouts[0].tag)
    assert handed(model.advance(0.0)) == ["c"]


def test_a_prefetch_of_zero_is_no_limit() -> None:
    model = filled(queue(), *"abcdefgh")
    attached(model)
    assert handed(model.advance(0.0)) == list("abcdefgh")


def test_consumers_take_turns_and_full_ones_are_skipped() -> None:
    model = filled(queue(), *"abcde")
    one, two = attached(model, prefetch=1), attached(model, prefetch=3)
    taken = [(handout.consumer is one, handout.stored.content.message_id) for handout in model.advance(0.0).handouts]
    assert taken == [(True, "a"), (False, "b"), (False, "c"), (False, "d")]
    assert (one.unsettled, two.unsettled) == (1, 3)


def test_only_the_first_consumer_is_the_single_active_one() -> None:
    model = filled(queue(single_active_consumer=True), "a", "b")
    one, two = attached(model, prefetch=1), attached(model, prefetch=1)
    assert [handout.consumer for handout in model.advance(0.0).handouts] == [one]
    model.detach(one, 0.0)
    outcome = model.advance(0.0)
    assert [(handout.consumer, handout.stored.content.message_id) for handout in outcome.handouts] == [(two, "a")]


def test_a_classic_queue_takes_back_to_the_original_place() -> None:
    model = filled(queue(), *"abcd")
    consumer = attached(model, prefetch=3)
    a, b, c = (handout.tag for handout in model.advance(0.0).handouts)
    assert model.give_back(c)
    assert model.give_back(a)
    assert model.ack(b)
    model.detach(consumer, 0.0)
    attached(model)
    outcome = model.advance(0.0)
    assert handed(outcome) == ["a", "c", "d"]
    assert [handout.stored.redelivered for handout in outcome.handouts] == [True, True, False]
    assert [handout.stored.delivery_count for handout in outcome.handouts] == [0, 0, 0]


def test_a_quorum_queue_takes_back_to_the_front_in_the_order_of_giving_back() -> None:
    model = filled(queue("quorum"), *"abcd")
    attached(model, prefetch=3)
    a, b, c = (handout.tag for handout in model.advance(0.0).handouts)
    assert [model.give_back(tag) for tag in (c, a, b)] == [True] * 3
    attached(model)
    outcome = model.advance(0.0)
    assert handed(outcome) == ["c", "a", "b", "d"]
    assert [handout.stored.delivery_count for handout in outcome.handouts] == [1, 1, 1, 0]


def test_what_a_lost_consumer_held_goes_back_in_the_order_of_its_deliveries() -> None:
    model = filled(queue("quorum"), *"abc")
    consumer = attached(model, prefetch=2)
    first, second = (handout.tag for handout in model.advance(0.0).handouts)
    model.detach(consumer, 0.0)
    assert [model.ack(first), model.ack(second)] == [False, False]
    attached(model)
    assert handed(model.advance(0.0)) == ["a", "b", "c"]


def test_a_tag_is_settled_once() -> None:
    model = filled(queue(), "a")
    attached(model)
    (handout,) = model.advance(0.0).handouts
    assert model.ack(handout.tag)
    assert [model.ack(handout.tag), model.reject(handout.tag), model.give_back(handout.tag)] == [False] * 3


def test_the_delivery_limit_counts_what_came_back() -> None:
    model = filled(queue("quorum", delivery_limit=1), "a")
    attached(model)
    (first,) = model.advance(0.0).handouts
    assert model.give_back(first.tag)
    (second,) = model.advance(0.0).handouts
    assert second.stored.delivery_count == 1
    assert model.give_back(second.tag)
    assert died(model.advance(0.0)) == [("a", "delivery_limit")]
    assert len(model) == 0


def test_drop_head_drops_the_oldest_and_never_what_is_handed_out_at_once() -> None:
    model = filled(queue(max_length=1), "a", "b", "c")
    attached(model, prefetch=1)
    outcome = model.advance(0.0)
    assert (handed(outcome), died(outcome)) == (["a"], [("b", "maxlen")])


def test_what_comes_back_to_a_full_classic_queue_is_its_oldest_and_dropped() -> None:
    model = filled(queue(max_length=1), "a")
    attached(model, prefetch=1)
    (handout,) = model.advance(0.0).handouts
    assert model.push(content("b"), now=0.0)
    assert model.give_back(handout.tag)
    outcome = model.advance(0.0)
    assert (handed(outcome), died(outcome)) == (["b"], [("a", "maxlen")])


def test_drop_head_by_bytes_may_drop_the_new_message_itself() -> None:
    model = filled(queue(max_length_bytes=10))
    assert model.push(content("huge", size=11), now=0.0)
    assert died(model.advance(0.0)) == [("huge", "maxlen")]
    assert model.push(content("fits", size=10), now=0.0)
    assert died(model.advance(0.0)) == []


@pytest.mark.parametrize("limits", [{"max_length": 2}, {"max_length_bytes": 2}], ids=["count", "bytes"])
def test_a_full_queue_that_rejects_takes_again_once_a_message_left(limits: Any) -> None:
    model = filled(queue(overflow="reject-publish", **limits), "a", "b")
    assert not model.push(content("c"), now=0.0)
    attached(model, prefetch=1)
    assert handed(model.advance(0.0)) == ["a"]
    assert model.push(content("c"), now=0.0)


def test_the_shorter_of_two_lives_counts() -> None:
    model = filled(queue(message_ttl_s=10.0))
    assert model.push(content("short", expiration_s=3.0), now=0.0)
    assert model.push(content("long", expiration_s=30.0), now=0.0)
    assert model.next_due_s() == 3.0
    assert died(model.advance(2.9)) == []
    assert died(model.advance(3.0)) == [("short", "expired")]
    assert model.next_due_s() == 10.0
    assert died(model.advance(10.0)) == [("long", "expired")]
    assert model.next_due_s() is None


def test_only_the_head_expires() -> None:
    model = filled(queue(), "head")
    assert model.push(content("behind", expiration_s=1.0), now=0.0)
    assert died(model.advance(5.0)) == []
    attached(model, prefetch=1)
    outcome = model.advance(5.0)
    assert (handed(outcome), died(outcome)) == (["head"], [("behind", "expired")])


def test_a_life_of_zero_is_long_enough_for_a_waiting_consumer() -> None:
    model = filled(queue(message_ttl_s=0.0))
    attached(model, prefetch=1)
    model.push(content("now"), now=1.0)
    assert handed(model.advance(1.0)) == ["now"]
    model.push(content("late"), now=1.0)
    assert died(model.advance(1.0)) == [("late", "expired")]


def test_a_message_that_expired_while_held_expires_on_coming_back() -> None:
    model = filled(queue(message_ttl_s=1.0), "a")
    consumer = attached(model)
    assert handed(model.advance(0.0)) == ["a"]
    model.detach(consumer, 2.0)
    attached(model)
    outcome = model.advance(2.0)
    assert (handed(outcome), died(outcome)) == ([], [("a", "expired")])


def test_a_queue_expires_only_while_it_has_no_consumers() -> None:
    model = filled(queue(expires_s=5.0))
    assert [model.expired(4.9), model.expired(5.0), model.next_due_s()] == [False, True, 5.0]
    consumer = attached(model)
    assert [model.expired(100.0), model.next_due_s()] == [False, None]
    model.detach(consumer, 100.0)
    assert [model.expired(104.0), model.expired(105.0)] == [False, True]
    model.touch(105.0)
    assert not model.expired(109.0)


# Dead letters


DEAD = queue(dead_letter_exchange="dlx", dead_letter_routing_key="dead")


def test_without_a_dead_letter_exchange_the_dead_are_gone() -> None:
    assert dead_lettered(Dead(content("a"), "rejected"), queue()) is None


def test_the_dead_keep_their_properties_lose_their_expiration_and_tell_why() -> None:
    found = dead_lettered(Dead(content("a", expiration_s=3.0, kind="update"), "expired"), DEAD)
    assert found is not None
    assert (found.exchange, found.routing_key, found.message_id, found.expiration_s) == ("dlx", "dead", "a", None)
    assert found.headers == {
        "kind": "update",
        "x-first-death-queue": "q",
        "x-first-death-reason": "expired",
        "x-first-death-exchange": "x",
        "x-death": [{"count": 1, "reason": "expired", "queue": "q", "exchange": "x", "routing-keys": ["k"]}],
    }


def test_without_a_dead_letter_routing_key_the_message_keeps_its_own() -> None:
    found = dead_lettered(Dead(content("a"), "rejected"), queue(dead_letter_exchange="dlx"))
    assert found is not None
    assert found.routing_key == "k"


def test_a_second_rejection_in_one_queue_is_counted() -> None:
    once = dead_lettered(Dead(content("a"), "rejected"), DEAD)
    assert once is not None
    twice = dead_lettered(Dead(once, "rejected"), DEAD)
    assert twice is not None
    deaths: Any = twice.headers["x-death"]
    assert [(death["count"], death["reason"]) for death in deaths] == [(2, "rejected")]


def test_a_circle_without_a_rejection_ends() -> None:
    once = dead_lettered(Dead(content("a"), "maxlen"), DEAD)
    assert once is not None
    assert dead_lettered(Dead(once, "maxlen"), DEAD) is None
