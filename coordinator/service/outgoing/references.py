"""Decides which tasks refer to a model in the stream of models, and remembers the models that are there.

Rules
1. Tasks carry the same tensors if they have one base version, one form of the model, and the frozen part in one place.
   Such tasks refer to one model if there are LEAST_TASKS of them: they wait together, or so many were sent before, or
   the version before had so many. For the first version of this start, `concurrency` tells how many there will be.
2. Steps of a hidden state depend on what a participant holds. So the version before says nothing about them.
3. A small model, a participant whose hello does not name `reference`, and a participant that lost a model to which its
   last task referred: the task is whole. After n losses the next 2^(n-1) tasks of that participant are whole, so one
   that has no right to read the stream goes on as before.
4. A model that somebody did not find there is published again when it is wanted again. So is every model after a lost
   connection, because the broker may have lost the stream, and one that is about to leave the stream.
5. If a model cannot be published, the tasks that wait for it are whole. The next try comes after RETRY_S, and after
   twice the time with each further failure in a row.

Nothing here is durable, and nothing is decided that the core knows: the tensors are the same in each form.
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from itertools import islice

from fedmq.coordinator.decisions.commands import IssueTask
from fedmq.coordinator.service.outgoing.frozen import FrozenForm
from fedmq.coordinator.service.outgoing.model_stream import ModelStream, Published
from fedmq.schemas.chunks import Pieces
from fedmq.schemas.codec import encode_in_pieces
from fedmq.schemas.local.event_log import EventLog
from fedmq.schemas.messages import Model
from fedmq.schemas.parameters import Parameters
from fedmq.schemas.signing import tensors_digest

log = EventLog(__name__)

LEAST_TASKS = 4
RETRY_S, MOST_RETRY_S = 60.0, 3600.0
MOST_LOSSES = 8
"""Losses in a row after which a participant's number of whole tasks rises no more."""

Key = tuple[int, str, int, FrozenForm]
"""Tensors of tasks: base version, form, version that steps begin from, and the place of the frozen part."""


class References:
    """The references of one active coordinator's tasks. The loop's thread calls everything."""

    def __init__(
        self,
        stream: ModelStream,
        *,
        run_id: str,
        least_bytes: int,
        keep: int,
        concurrency: int,
        reads: Callable[[str], bool],
        on_published: Callable[[int, int], None] = lambda _version, _num_bytes: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`least_bytes`: smallest tensors that are published. `keep`: models that the stream keeps. `reads` tells if a
        participant's hello names `reference`. `on_published` gets the version and the bytes of each model."""
        self._stream = stream
        self._run_id = run_id
        self._least_bytes = least_bytes
        self._keep = max(1, keep // 2)
        self._expected = concurrency
        """Tasks that a version is expected to have."""
        self.reads = reads
        self._on_published = on_published
        self._clock = clock
        self._there: OrderedDict[Key, Published] = OrderedDict()
        """Models that are in the stream, oldest first."""
        self._version = -1
        self._tasks: Counter[Key] = Counter()
        """Tasks of the newest version that were sent, by their tensors."""
        self._last: dict[str, str] = {}
        """Participant -> id of the payload that its last task referred to."""
        self._losses: Counter[str] = Counter()
        self._whole: Counter[str] = Counter()
        """Participant -> number of its next tasks that are whole."""
        self._publishing = -1
        self._failures = 0
        """Publications that failed in a row."""
        self._not_before_s = float("-inf")

    @property
    def publishing(self) -> int | None:
        """Version of the model that is being published, for which tasks wait; None if there is none."""
        return self._publishing if self._stream.busy else None

    def wants(self, command: IssueTask, num_bytes: int, key: Key, waiting: Iterable[Key]) -> bool:
        """Return True if this task, whose tensors have so many bytes, is to refer to a model. `waiting`: the tensors of
        all tasks that wait, this one's too."""
        self._follow(command.base_version)
        name = command.participant_id
        if num_bytes < self._least_bytes or not self.reads(name) or self._whole[name]:
            return False
        if key in self._there:
            return True
        if self._clock() < self._not_before_s:
            return False
        if key[2] < 0 and self._expected >= LEAST_TASKS:
            return True
        wanted = max(0, LEAST_TASKS - self._tasks[key])
        return sum(1 for _ in islice((other for other in waiting if other == key), wanted)) >= wanted

    def model(self, key: Key) -> Published | None:
        """Return the model that tasks with these tensors refer to; None if it has to be published first."""
        return self._there.get(key)

    def publish(self, key: Key, tensors: Parameters, then: Callable[[], None]) -> None:
        """Publish a model, and call `then` once it is there, or cannot be."""
        version = self._publishing = key[0]
        digest = tensors_digest(tensors).hex()
        message = Model(run_id=self._run_id, base_version=version, digest=digest)
        pieces = Pieces(encode_in_pieces(message, tensors))

        def done(outcome: Published | BaseException) -> None:
            if isinstance(outcome, Published):
                log.debug("model_published", version=version, bytes=outcome.payload.num_bytes, offset=outcome.offset)
                self._failures = 0
                self._there[key] = outcome
                while len(self._there) > self._keep:
                    self._there.popitem(last=False)
                self._on_published(version, outcome.payload.num_bytes)
            else:
                wait_s = min(RETRY_S * 2**self._failures, MOST_RETRY_S)
                self._failures = min(self._failures + 1, 10)
                self._not_before_s = self._clock() + wait_s
                detail = f"tasks carry the model themselves for {wait_s:g} s: {outcome}"
                log.warning("model_not_published", version=version, detail=detail)
            then()

        self._stream.publish(pieces, digest, done)

    def sent(self, command: IssueTask, key: Key, model: Published | None) -> None:
        """Note that a task leaves, with a reference or whole."""
        self._follow(command.base_version)
        self._tasks[key] += 1
        name = command.participant_id
        self._last.pop(name, None)
        if model is not None:
            self._last[name] = model.payload.payload_id
        elif self._whole[name] > 1:
            self._whole[name] -= 1
        else:
            del self._whole[name]

    def _follow(self, version: int) -> None:
        """Begin to count the tasks of a newer version."""
        if version > self._version:
            if self._version >= 0:
                self._expected = self._tasks.total()
            self._version = version
            self._tasks.clear()

    def lost(self, participant_id: str) -> None:
        """Note that a participant did not find what its task named."""
        payload_id = self._last.pop(participant_id, None)
        if payload_id is None:
            return
        self._losses[participant_id] = min(self._losses[participant_id] + 1, MOST_LOSSES)
        self._whole[participant_id] = 2 ** (self._losses[participant_id] - 1)
        for key in [key for key, model in self._there.items() if model.payload.payload_id == payload_id]:
            del self._there[key]

    def found(self, participant_id: str) -> None:
        """Note that a participant has sent an update: it found the model of its task, if that was a reference."""
        if participant_id in self._last:
            self._losses.pop(participant_id, None)

    def doubt(self) -> None:
        """Publish all models again when they are next wanted: the broker may have lost them."""
        self._there.clear()

    def cancel(self) -> None:
        """Publish no more."""
        self._stream.cancel()

    def delete(self) -> None:
        """Delete the stream with all models: the run is over."""
        self._stream.delete()

    def look(self) -> None:
        """Give a publication up that hangs. Call it every few seconds."""
        self._stream.look()
