"""A codec at work on one task's update, and what the participant keeps of it for the next one.

Error feedback (Seide et al. 2014; Karimireddy et al. 2019, "Error Feedback Fixes SignSGD", algorithm 2)

    p = Δ + e        send C(p)        e ← p - C(p) once the update is accepted

e is flat, beside the names of its tensors, because a model may grow within a run: e of a tensor that was frozen until
now is 0. PowerSGD's matrices only begin its iteration, so they need no names.

e is 0 at first, and after a lost disk. If the update is discarded, e stays as it was, and Δ is gone. So the sum of what
was accepted, and e, is the sum of the accepted updates' Δ.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fedmq.participant.memory import Memory
from fedmq.schemas.codecs.checked import PLACES, RESIDUAL
from fedmq.schemas.codecs.codec import Codec, Places
from fedmq.schemas.codecs.known import codec_of
from fedmq.schemas.codecs.wire import Sent, Wire
from fedmq.schemas.errors import NotFinite, Overflow, TrainerError
from fedmq.schemas.local.event_log import EventLog
from fedmq.schemas.local.files import parse_json
from fedmq.schemas.messages import Reply, Uplink
from fedmq.schemas.methods import memory_kind, update_spec
from fedmq.schemas.parameters import Parameters
from fedmq.schemas.tensors import MOST_MAGNITUDE, ModelSpec, check_magnitudes

log = EventLog(__name__)


class Coder:
    """One update's way through the codec: call `code` once, then read the rest."""

    def __init__(self, wire: Wire, seed: int, memory: Memory | None, uplink: Uplink, *, remembers: bool) -> None:
        """`memory` is the codec's; None at first, after a lost disk, and if the method has a memory of its own."""
        self._wire = wire
        self._seed = seed
        self._feedback = remembers and uplink.error_feedback
        self.remembers = remembers
        self._residual, self._warm = _split(memory, wire.places)
        self._sent: Sent | None = None

    @property
    def name(self) -> str:
        return self._wire.codec.name

    @property
    def coded(self) -> Parameters:
        """The update's tensors as they travel."""
        return self._done.tensors

    def code(self, tensors: Parameters) -> Parameters:
        """Encode an update's tensors, which are finite. Return what the receiver decodes."""
        residual = self._residual if self._feedback else None
        self._sent = self._wire.encode(tensors, self._seed, residual, self._warm)
        return self._sent.received

    def next_memory(self) -> Mapping[str, npt.NDArray[Any]] | None:
        """Return what the participant keeps once this update is accepted; None if the codec keeps nothing."""
        if not self.remembers:
            return None
        kept = dict(self._done.warm)
        if self._feedback:
            kept[RESIDUAL] = self._done.residual
            kept[PLACES] = _written(self._wire.places)
        return kept

    @property
    def is_done(self) -> bool:
        """True once `code` was called."""
        return self._sent is not None

    @property
    def _done(self) -> Sent:
        assert self._sent is not None, "call code() first"
        return self._sent


def coder_of(  # noqa: PLR0917
    uplink: Uplink, reply: Reply, model: ModelSpec, seed: int, memory: Memory | None, own: Codec | None = None
) -> Coder:
    """Return the coder of one task. Raises TrainerError if this participant does not have the codec."""
    codec = codec_of(uplink, own)
    if codec is None:
        raise TrainerError(
            f"the coordinator asks for updates in the codec {uplink.codec!r}, which this participant does not have: "
            "give it the coordinator's federation file, and the codec's file beside it"
        )
    wire = Wire(codec, uplink.lossless == "zstd", update_spec(reply, model))
    soft = memory_kind(reply, uplink) == "soft"
    return Coder(wire, seed, memory if soft else None, uplink, remembers=soft)


def _split(memory: Memory | None, places: Places) -> tuple[npt.NDArray[Any] | None, dict[str, npt.NDArray[Any]]]:
    """Return e and the codec's own arrays; e is None if there is none, or if it is of another model.

    All are left out if one of them is not finite or far too large. Each update that was made from it would be refused,
    so it would never go away.
    """
    if memory is None:
        return None, {}
    try:
        check_magnitudes(Parameters(memory.tensors), MOST_MAGNITUDE / 2)
    except (NotFinite, Overflow) as error:
        log.warning("memory_begun_anew", mark=memory.mark, why=f"what the codec kept cannot be used: {error}")
        return None, {}
    warm = dict(memory.tensors)
    residual, written = warm.pop(RESIDUAL, None), warm.pop(PLACES, None)
    if residual is None or residual.ndim != 1 or residual.dtype.kind != "f":
        return None, warm
    if written is None or np.array_equal(written, _written(places)):
        return (residual if residual.shape == (places.size,) else None), warm
    return _moved(residual, written, places), warm


def _written(places: Places) -> npt.NDArray[np.uint8]:
    """Return the names and sizes of the coded tensors, in the form in which the memory has them."""
    pairs = zip(places.coded, places.slices, strict=True)
    sizes = [[tensor.name, part.stop - part.start] for tensor, (part, _) in pairs]
    return np.frombuffer(json.dumps(sizes).encode(), np.uint8)


def _moved(residual: npt.NDArray[Any], written: npt.NDArray[Any], places: Places) -> npt.NDArray[Any] | None:
    """Return e in other places: that of tensors that were not there is 0. None if none of its tensors is there."""
    found, end = {}, 0
    try:
        for name, size in parse_json(written.tobytes()):
            found[name] = residual[end : end + size]
            end += size
        if end != residual.size:
            raise ValueError(f"its tensors have {end} elements, and it has {residual.size}")
    except (TypeError, ValueError) as error:
        log.warning("residual_not_read", error=error, detail="error feedback begins at zero")
        return None
    made, known = np.zeros(places.size, residual.dtype), 0
    for tensor, (part, _) in zip(places.coded, places.slices, strict=True):
        if tensor.name in found and found[tensor.name].shape == (part.stop - part.start,):
            made[part] = found[tensor.name]
            known += 1
    return made if known else None
