"""The participant's end of fedmq.app.trainer_worker: the app's trainer, in a process that leaves when it is idle.

TensorFlow is never imported into the participant's own process.

Rules
1. The first process starts with the participant, which tells the number of its examples in its hello. An app that
   cannot be loaded ends the participant then, as a mistake of the user's.
2. A process leaves `keep_s` after the last task, or after the hello. The next task starts another one.
3. A process that ends by itself costs its task alone. So does an app that cannot be loaded any more.
4. A training that is cancelled has CANCEL_S to stop. Then its process is killed.
5. The app's `conditions` are asked in the same process. If it has left, another one is started that loads the app's
   file alone, and builds no trainer.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fedmq.app.channel import Groups
from fedmq.app.worker_life import Answer, WorkerEnded, WorkerLife
from fedmq.participant.trainer import TrainerElsewhere, TrainResult
from fedmq.schemas.errors import AppError, MissingExtra, TrainerError
from fedmq.schemas.local.allocator import give_back, one_place_for_threads
from fedmq.schemas.local.event_log import EventLog
from fedmq.schemas.messages import TrainingConfig
from fedmq.schemas.parameters import Parameters

log = EventLog(__name__)

CANCEL_S = 4.0
"""Time that a training has to stop after it was asked to: less than participant.training.thread.JOIN_S."""
CONDITIONS_S = 60.0
"""Time for the app's `conditions`, the load of the app included."""


