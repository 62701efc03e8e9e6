"""Cells on all cores: a pool of processes. Arms drive it: they ask for cells, and may ask for more when these are done.

Rules
 1. An arm is a generator. It yields a batch of cells, and gets their results in order when all of them are there.
 2. A cell whose file is there is not run. The process that runs a cell changes no byte of it.
 3. Ctrl-C, an error, or the end of the study's own process ends the processes at once. The files of finished cells
    stay.
 4. Each process shows the progress of its cell as one number in shared memory. There is no lock that a killed process
    could keep.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

from fedmq.schemas.errors import ConfigError, FedmqError, InputError, StrategyError
from fedmq.studies.problems.keras import path_choice as choices
from fedmq.studies.sweep.cell import Cell, CellResult, check_cell, read_cell, run_cell

POLL_S = 0.2
REPORT_EVERY_S = 0.05
MOST_PLACES = 2
"""Most cells that a mistake names."""
LOG = "processes.log"
"""File in the results' folder with what the processes wrote to their standard error."""


@dataclass(frozen=True)
class Batch:
    """The cells that an arm asks for."""

    cells: Sequence[Cell]
    later: int = 0
    """Least number of cells that will follow."""
    judged_by: Sequence[str] = ()
    """Metrics that the cells must measure (studies.sweep.cell.check_cell)."""


def prepare_folder(folder: Path) -> None:
    """Make the results' folder. Raises ConfigError, before the first cell, if it cannot be written to."""
    try:
        for place in (folder, folder / "cells"):
            place.mkdir(parents=True, exist_ok=True)
            probe = place / f"probe.{os.getpid()}.part"
            probe.touch()
            probe.unlink()
    except OSError as e:
        raise ConfigError(
            f"the results cannot be written to {folder}: {e.strerror or e}. Name another folder (out, or --out)"
        ) from None


Arm = Generator[Batch, list[CellResult], None]
OnCell = Callable[[CellResult, int, int], None]
"""Called for each cell that was run, with the number of finished cells, and of all cells as far as known."""
OnProgress = Callable[[float, int], None]
"""Called a few times a second with the number of finished cells, parts of running ones included, and of all cells as
far as known."""


@dataclass(eq=False)
class _Running:
    """An arm, with the batch that it asked for last and the results so far."""

    arm: Arm
    batch: Batch = field(default_factory=lambda: Batch(()))
    results: list[CellResult | None] = field(default_factory=list)

    @property
    def missing(self) -> bool:
        return any(result is None for result in self.results)


class CellPool:
    """A pool of processes, as a context manager.

    Processes start with the first cell that has to be run. They share `memory_limit_bytes`.
    """

    def __init__(self, folder: Path, workers: int, memory_limit_bytes: int) -> None:
        self._folder, self._workers = folder, workers
        self._limit_bytes = memory_limit_bytes // workers
        context = multiprocessing.get_context("spawn")
        self._parts = context.RawArray("d", workers)
        self._next_slot = context.Value("i", 0)
        self._context = context
        self._pool: ProcessPoolExecutor | None = None
        self._queue: deque[tuple[_Running, int]] = deque()
        self._at: dict[Future[CellResult], tuple[_Running, int]] = {}
        self._done = self._later = 0

    def __enter__(self) -> CellPool:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if self._pool is None:
            return
        if error is not None:
            for process in list(
                (self._pool._processes or {}).values()
            ):  # the pool's own shutdown waits for running cells
                process.terminate()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def drive(self, arms: Sequence[Arm], on_cell: OnCell | None = None, on_progress: OnProgress | None = None) -> None:
        """Run all arms to their ends.

        Raises ConfigError with the mistakes of all of them, before anything is trained.
        """
        for arm in arms:
            self._advance(_Running(arm), None)
        self._check()
        self._submit()
        while self._at:
            finished, _ = wait(self._at, timeout=POLL_S, return_when=FIRST_COMPLETED)
            for future in finished:
                running, place = self._at.pop(future)
                result = running.results[place] = self._result(future)
                self._done += 1
                if not running.missing:
                    self._advance(running, [r for r in running.results if r is not None])
                if on_cell is not None:
                    on_cell(result, self._done, self._total())
            self._submit()
            if on_progress is not None:
                on_progress(self._done + sum(self._parts), self._total())

    def _check(self) -> None:
        """Check the first cell that each arm has to run. It stands for the arm's other cells."""
        firsts = {id(running): (running.batch, place) for running, place in reversed(self._queue)}
        checks = [
            (cell := batch.cells[place], self._processes().submit(_check, cell, self._limit_bytes, batch.judged_by))
            for batch, place in reversed(firsts.values())
        ]
        mistakes = [(cell, str(e)) for cell, future in checks if isinstance(e := future.exception(), InputError)]
        if mistakes:
            raise ConfigError("\n  ".join(["the study cannot be run:", *_by_text(mistakes)]))
        for _, future in checks:
            self._result(future)

    def _result(self, future: Future[Any]) -> Any:
        try:
            return future.result()
        except BrokenProcessPool:
            raise FedmqError(
                f"a process that runs cells ended by itself: killed, or out of memory? {self._folder / LOG} may say "
                "more. Finished cells are kept; the same command goes on. Take fewer workers if memory is short"
            ) from None

    def _total(self) -> int:
        return self._done + len(self._at) + len(self._queue) + self._later

    def _advance(self, running: _Running, results: list[CellResult] | None) -> None:
        """Give the arm results until it asks for a cell that has to be run, or ends."""
        while True:
            self._later -= running.batch.later
            try:
                running.batch = next(running.arm) if results is None else running.arm.send(results)
            except StopIteration:
                return
            self._later += running.batch.later
            running.results = [read_cell(self._folder, cell) for cell in running.batch.cells]
            self._done += sum(result is not None for result in running.results)
            self._queue += [(running, i) for i, result in enumerate(running.results) if result is None]
            if running.missing:
                return
            results = [result for result in running.results if result is not None]

    def _submit(self) -> None:
        """Hand out only cells that run soon, so that arms that go on later do not wait behind the whole grid."""
        while self._queue and len(self._at) < 2 * self._workers:
            running, place = self._queue.popleft()
            self._at[self._processes().submit(_work, self._folder, running.batch.cells[place])] = (running, place)

    def _processes(self) -> ProcessPoolExecutor:
        if self._pool is None:
            self._pool = ProcessPoolExecutor(
                self._workers,
                mp_context=self._context,
                initializer=_start_worker,
                initargs=(self._parts, self._next_slot, self._folder),
            )
        return self._pool


