"""Publishes models to the stream that participants read them from (`Topology.models`), one at a time.

Rules
1. The broker does not tell a publisher the offset of what it published. So a mark, a small message, goes first. Once it
   is confirmed, the end of the stream is read until the mark comes back, with its offset. The chunks follow it.
2. A model is announced once all its chunks are confirmed. So no task names what the broker may not have.
3. The stream is declared before each model, because somebody may have deleted it. One with other arguments, of a former
   run, is deleted: what it holds are copies, and whoever still reads them gets another task.
4. Whatever fails ends this one publication, and so does a broker that confirms nothing for a while: a stream may have
   lost its leader. Its caller sends the tasks whole.

Everything happens on the owner's thread. The transport's answers come to `put` as StreamNews or News, and the owner
gives them to `on_news` of their sender.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Literal

from fedmq.broker_config.chunks.sender import WINDOW, ChunkSender, News
from fedmq.broker_config.faults import fault
from fedmq.broker_config.topology import DEFAULT_EXCHANGE, Queue
from fedmq.broker_config.transport import Delivery, Message, Transport
from fedmq.schemas.chunks import PAYLOAD_ID, Pieces
from fedmq.schemas.errors import PublishError, TopologyConflict
from fedmq.schemas.messages import ChunkedPayload

LEAST_SEGMENT_BYTES, MOST_SEGMENT_BYTES = 2**20, 500_000_000
"""Bounds of the stream's segments. The larger one is RabbitMQ's default."""
LOOK_PREFETCH = 4
MOST_LOOKED_AT = 64
"""Messages at the end of the stream that are looked at for the mark: another coordinator may write there too."""
ANSWER_S = 30.0
"""Seconds within which the mark must come back, and a chunk must be confirmed."""
STEP_S = 15.0
"""Longest time for the broker to declare the stream and to confirm the mark: other tasks wait for that."""
SLOWEST_LINK_BYTES_PER_S = 64 * 1024
"""Speed at which the chunks that are out must be confirmed."""


def stream_bytes(model_bytes: int, keep: int) -> tuple[int, int]:
    """Return the bytes that the stream of a model of this size keeps, and the size of its segments.

    `keep` is the number of models. Sizes are rounded up to a power of two, so models of about one size have one stream.
    """
    rounded = 1 << max(LEAST_SEGMENT_BYTES, model_bytes + model_bytes // 16).bit_length()
    return keep * rounded, min(rounded, MOST_SEGMENT_BYTES)


@dataclass(frozen=True, slots=True)
class Published:
    """A model in the stream."""

    payload: ChunkedPayload
    offset: int
    """Offset of the mark before the first chunk."""
    digest: str
    """Digest of the tensors."""


@dataclass(frozen=True, slots=True)
class StreamNews:
    """The transport's answer to a request of `sender`."""

    sender: ModelStream
    turn: str
    """Id of the publication."""
    what: Literal["declared", "deleted", "marked", "found", "missed"]
    offset: int = 0
    error: BaseException | None = None


