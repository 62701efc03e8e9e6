"""The coordinator's end of a distillation: the ensemble goes to the model child as files, and a version comes back.

Rules
 1. One distillation is at work at a time, on a thread of its own; `submit` never blocks. It shares the child with the
    central evaluation, so it waits for one that is under way.
 2. `on_result` is called once for each order, whatever happens: the child fails, ends, or writes what is no version.
    Only an order that was given up has no answer.
 3. Giving up ends the child, unless nothing is at work. The next question starts another one.
 4. What the child wrote is read only as far as a version can be long.
 5. Each order has a folder of its own, and removes those of others. A child that outlives its coordinator for a while
    can write nothing that another one's order would read.
"""

from __future__ import annotations

import secrets
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from fedmq.app.parameter_files import read_parameters, write_parameters
from fedmq.coordinator.decisions.commands import Distil
from fedmq.coordinator.decisions.events import DistilFailed, Distilled
from fedmq.schemas.frozen import Frozen
from fedmq.schemas.local.files import make_folder
from fedmq.schemas.parameters import Parameters
from fedmq.schemas.redaction import redacted

MOST_HEADER_BYTES = 16 * 1024 * 1024
OnAnswer = Callable[[Distilled | DistilFailed], None]


class Child(Protocol):
    """The part of a ModelChild that is needed here."""

    def distil(self, order: dict[str, object]) -> None: ...
    def kill(self) -> None: ...


class ModelDistiller:
    """Distils versions in the model child (coordinator.decisions.versions.distilling.Distiller)."""

    def __init__(self, child: Child, folder: Path) -> None:
        """`folder` takes the files of the order that is at work."""
        self._child = child
        self._folder = folder
        self._lock = threading.Lock()
        self._turn = threading.Lock()
        self._current = 0
        """Number of the newest order; one that was given up has an older number."""
        self._asking: int | None = None
        """Number of the order that the child has."""

    def submit(self, order: Distil, on_result: OnAnswer, part: Frozen | None = None) -> None:
        """Have a version distilled. `part` is the model's frozen part, which the order's models lack."""
        with self._lock:
            self._current += 1
            number = self._current
        threading.Thread(
            target=self._work, args=(number, order, on_result, part), name=f"distil-{order.version}", daemon=True
        ).start()

    def give_up(self) -> None:
        """Wait for no answer any more, and end the child if it is at work on one."""
        with self._lock:
            at_work = self._asking is not None and self._asking == self._current
            self._current += 1
        if at_work:
            self._child.kill()

    def _work(self, number: int, order: Distil, on_result: OnAnswer, part: Frozen | None) -> None:
        with self._turn:
            with self._lock:
                if number != self._current:
                    return
                self._asking = number
            try:
                answer = self._answer(order, part)
            finally:
                with self._lock:
                    self._asking = None
        if number == self._current:
            on_result(answer)

    def _answer(self, order: Distil, part: Frozen | None) -> Distilled | DistilFailed:
        try:
            return Distilled(order.version, self._distilled(order, part))
        except Exception as error:  # noqa: BLE001 (the version is the plain mean, and the ledger has the error)
            return DistilFailed(order.version, redacted(f"{type(error).__name__}: {error}"))

    def _distilled(self, order: Distil, part: Frozen | None) -> Parameters:
        asked, folder = order.ensemble, self._folder / secrets.token_hex(8)
        shutil.rmtree(self._folder, ignore_errors=True)
        for place in (self._folder, folder):
            make_folder(place)
        target = folder / "version.safetensors"
        try:
            start = _written(folder, "start", asked.start)
            models = [_written(folder, f"model-{place}", model) for place, model in enumerate(asked.models)]
            frozen = None if part is None else _written(folder, "frozen", part.tensors)
            self._child.distil({
                "distil": models, "weights": list(asked.weights), "start": start, "part": frozen, "seed": order.seed,
                "version": order.version, "to": str(target),
            })  # fmt: skip
            return read_parameters(target, most_bytes=asked.start.num_bytes + MOST_HEADER_BYTES)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _written(folder: Path, name: str, parameters: Parameters) -> str:
    path = folder / f"{name}.safetensors"
    write_parameters(path, parameters)
    return str(path)