def _by_text(mistakes: Sequence[tuple[Cell, str]]) -> Iterator[str]:
    """Yield each mistake once, with the cells that have it: many strategies and populations may share one."""
    where: dict[str, list[str]] = {}
    for cell, said in mistakes:
        text = said
        for place in (f"{cell.label} on {cell.population.name}", f", seed {cell.seed}", ": "):
            text = text.removeprefix(place)
        where.setdefault(text, []).append(f"{cell.label.partition(' [')[0]} on {cell.population.name}")
    for text, places in where.items():
        more = len(places) - MOST_PLACES
        yield f"{', '.join(places[:MOST_PLACES])}{f' and {more} more' if more > 0 else ''}: {text}"


@contextmanager
def single_threaded_children() -> Iterator[None]:
    """Give each child process one thread. Cells fill the cores, and the order of sums cannot depend on their number."""
    threads = (
        "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "FEDMQ_TF_THREADS", "TF_NUM_INTRAOP_THREADS",
        "TF_NUM_INTEROP_THREADS",
    )  # fmt: skip
    environment = dict.fromkeys(threads, "1")
    environment["TF_FORCE_GPU_ALLOW_GROWTH"] = "true"  # cells share a GPU's memory
    environment["TF_ENABLE_ONEDNN_OPTS"] = os.environ.get("TF_ENABLE_ONEDNN_OPTS", "0")  # as in a deployment
    environment["PYTHONSAFEPATH"] = "1"  # so that multiprocessing does not import a user's queue.py
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


# The code below runs in the child processes.

_parts: Any = None
_slot = 0


def _start_worker(parts: Any, next_slot: Synchronized[int], folder: Path) -> None:
    """Set up a child process.

    It ignores Ctrl-C, which reaches all processes of a terminal: the study's own process ends the others. What
    libraries write to the standard error goes to a file, and TensorFlow writes much. What matters comes back as an
    exception.
    """
    global _parts, _slot  # noqa: PLW0603 - what a process has for its whole life
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.pop("PYTHONSAFEPATH", None)  # processes that the app starts are its own
    target = os.open(folder / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(target, 2)
    os.close(target)
    with next_slot.get_lock():
        _slot = next_slot.value % len(parts)
        next_slot.value += 1
    _parts = parts
    choices.keep_in(folder)
    threading.Thread(target=_leave_with_the_study, daemon=True).start()


def _leave_with_the_study() -> None:
    """End this process with the study's own. A study that is killed ends no child: each would wait for ever."""
    study = multiprocessing.parent_process()
    if study is not None:
        study.join()
        os._exit(1)


@contextmanager
def _in_a_line(cell: Cell, kind: type[FedmqError]) -> Iterator[None]:
    """Turn an unexpected error into one line with what happened and where, and put the traceback into the log.

    Such an error mostly comes from a problem, a strategy or an app. The study's own process may not know its class.
    """
    where = f"{cell.label} on {cell.population.name}, seed {cell.seed}"
    try:
        yield
    except StrategyError as e:
        traceback.print_exc()
        raise StrategyError(f"{where}: {e}; {LOG} in the results' folder has the traceback") from None
    except FedmqError:
        raise
    except (Exception, SystemExit) as e:  # noqa: BLE001 - the user's code may raise anything
        traceback.print_exc()
        at = traceback.extract_tb(e.__traceback__)[-1]
        what = " ".join(str(e).split())[:400]
        raise kind(
            f"{where}: {type(e).__name__}: {what} ({Path(at.filename).name}, line {at.lineno}: {at.line}); "
            f"{LOG} in the results' folder has the traceback"
        ) from None


def _check(cell: Cell, limit_bytes: int, judged_by: Sequence[str]) -> None:
    with _in_a_line(cell, InputError):
        check_cell(cell, limit_bytes, judged_by)


def _work(folder: Path, cell: Cell) -> CellResult:
    said_s = 0.0

    def on_progress(part: float) -> None:
        nonlocal said_s
        now_s = time.monotonic()
        if now_s - said_s >= REPORT_EVERY_S:
            said_s = now_s
            _parts[_slot] = min(part, 1.0)

    try:
        with _in_a_line(cell, FedmqError):
            return run_cell(folder, cell, on_progress)
    finally:
        _parts[_slot] = 0.0


__all__ = ["Arm", "Batch", "CellPool", "OnCell", "OnProgress", "prepare_folder", "single_threaded_children"]
