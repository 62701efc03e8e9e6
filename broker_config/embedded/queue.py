"""One queue of the embedded broker: RabbitMQ's rules as pure, synchronous state (no clock, no threads, no I/O).

The rules, for the values that `topology.Queue` can hold
1. Ready messages leave in the order of their places. A classic queue takes a message back to its original place. A
   quorum queue puts it in front of all messages that were never delivered, in the order of giving back. (In 3.10 the
   giving back takes a moment, and the next message or two may pass it: nobody should rely on this order.)
2. Only ready messages count towards the limits. A new message that is handed to a consumer at once never counts. One
   that is given back to a classic queue counts, even if a consumer has room.
3. Over its limit a `drop-head` queue drops the next message to leave. A full `reject-publish` queue refuses new ones.
4. A message expires when it is at the head. If it can be handed out on arrival, it is, even with a TTL of 0.
5. In a quorum queue each giving back counts as a delivery. Above `delivery_limit` the message is dead.
6. An expired queue is deleted with its messages. None of them is dead-lettered.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

from fedmq.broker_config.topology import Queue
from fedmq.broker_config.transport import Offset

DeathReason = Literal["rejected", "expired", "maxlen", "delivery_limit"]


@dataclass(frozen=True, slots=True, eq=False)
class Content:
    """A message as it was published, shared by all the queues that it was routed to."""

    exchange: str
    routing_key: str
    body: bytes
    message_id: str | None
    correlation_id: str | None
    user_id: str | None
    headers: Mapping[str, object]
    expiration_s: float | None = None


@dataclass(slots=True, eq=False)
class Stored:
    """A message in one queue."""

    content: Content
    place: tuple[int, int]
    """Position in the queue: the smallest leaves first."""
    expires_at_s: float | None
    delivery_count: int = 0
    redelivered: bool = False
    offset: int | None = None


@dataclass(slots=True, eq=False)
class Position:
    """A consumer's place in a stream: `offset` is that of its next message, or None for what comes from now on."""

    offset: Offset | None


@dataclass(slots=True, eq=False)
class Consumer:
    """A consumer of up to `prefetch` unsettled messages (0: any number). `owner` is for the broker."""

    owner: Any
    prefetch: int
    unsettled: int = 0
    position: Position | None = None
    """The place in the queue, if that is a stream."""

    @property
    def has_room(self) -> bool:
        return self.prefetch == 0 or self.unsettled < self.prefetch


class Handout(NamedTuple):
    """A message for a consumer, to be settled by its tag."""

    consumer: Consumer
    tag: int
    stored: Stored


class Dead(NamedTuple):
    """A message that leaves the queue unconsumed."""

    content: Content
    reason: DeathReason


@dataclass(slots=True)
class Outcome:
    """The broker's work after an operation."""

    handouts: list[Handout] = field(default_factory=list)
    dead: list[Dead] = field(default_factory=list)