class TrainerProcess(TrainerElsewhere):
    """The trainer of one participant."""

    def __init__(self, app: Path, participant_id: str, keep_s: float) -> None:
        """Start nothing yet. `keep_s` may be infinite."""
        self._path = app
        self._participant_id = participant_id
        self._keep_s = keep_s
        self._using = threading.Lock()
        """Held while the trainer is asked for something: one thing at a time."""
        self._starting = threading.Lock()
        self._life: WorkerLife | None = None
        self._greeted: WorkerLife | None = None
        """The life that has built the trainer."""
        self._idle: threading.Timer | None = None
        self._turn: int | None = None
        """Number of the training that is under way."""
        self._turns = itertools.count()
        self._cancelled = False
        self._has_conditions = True
        self._closed = False
        self._folder: Path | None = None
        self.num_examples: int | None = None

    def open(self) -> Any:
        """Start the process and build the trainer. Return its stand-in. Raises AppError and MissingExtra."""
        log.info("app_loading", app=self._path)
        one_place_for_threads()
        try:
            with self._in_use():
                life = self._loaded()
                hello, _ = life.ask({"do": "hello"})
                self._greeted = life
        except WorkerEnded as ended:
            raise AppError(f"The trainer of {self._path} could not be built: {ended}.") from None
        self.num_examples = hello["num_examples"]
        self._has_conditions = hello["conditions"]
        return _stand_in(self, hello)

    def close(self) -> None:
        """End the process. Idempotent."""
        self._closed = True
        if self._idle is not None:
            self._idle.cancel()
        life = self._life
        if life is not None:
            life.leave()

    @property
    def pid(self) -> int | None:
        """Number of the process; None if there is none."""
        life = self._life
        return None if life is None or life.ended else life.pid

    def conditions(self) -> bool:
        """Ask the app's `conditions`; True if it has none. Raises AppError and MissingExtra."""
        if not self._has_conditions:
            return True
        for last in (False, True):
            life = None
            try:
                life = self._loaded(CONDITIONS_S)
                answer, _ = life.ask({"do": "conditions"}, timeout_s=CONDITIONS_S)
                return bool(answer["holds"])
            except TimeoutError:
                if life is not None:
                    life.kill()
                raise AppError(f"conditions in {self._path} gave no answer in {CONDITIONS_S:g} s") from None
            except WorkerEnded as ended:  # it may have left just now
                if last:
                    raise AppError(f"conditions in {self._path} could not be asked: {ended}") from None
        raise AssertionError("the second try returns or raises")

    # What a stand-in does

    def train(self, parameters: Parameters, config: TrainingConfig, correction: Parameters | None) -> TrainResult:
        """Train in the process. Raises what the trainer raises, all but AppError and MissingExtra as TrainerError."""
        groups = {"parameters": parameters} | ({} if correction is None else {"correction": correction})
        request = {"do": "train", "config": config.model_dump(mode="json"), **self._keeping()}
        values, tensors = self._ask(request, groups)
        return TrainResult(
            tensors["parameters"], values["num_examples"], num_steps=values["num_steps"], metrics=values["metrics"]
        )

    def evaluate(self, parameters: Parameters) -> Mapping[str, float]:
        """Evaluate in the process. Raises as `train` does, and NotImplementedError."""
        values, _ = self._ask({"do": "evaluate", **self._keeping()}, {"parameters": parameters})
        self.num_examples = values["num_examples"]
        metrics: Mapping[str, float] = values["metrics"]
        return metrics

    def keep_in(self, folder: Path) -> None:
        """Let the trainer keep what it likes in this folder, from the next request on."""
        self._folder = folder

    def _keeping(self) -> dict[str, str]:
        return {} if self._folder is None else {"folder": str(self._folder.absolute())}

    def cancel(self) -> None:
        """Ask a training to stop, and see to it that it does. Any thread may call this."""
        self._cancelled = True
        life, turn = self._life, self._turn
        if turn is not None and life is not None:
            timer = threading.Timer(CANCEL_S, self._kill_in_turn, (turn,))
            timer.daemon = True
            timer.start()
            # A process that is stopped, or that hangs before it reads, must not keep the caller.
            threading.Thread(target=self._tell_in_turn, args=(turn, life), daemon=True).start()

    def _tell_in_turn(self, turn: int, life: WorkerLife) -> None:
        if self._turn == turn:
            life.tell("cancel")

    def _ask(self, request: Mapping[str, Any], groups: Groups) -> Answer:
        with self._in_use():
            self._cancelled = False
            self._turn = next(self._turns)
            try:
                life = self._with_trainer()
                if self._cancelled:
                    raise TrainerError("the training was cancelled before it began")
                return life.ask(request, groups)
            except WorkerEnded as ended:
                if self._cancelled:
                    raise TrainerError(f"the training was cancelled: {ended}") from None
                raise TrainerError(f"the trainer did not return: {ended}") from None
            finally:
                self._turn = None

    def _with_trainer(self) -> WorkerLife:
        """Return a process that has built the trainer. Raises TrainerError if the app does not work any more."""
        try:
            life = self._loaded()
            if self._greeted is not life:
                life.ask({"do": "hello"})
                self._greeted = life
        except (AppError, MissingExtra) as error:
            raise TrainerError(f"the trainer could not be built again: {error}") from error
        return life

    def _loaded(self, timeout_s: float | None = None) -> WorkerLife:
        """Return a process that has loaded the app. Raises AppError, MissingExtra, WorkerEnded and TimeoutError."""
        with self._starting:
            life = self._life
            if life is None or life.ended:
                if self._closed:
                    raise WorkerEnded("the participant leaves")
                first = life is None
                self._life = life = WorkerLife(self._path, self._participant_id, faults=first)
                log.info("trainer_process_started", participant=self._participant_id, pid=life.pid)
        life.loaded(timeout_s)
        return life

    @contextlib.contextmanager
    def _in_use(self) -> Iterator[None]:
        """Let the process stay, and count its idle time from the end."""
        with self._using:
            if self._idle is not None:
                self._idle.cancel()
            try:
                yield
            finally:
                if self._keep_s <= threading.TIMEOUT_MAX:
                    self._idle = threading.Timer(self._keep_s, self._leave)
                    self._idle.daemon = True
                    self._idle.start()

    def _leave(self) -> None:
        timer = threading.current_thread()
        with self._using:
            life = self._life
            if timer is not self._idle or self._closed or life is None or life.ended:
                return
            life.leave()
            give_back()
            log.info("trainer_process_left", participant=self._participant_id, pid=life.pid, idle_s=self._keep_s)

    def _kill_in_turn(self, turn: int) -> None:
        life = self._life
        if self._turn == turn and life is not None:
            why = f"the training did not stop in {CANCEL_S:g} s"
            log.warning("trainer_process_killed", participant=self._participant_id, pid=life.pid, why=why)
            life.kill()


def _stand_in(process: TrainerProcess, hello: Mapping[str, Any]) -> Any:
    """Return an object with the methods of the app's trainer, and with the name of its class."""

    def train(_self: object, parameters: Parameters, config: TrainingConfig) -> TrainResult:
        return process.train(parameters, config, None)

    def train_corrected(
        _self: object, parameters: Parameters, config: TrainingConfig, correction: Parameters | None = None
    ) -> TrainResult:
        return process.train(parameters, config, correction)

    methods: dict[str, Any] = {
        "train": train_corrected if hello["corrects"] else train,
        "cancel": lambda _self: process.cancel(),
        "num_examples": property(lambda _self: process.num_examples),
    }
    if hello["keeps"]:
        methods["keep_in"] = lambda _self, folder: process.keep_in(folder)
    if hello["evaluates"]:
        methods["evaluate"] = lambda _self, parameters: process.evaluate(parameters)
    return type(str(hello["name"]), (), methods)()
