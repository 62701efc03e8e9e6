"""One stream of the embedded broker: RabbitMQ's rules as pure, synchronous state, beside those of `queue`.

The rules
1. Each message has an offset, from 0 on. It stays after it was read, and to settle it only makes room for the next one.
   To reject it, or to give it back, is no more than that.
2. A message joins the newest segment, and begins a new one if that is full. Then the oldest segments are dropped while
   the stream is larger than its limit. The newest one stays.
3. A consumer begins at its offset, or at the oldest message if its own was dropped, or with the next message if there
   is none yet. "last" is the newest message.
4. A stream has no expiry and no dead letters. Its depth is that of all its messages.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from fedmq.broker_config.embedded.queue import Consumer, Content, Handout, Outcome, QueueModel, Stored
from fedmq.broker_config.topology import Queue

SEGMENT_BYTES = 500_000_000
"""RabbitMQ's default."""


@dataclass(slots=True, eq=False)
class _Segment:
    first: int
    """Offset of its first message."""
    contents: list[Content] = field(default_factory=list)
    num_bytes: int = 0


class StreamModel:
    """One stream (the module docstring has the rules). It answers to all that a QueueModel does."""

    def __init__(self, queue: Queue) -> None:
        self.queue = queue
        self._segments: deque[_Segment] = deque([_Segment(0)])
        self._consumers: list[Consumer] = []
        self._unsettled: dict[int, tuple[Consumer, int]] = {}
        """Tag -> its consumer, and the offset."""
        self._tags = 0

    def __len__(self) -> int:
        return sum(len(segment.contents) for segment in self._segments)

    @property
    def num_unsettled(self) -> int:
        return len(self._unsettled)

    @property
    def consumers(self) -> tuple[Consumer, ...]:
        return tuple(self._consumers)

    @property
    def _next(self) -> int:
        newest = self._segments[-1]
        return newest.first + len(newest.contents)

    def push(self, content: Content, _now: float) -> bool:
        """Add a new message at the end."""
        newest = self._segments[-1]
        if newest.num_bytes >= (self.queue.segment_bytes or SEGMENT_BYTES):
            newest = _Segment(self._next)
            self._segments.append(newest)
            self._drop_oldest()
        newest.contents.append(content)
        newest.num_bytes += len(content.body)
        return True

    def _drop_oldest(self) -> None:
        limit = self.queue.max_length_bytes
        while limit is not None and len(self._segments) > 1 and sum(s.num_bytes for s in self._segments) > limit:
            self._segments.popleft()

    def attach(self, consumer: Consumer) -> None:
        position = consumer.position
        assert position is not None, "the consumer of a stream has a position"
        if position.offset is None:
            position.offset = self._next
        elif position.offset == "last":
            position.offset = max(self._segments[0].first, self._next - 1)
        self._consumers.append(consumer)

    def detach(self, consumer: Consumer, _now: float) -> None:
        """Remove a consumer. It may go on at its oldest unsettled message."""
        self._consumers.remove(consumer)
        held = {tag: offset for tag, (holder, offset) in self._unsettled.items() if holder is consumer}
        for tag in held:
            del self._unsettled[tag]
        if held and consumer.position is not None:
            consumer.position.offset = min(held.values())

    def touch(self, _now: float) -> None:
        pass

    def ack(self, tag: int) -> bool:
        """Make room. False if the tag is settled already."""
        consumer, _ = self._unsettled.pop(tag, (None, 0))
        if consumer is not None:
            consumer.unsettled -= 1
        return consumer is not None

    reject = give_back = ack

    def advance(self, _now: float) -> Outcome:
        """Hand out until nothing more can be handed out."""
        outcome = Outcome()
        for consumer in self._consumers:
            position = consumer.position
            assert position is not None
            assert isinstance(position.offset, int)
            while consumer.has_room and position.offset < self._next:
                offset = max(position.offset, self._segments[0].first)
                self._tags += 1
                self._unsettled[self._tags] = (consumer, offset)
                consumer.unsettled += 1
                stored = Stored(self._at(offset), (1, offset), None, offset=offset)
                outcome.handouts.append(Handout(consumer, self._tags, stored))
                position.offset = offset + 1
        return outcome

    def expired(self, _now: float) -> bool:
        return False

    def next_due_s(self) -> float | None:
        return None

    def _at(self, offset: int) -> Content:
        segment = next(s for s in reversed(self._segments) if s.first <= offset)
        return segment.contents[offset - segment.first]


Model = QueueModel | StreamModel
"""A queue of the embedded broker, of any kind."""


def model_of(queue: Queue, now: float) -> Model:
    """Return the new, empty model of a queue."""
    return StreamModel(queue) if queue.kind == "stream" else QueueModel(queue, now)