class QueueModel:
    """One queue (the module docstring has the rules). After every operation the broker calls `advance`."""

    def __init__(self, queue: Queue, now: float) -> None:
        self.queue = queue
        self._ready: list[tuple[tuple[int, int], Stored]] = []
        self._ready_bytes = 0
        self._unsettled: dict[int, tuple[Stored, Consumer]] = {}
        self._consumers: deque[Consumer] = deque()
        self._dead: list[Dead] = []
        self._places = 0
        self._tags = 0
        self._unused_since_s = now

    def __len__(self) -> int:
        """Return the number of ready messages."""
        return len(self._ready)

    @property
    def num_unsettled(self) -> int:
        return len(self._unsettled)

    @property
    def consumers(self) -> tuple[Consumer, ...]:
        return tuple(self._consumers)

    def push(self, content: Content, now: float) -> bool:
        """Add a new message at the tail. False if the queue is full and rejects it."""
        if self.queue.overflow == "reject-publish" and self._full(spare=0):
            return False
        lives = [ttl for ttl in (self.queue.message_ttl_s, content.expiration_s) if ttl is not None]
        self._put(Stored(content, (1, self._next_place()), now + min(lives) if lives else None))
        return True

    def attach(self, consumer: Consumer) -> None:
        self._consumers.append(consumer)

    def detach(self, consumer: Consumer, now: float) -> None:
        """Remove a consumer. Its unsettled messages go back, in the order in which it got them."""
        self._consumers.remove(consumer)
        for tag in [tag for tag, (_, holder) in self._unsettled.items() if holder is consumer]:
            self.give_back(tag)
        self.touch(now)

    def touch(self, now: float) -> None:
        """Start the queue's own expiry anew, after a declaration or when the last consumer left."""
        self._unused_since_s = now

    def ack(self, tag: int) -> bool:
        """Settle. False if the tag is settled already."""
        return self._settle(tag) is not None

    def reject(self, tag: int) -> bool:
        """Dead-letter. False if the tag is settled already."""
        stored = self._settle(tag)
        if stored is not None:
            self._dead.append(Dead(stored.content, "rejected"))
        return stored is not None

    def give_back(self, tag: int) -> bool:
        """Requeue. False if the tag is settled already."""
        stored = self._settle(tag)
        if stored is None:
            return False
        stored.redelivered = True
        if self.queue.kind == "quorum":
            stored.delivery_count += 1
            stored.place = (0, self._next_place())
        limit = self.queue.delivery_limit
        if limit is not None and stored.delivery_count > limit:
            self._dead.append(Dead(stored.content, "delivery_limit"))
        else:
            self._put(stored)
            if self.queue.kind == "classic":
                self._drop_head(self._dead)
        return True

    def advance(self, now: float) -> Outcome:
        """Hand out, expire and drop messages until nothing more can be done."""
        outcome = Outcome(dead=self._dead)
        self._dead = []
        while self._ready:
            expires_at_s = self._ready[0][1].expires_at_s
            if expires_at_s is not None and expires_at_s < now:
                outcome.dead.append(Dead(self._pop().content, "expired"))
            elif (consumer := self._next_consumer()) is not None:
                outcome.handouts.append(self._hand(self._pop(), consumer))
            else:
                break
        while self._ready and (due := self._ready[0][1].expires_at_s) is not None and due <= now:
            outcome.dead.append(Dead(self._pop().content, "expired"))
        self._drop_head(outcome.dead)
        return outcome

    def expired(self, now: float) -> bool:
        """True if the queue itself has been unused for too long."""
        due = self._expires_at_s()
        return due is not None and due <= now

    def next_due_s(self) -> float | None:
        """Return the time at which `advance` or `expired` has something to do without an operation."""
        head = self._ready[0][1].expires_at_s if self._ready else None
        return min((due for due in (head, self._expires_at_s()) if due is not None), default=None)

    def _expires_at_s(self) -> float | None:
        if self.queue.expires_s is None or self._consumers:
            return None
        return self._unused_since_s + self.queue.expires_s

    def _full(self, spare: int) -> bool:
        """True if the ready messages reach a limit (spare 0), or exceed it (spare 1)."""
        limit, limit_bytes = self.queue.max_length, self.queue.max_length_bytes
        return (limit is not None and len(self._ready) >= limit + spare) or (
            limit_bytes is not None and self._ready_bytes >= limit_bytes + spare
        )

    def _drop_head(self, dead: list[Dead]) -> None:
        while self.queue.overflow == "drop-head" and self._ready and self._full(spare=1):
            dead.append(Dead(self._pop().content, "maxlen"))

    def _next_place(self) -> int:
        self._places += 1
        return self._places

    def _put(self, stored: Stored) -> None:
        heapq.heappush(self._ready, (stored.place, stored))
        self._ready_bytes += len(stored.content.body)

    def _pop(self) -> Stored:
        _, stored = heapq.heappop(self._ready)
        self._ready_bytes -= len(stored.content.body)
        return stored

    def _next_consumer(self) -> Consumer | None:
        if self.queue.single_active_consumer:
            active = self._consumers[0] if self._consumers else None
            return active if active is not None and active.has_room else None
        for _ in range(len(self._consumers)):
            consumer = self._consumers[0]
            self._consumers.rotate(-1)
            if consumer.has_room:
                return consumer
        return None

    def _hand(self, stored: Stored, consumer: Consumer) -> Handout:
        self._tags += 1
        self._unsettled[self._tags] = (stored, consumer)
        consumer.unsettled += 1
        return Handout(consumer, self._tags, stored)

    def _settle(self, tag: int) -> Stored | None:
        stored, consumer = self._unsettled.pop(tag, (None, None))
        if consumer is not None:
            consumer.unsettled -= 1
        return stored


def dead_lettered(dead: Dead, queue: Queue) -> Content | None:
    """Return the copy for the queue's dead-letter exchange, with RabbitMQ's x-death headers; None if there is none.

    A message that comes by a second time, and was never rejected, goes round in a circle: it is dropped.
    """
    content, reason = dead
    if queue.dead_letter_exchange is None:
        return None
    deaths = content.headers.get("x-death")
    earlier: list[dict[str, object]] = list(deaths) if isinstance(deaths, list) else []
    circle = any(death["queue"] == queue.name for death in earlier)
    if circle and reason != "rejected" and not any(death["reason"] == "rejected" for death in earlier):
        return None
    same = [death for death in earlier if (death["queue"], death["reason"]) == (queue.name, reason)]
    count = sum(n for death in same if isinstance(n := death["count"], int)) + 1
    entry: dict[str, object] = {
        "count": count,
        "reason": reason,
        "queue": queue.name,
        "exchange": content.exchange,
        "routing-keys": [content.routing_key],
    }
    headers = {
        "x-first-death-queue": queue.name,
        "x-first-death-reason": reason,
        "x-first-death-exchange": content.exchange,
        **content.headers,
        "x-death": [entry, *(death for death in earlier if death not in same)],
    }
    key = queue.dead_letter_routing_key
    return replace(
        content,
        exchange=queue.dead_letter_exchange,
        routing_key=content.routing_key if key is None else key,
        headers=headers,
        expiration_s=None,
    )
