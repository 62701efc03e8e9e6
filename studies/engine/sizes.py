"""Bytes of a study's tasks and updates, which grow at the versions at which frozen tensors begin to move."""

from __future__ import annotations

from typing import NamedTuple

from fedmq.coordinator.decisions.core import Core
from fedmq.schemas.codecs.known import UplinkCodec
from fedmq.schemas.frozen import with_beside
from fedmq.schemas.messages import UNFROZEN, Downlink, Reply, TrainingConfig
from fedmq.schemas.tensors import ModelSpec, spec_of
from fedmq.studies.engine.message_sizes import task_bytes, update_bytes


class Sizes(NamedTuple):
    """Sizes of the messages of some versions in a row."""

    payload_bytes: tuple[int, int]
    """Bytes of the tensors that take a transfer's time, (down, up), without the frozen part."""
    down_bytes: int
    """Bytes of a task, as they are counted."""
    first_bytes: int
    """Bytes of a task that brings the frozen part."""
    frozen_bytes: int
    """Bytes of the frozen part's tensors."""
    up_bytes: int
    """Bytes of a plain update, as they are counted."""


class MessageSizes:
    """The sizes of one run's messages. Those of a version are asked for first while it is the core's newest."""

    def __init__(self, core: Core, reply: Reply, training: TrainingConfig, uplink: UplinkCodec | None) -> None:
        self._core, self._reply, self._training, self._uplink = core, reply, training, uplink
        self._order = None if uplink is None else uplink.order
        self._known: dict[int, Sizes] = {}

    def of(self, version: int) -> Sizes:
        """Return the sizes of a task of this version, and of its update."""
        era = 0 if self._core.frozen is None else self._core.frozen.era(version)
        if era not in self._known:
            self._known[era] = self._made(version)
        return self._known[era]

    def update(self, version: int, coded: ModelSpec | None, *, memory: bool, next_memory: bool) -> int:
        """Return the bytes of an update of a task of this version, with the marks of its memories if it has any.

        `coded` are its tensors in the run's codec; None if they travel plain.
        """
        if coded is None and not memory and not next_memory:
            return self.of(version).up_bytes
        codec = None if coded is None or self._order is None else self._order.codec
        spec = self._core.spec_of_update(version) if coded is None else coded
        return update_bytes(spec, self._reply, codec, memory=memory, next_memory=next_memory)

    def coded_task(self, version: int, tensors: ModelSpec, training: TrainingConfig, downlink: Downlink) -> int:
        """Return the bytes of a task whose model travels in another form."""
        part = None if self._core.frozen is None else self._core.frozen.at(version)
        return task_bytes(tensors, self._reply, training, self._order, downlink, frozen=part)

    def _made(self, version: int) -> Sizes:
        core, parts = self._core, self._core.frozen
        tensors, part = core.task_tensors, None if parts is None else parts.at(version)
        spec = core.spec_of_update(version)
        up = sum(t.num_bytes for t in spec) if self._uplink is None else self._uplink.wire(spec).usual_bytes
        training = self._training
        if parts is not None and (at := parts.unfrozen_at(version)) is not None:
            training = training.model_copy(update={"extra": {**training.extra, UNFROZEN: at}})
        down = task_bytes(spec_of(tensors), self._reply, training, self._order, frozen=part)
        first = down
        if part is not None:
            first = task_bytes(spec_of(with_beside(tensors, part)), self._reply, training, self._order, frozen=part)
        return Sizes(
            payload_bytes=(tensors.num_bytes, up),
            down_bytes=down,
            first_bytes=first,
            frozen_bytes=0 if part is None else part.num_bytes,
            up_bytes=update_bytes(spec, self._reply),
        )
