"""Sends one payload in chunks into a queue of its own, a window at a time; both roles use it.

Rules
1. The queue is declared first. Its depth tells if the chunks that were confirmed before (`digests`) are still there. If
   it holds fewer, it is deleted and everything is sent from the start. If it holds more, the further chunks are sent
   again, and the receiver knows them by their index.
2. At most `WINDOW` chunks are unconfirmed, so RAM holds no more of the payload.
3. When all chunks are confirmed the depth is looked at once more. Only then may the payload be announced. If chunks are
   gone, because a broker lost the queue, all are sent again, `MOST_TRIES` times in all.
4. A lost connection ends nothing: the transport declares and sends again by itself. When the sending is over, the
   transport forgets the queue. Else it would declare the queues of all payloads that were ever sent after a reconnect,
   and hide the loss of one.
5. A stream's depth says nothing, and it keeps what others have written. So nothing there is counted, deleted or sent
   again: what is confirmed may be announced.

Everything happens on the owner's thread. The transport's answers come to `put` as News, and the owner gives them to
`on_news`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Literal

from fedmq.broker_config.topology import Queue
from fedmq.broker_config.transport import Message, Transport
from fedmq.schemas import chunks
from fedmq.schemas.errors import PublishError, TopologyConflict
from fedmq.schemas.messages import ChunkedPayload

WINDOW = 8
MOST_TRIES = 3
ANSWER_S = 3600.0
"""Time-out of one request. A slow link may take minutes for a window, and a broker may be away for hours: only the
owner gives up."""


@dataclass(frozen=True, slots=True)
class News:
    """The transport's answer to a request of `sender`."""

    sender: ChunkSender
    turn: int
    what: Literal["declared", "deleted", "sent", "looked"]
    count: int
    """Number of messages in the queue; for "sent" the chunk's index."""
    error: BaseException | None


class ChunkSender:
    """One payload on its way. `read(start, length)` returns bytes of the payload; its OSError ends the sending."""

    def __init__(
        self,
        transport: Transport,
        queue: Queue,
        *,
        payload_id: str,
        task_id: str,
        num_bytes: int,
        chunk_bytes: int,
        read: Callable[[int, int], bytes],
        put: Callable[[News], None],
        on_done: Callable[[ChunkedPayload | BaseException], None],
        on_confirmed: Callable[[Sequence[bytes]], None] = lambda _digests: None,
        digests: Sequence[bytes] = (),
    ) -> None:
        """`digests`: those of the chunks that were confirmed before. `on_confirmed` gets the digests of all chunks that
        are confirmed without a gap, after each window of them. An empty list says that the sending starts again."""
        self.queue = queue
        self.sent = 0
        """Number of chunks published, repeats included."""
        self._transport = transport
        self._payload_id = payload_id
        self._task_id = task_id
        self._num_bytes = num_bytes
        self._chunk_bytes = chunk_bytes
        self._count = -(-num_bytes // chunk_bytes)
        self._read = read
        self._put = put
        self._on_done = on_done
        self._on_confirmed = on_confirmed
        self._digests = list(digests)[: self._count]
        self._confirmed: set[int] = set(range(len(self._digests)))
        self._next = self._told = self._without_gap = len(self._digests)
        self._turn = 0
        self._tries = 1
        self._over = False

    @property
    def confirmed(self) -> int:
        """Number of chunks that the broker has confirmed."""
        return len(self._confirmed)

    def begin(self) -> None:
        self._ask("declared", self._transport.declare(self.queue, ANSWER_S))

    def cancel(self) -> None:
        """Send no more. The queue keeps its chunks; `on_done` is not called any more."""
        self._over = True

    def on_news(self, news: News) -> None:
        """Go on after the transport's answer."""
        if self._over or news.turn != self._turn:
            return
        if news.error is not None:
            ours = self.queue.kind != "stream"
            if (
                ours
                and isinstance(news.error, TopologyConflict)
                and news.what == "declared"
                and self._tries < MOST_TRIES
            ):
                self._start_over()  # an earlier process with other settings left it
            else:
                self._finish(news.error)
        elif news.what == "deleted":
            self.begin()
        elif news.what == "sent":
            self._on_sent(news.count)
        elif news.what == "declared":
            if self.queue.kind == "stream":
                self._pump()
            elif news.count < len(self._confirmed) or (news.count and not self._confirmed):
                self._start_over()
            elif len(self._confirmed) == self._count:
                self._announce()
            else:
                self._pump()
        elif news.count >= self._count:
            self._announce()
        elif self._tries < MOST_TRIES:
            self._start_over()
        else:
            self._finish(
                PublishError(f"queue {self.queue.name!r} lost chunks {MOST_TRIES} times: see the broker's log")
            )

    def _start_over(self) -> None:
        self._tries += 1
        self._turn += 1
        self._digests, self._confirmed = [], set()
        self._next = self._told = self._without_gap = 0
        self._on_confirmed(())
        self._ask("deleted", self._transport.delete_queue(self.queue.name, ANSWER_S))

    def _pump(self) -> None:
        while self._next < self._count and self._next - len(self._confirmed) < WINDOW:
            index = self._next
            start = index * self._chunk_bytes
            try:
                body = self._read(start, min(self._chunk_bytes, self._num_bytes - start))
            except OSError as error:
                self._finish(error)
                return
            digest = chunks.digest_of(body)
            self._digests.append(digest)
            self._next += 1
            self.sent += 1
            message = Message(
                exchange=self.queue.exchange,
                routing_key=self.queue.routing_key,
                body=body,
                message_id=f"{self._payload_id}.{index}",
                correlation_id=self._task_id,
                headers=chunks.headers(self._payload_id, index, digest),
            )
            self._ask("sent", self._transport.publish(message, ANSWER_S), index)

    def _on_sent(self, index: int) -> None:
        self._confirmed.add(index)
        while self._without_gap in self._confirmed:
            self._without_gap += 1
        whole = len(self._confirmed) == self._count
        if whole or self._without_gap - self._told >= WINDOW:
            self._told = self._without_gap
            self._on_confirmed(self._digests[: self._without_gap])
        if whole and self.queue.kind == "stream":
            self._announce()
        elif whole:
            self._ask("looked", self._transport.declare(self.queue, ANSWER_S))
        else:
            self._pump()

    def _announce(self) -> None:
        self._finish(
            ChunkedPayload(
                payload_id=self._payload_id,
                num_bytes=self._num_bytes,
                chunk_bytes=self._chunk_bytes,
                count=self._count,
                digest=chunks.digest_of_all(self._digests),
            )
        )

    def _finish(self, outcome: ChunkedPayload | BaseException) -> None:
        self._over = True
        self._transport.forget_queue(self.queue.name)
        self._on_done(outcome)

    def _ask(self, what: Any, future: Future[Any], index: int = 0) -> None:
        turn = self._turn

        def answered(done: Future[Any]) -> None:
            error = done.exception()
            count = index if what == "sent" or error is not None else done.result()
            self._put(News(self, turn, what, count, error))

        future.add_done_callback(answered)
