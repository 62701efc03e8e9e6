"""Versions that are distilled: the time between a buffer that is full and its version (strategies.protocol.Distils).

Rules
 1. A buffer whose version is due asks for its distillation (Distil) in place of making the version. Until the answer
    it stays as it is: the caller holds updates back (`Core.distilling`), no task goes out, nothing is evaluated and no
    limit is looked at. So the answer's step goes on as if the version had been made at once, and the staleness of each
    update is that of a run that distils in no time. Leases and absences pass as always.
 2. The full buffer is all that is to be known. Nothing about the question is in a checkpoint: a core that is restored
    asks again in its first step, with the same seed and the same models. An answer to the first question is lost.
 3. The answer is a claim. It counts if it has the names, shapes and dtypes of the model's floating tensors, finite
    numbers of 1e15 at most, and came in time. An answer to another question is ignored.
 4. If there is no answer that counts, the version is the plain mean, and NewVersion says why. So it is if there is no
    model to distil from, and if the run is stopped meanwhile.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Protocol

from fedmq.coordinator.decisions.commands import Distil
from fedmq.coordinator.decisions.events import DistilFailed, Distilled
from fedmq.coordinator.strategies.protocol import Distils, Ensemble
from fedmq.schemas.errors import FedmqError, in_short
from fedmq.schemas.frozen import Frozen
from fedmq.schemas.parameters import Parameters
from fedmq.schemas.tensors import averaged_spec, check_magnitudes, check_spec, spec_of

MOST_REASON_CHARS = 500
"""Characters of the reason for a plain version that the ledger keeps."""


class Distilling:
    """The question that is open, if there is one."""

    def __init__(self, strategy: Distils, run_seed: int) -> None:
        self._timeout_s = strategy.distil_timeout_s
        self._run_seed = run_seed
        self.asked: int | None = None
        """Version that was asked for; None if no answer is waited for."""
        self.by_timeout = False
        """True if the buffer's timeout makes the version."""
        self._due_s = 0.0

    def ask(self, version: int, ensemble: Ensemble, now: float, *, by_timeout: bool) -> Distil:
        """Ask for a version at run time `now` (seconds)."""
        self.asked, self.by_timeout, self._due_s = version, by_timeout, now + self._timeout_s
        return Distil(version, distil_seed(self._run_seed, version), ensemble)

    def forget(self) -> None:
        """Wait for no answer any more."""
        self.asked = None

    def due_s(self) -> float | None:
        """Run time (seconds) by which the answer must have come; None if none is waited for."""
        return None if self.asked is None else self._due_s

    def too_late(self, now: float) -> str | None:
        """Return why the version is made without an answer by now; None as long as it is waited for."""
        if self.asked is None or now < self._due_s:
            return None
        return f"there was no answer within distil_timeout_s = {self._timeout_s:g}"

    def judged(self, answer: Distilled | DistilFailed, parameters: Parameters) -> tuple[Parameters | None, str]:
        """Return the tensors of an answer and "", or None and why it does not count."""
        if isinstance(answer, DistilFailed):
            return None, bounded(answer.reason) or "no reason was given"
        why = mistake_in(answer.tensors, parameters)
        return (None, bounded(why)) if why else (answer.tensors, "")


class Distiller(Protocol):
    """Distils versions. Its maker owns and closes it; the service submits and gives up."""

    def submit(
        self, order: Distil, on_result: Callable[[Distilled | DistilFailed], None], part: Frozen | None = None
    ) -> None:
        """Distil this version soon, without blocking the caller. `part` is the model's frozen part.

        `on_result` is called once, from any thread; not at all if the order was given up.
        """

    def give_up(self) -> None:
        """End what is at work: nobody waits for its answer."""


def mistake_in(tensors: Mapping[str, object], parameters: Parameters) -> str:
    """Return why these are not the floating tensors of a next version; "" if they are."""
    try:
        if not isinstance(tensors, Parameters):
            return f"it gave {type(tensors).__name__}, expected tensors by name"
        check_spec(tensors, averaged_spec(spec_of(parameters)))
        check_magnitudes(tensors)
    except FedmqError as error:
        return in_short(error)
    return ""


def bounded(reason: str) -> str:
    """Return a reason in one line that the ledger keeps."""
    line = " ".join(reason.split())
    return line if len(line) <= MOST_REASON_CHARS else f"{line[: MOST_REASON_CHARS - 1]}…"


def distil_seed(run_seed: int, version: int) -> int:
    """Return the seed of a version's distillation, in [0, 2^63)."""
    digest = hashlib.blake2b(f"distil-{run_seed}-{version}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