class ModelStream:
    """The stream of one run's models. Create it with `stream_bytes` of the model."""

    def __init__(
        self,
        transport: Transport,
        stream: Queue,
        *,
        chunk_bytes: int,
        timeout_s: float,
        put: Callable[[StreamNews | News], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.stream = stream
        self._transport = transport
        self._chunk_bytes = chunk_bytes
        self._timeout_s = min(timeout_s, STEP_S)
        self._put = put
        self._clock = clock
        self._turn = ""
        self._pieces: Pieces
        self._digest = ""
        self._on_done: Callable[[Published | BaseException], None]
        self._replaced = False
        """True if a stream with other arguments was deleted for this publication."""
        self._found_by_s = float("inf")
        self._sender: ChunkSender | None = None
        self._confirmed_by_s, self._confirmed = float("inf"), -1
        """Time by which another chunk must be confirmed, and the number of those that are."""

    @property
    def busy(self) -> bool:
        """True while a model is being published."""
        return bool(self._turn)

    def publish(self, pieces: Pieces, digest: str, on_done: Callable[[Published | BaseException], None]) -> None:
        """Publish an encoded model whose tensors have this digest. `on_done` is called once, later."""
        assert not self.busy, "one model at a time"
        self._turn = uuid.uuid4().hex
        self._pieces, self._digest, self._on_done = pieces, digest, on_done
        self._replaced = False
        self._declare()

    def cancel(self) -> None:
        """Publish no more. `on_done` is not called any more."""
        self._end()

    def delete(self) -> None:
        """Delete the stream with all models: the run is over."""
        self.cancel()
        self._transport.delete_queue(self.stream.name)

    def look(self) -> None:
        """Give the publication up if its mark does not come back, or no chunk is confirmed."""
        now = self._clock()
        if now >= self._found_by_s:
            self._fail(PublishError(f"the end of {self.stream.name!r} was not delivered within {ANSWER_S:g} s"))
        elif self._sender is not None and self._sender.confirmed > self._confirmed:
            self._confirmed = self._sender.confirmed
            self._confirmed_by_s = now + ANSWER_S + WINDOW * self._chunk_bytes / SLOWEST_LINK_BYTES_PER_S
        elif now >= self._confirmed_by_s:
            self._fail(PublishError(f"the broker has confirmed no chunk in {self.stream.name!r} for a while"))

    def on_news(self, news: StreamNews) -> None:
        """Go on after the transport's answer."""
        if news.turn != self._turn:
            return
        if isinstance(news.error, TopologyConflict) and news.what == "declared" and not self._replaced:
            self._replaced = True
            self._ask("deleted", self._transport.delete_queue(self.stream.name, self._timeout_s))
        elif news.error is not None:
            self._fail(news.error)
        elif news.what == "deleted":
            self._declare()
        elif news.what == "declared":
            self._mark()
        elif news.what == "marked":
            self._find()
        elif news.what == "missed":
            self._fail(PublishError(f"somebody else writes to {self.stream.name!r}: is another coordinator active?"))
        else:
            self._send_chunks(news.offset)

    def _declare(self) -> None:
        self._ask("declared", self._transport.declare(self.stream, self._timeout_s))

    def _mark(self) -> None:
        self._transport.forget_queue(self.stream.name)  # to make it again unseen would hide the loss of its models
        mark = Message(
            exchange=DEFAULT_EXCHANGE,
            routing_key=self.stream.name,
            body=b"mark",
            message_id=self._turn,
            headers={PAYLOAD_ID: self._turn},
        )
        fault("before-model-published")
        self._ask("marked", self._transport.publish(mark, self._timeout_s))

    def _find(self) -> None:
        turn, looked_at = self._turn, 0

        def arrived(delivery: Delivery) -> None:
            nonlocal looked_at
            looked_at += 1
            if delivery.message_id == turn and delivery.offset is not None:
                self._put(StreamNews(self, turn, "found", delivery.offset))
            elif looked_at == MOST_LOOKED_AT:
                self._put(StreamNews(self, turn, "missed"))
            elif looked_at < MOST_LOOKED_AT:
                self._transport.ack(delivery)

        self._found_by_s = self._clock() + ANSWER_S
        self._transport.consume(self.stream.name, arrived, LOOK_PREFETCH, "last")

    def _send_chunks(self, offset: int) -> None:
        self._stop_looking()

        def done(outcome: ChunkedPayload | BaseException) -> None:
            if isinstance(outcome, BaseException):
                self._fail(outcome)
                return
            fault("model-published")
            self._end()
            on_done(Published(outcome, offset, digest))

        on_done, digest = self._on_done, self._digest
        self._sender = ChunkSender(
            self._transport,
            self.stream,
            payload_id=self._turn,
            task_id=self._turn,
            num_bytes=self._pieces.num_bytes,
            chunk_bytes=self._chunk_bytes,
            read=self._pieces.read,
            put=self._put,
            on_done=done,
        )
        self._sender.begin()

    def _stop_looking(self) -> None:
        if self._found_by_s != float("inf"):
            self._found_by_s = float("inf")
            self._transport.stop_consuming(self.stream.name)

    def _fail(self, error: BaseException) -> None:
        on_done = self._on_done
        self._end()
        on_done(error)

    def _end(self) -> None:
        self._stop_looking()
        if self._sender is not None:
            self._sender.cancel()
        self._turn, self._sender = "", None
        self._confirmed_by_s, self._confirmed = float("inf"), -1
        self._pieces = Pieces(())

    def _ask(self, what: Literal["declared", "deleted", "marked"], future: Future[Any]) -> None:
        turn = self._turn
        future.add_done_callback(lambda done: self._put(StreamNews(self, turn, what, error=done.exception())))
