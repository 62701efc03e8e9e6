"""The doctor's rehearsal of a run: the app's model, its evaluation, one training, its update, the export.

All of it happens in another process or in memory, and in a temporary folder. Nothing of the federation is changed. Each
trial has a time limit, because code of the user's own may hang.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar

from fedmq.app.model_process import ModelChild
from fedmq.app.neighbours import hidden_by
from fedmq.app.parameter_files import write_parameters
from fedmq.broker_config.amqp.handshake import MIB
from fedmq.config.device import DeviceConfig
from fedmq.config.file import FederationConfig
from fedmq.coordinator.decisions.evaluation import target_reached
from fedmq.coordinator.decisions.requirements import check_goals, not_numbers, unmeasured
from fedmq.coordinator.strategies.protocol import Strategy
from fedmq.coordinator.uplink import codec_here
from fedmq.run.coordinator import initial_parameters, model_check
from fedmq.schemas.errors import ConfigError, FedmqError, MissingExtra, StrategyError
from fedmq.schemas.messages import Task, TrainingConfig, Update
from fedmq.schemas.methods import update_spec
from fedmq.schemas.parameters import Parameters
from fedmq.schemas.tensors import spec_of
from fedmq.views.checks import codecs, moving
from fedmq.views.checks.past_run import PastRun, fits
from fedmq.views.checks.time_limit import TookTooLong, limited
from fedmq.views.checks.update_trial import UpdateTrial
from fedmq.views.finding import Finding, Level, Role

TRY_S = 60.0
"""Default limit on one trial, in seconds. To load the app may take twice as long, because that may load TensorFlow."""
T = TypeVar("T")
Part = Literal["app", "initial", "frozen", "evaluation", "training", "strategy", "codec", "export"]
Steps = Generator[Finding, None, T]

_ADVICE: dict[Part, str] = {
    "app": "put the app file right; fedmq doctor --id NAME tries it as another participant",
    "initial": "put `initial` in the federation file right, or take it out to start from the app's model",
    "frozen": "put frozen(parameters) in the app file, or training.unfreeze in the federation file right",
    "evaluation": "put load_test_data() or evaluate() in the app file right, or take it out to do without",
    "training": "put the app file right; fedmq doctor --id NAME tries it as another participant",
    "strategy": "put the [strategy] table or the strategy's file right: a run discards such updates, or never begins",
    "codec": "put the [uplink] table or the codec's file right: the run discards such updates, or never begins",
    "export": "put build_model() in the app file right: the run's end writes its model as a file",
}


def _stay(keep_s: float) -> str:
    """Say when the process that trains leaves."""
    if math.isinf(keep_s):
        return "never leaves (participant.keep_trainer_s)"
    after = f"after {keep_s:g} s without a task" if keep_s else "after each task"
    return f"leaves {after}, and the next task starts another (participant.keep_trainer_s)"


class Rehearsal:
    """One rehearsal. `model_bytes` are those of the model; 0 until they are known."""

    def __init__(
        self,
        config: FederationConfig | DeviceConfig,
        participant_id: str,
        role: Role | None,
        strategy: Strategy[Any] | None,
        *,
        past: PastRun | None = None,
        try_s: float = TRY_S,
    ) -> None:
        """`strategy` is None if it could not be built, or if this is a device, which has none. `past` is the run that
        the folder has; None for a new one."""
        self._config, self._participant_id, self._strategy, self._try_s = config, participant_id, strategy, try_s
        self._run = config if isinstance(config, FederationConfig) and role != "participant" else None
        """The federation, if this may be the coordinator's machine."""
        self._past = past
        self._app = Path(config.app)
        self._role = role
        self.model_bytes = 0

    def findings(self) -> Iterator[Finding]:
        """Rehearse, and yield what came of it."""
        try:
            with tempfile.TemporaryDirectory(prefix="fedmq-doctor-", ignore_cleanup_errors=True) as folder:
                child = ModelChild(self._app, Path(folder))
                try:
                    yield from self._all(child, Path(folder))
                finally:
                    child.close()
        except OSError as error:
            what = f"temporary folder: {tempfile.gettempdir()} cannot be written ({error})"
            yield Finding("wrong", what, "make room there, or set TMPDIR to another folder")

    def _all(self, child: ModelChild, folder: Path) -> Steps[None]:
        def load() -> bool:
            child.ready()
            return True

        if (yield from self._try("app", child, load, 2 * self._try_s)) is None:
            return
        for file in hidden_by(self._app):
            what = f"app: {file} is not what an app imports under this name: the installed module is"
            yield Finding("warning", what, "give it another name if the app is to import it")
        first = yield from self._try("app", child, child.initial)
        if first is None:
            return
        self.model_bytes = first.num_bytes
        count = sum(array.size for array in first.values())
        shown = f"{count:,} numbers in {len(first)} tensors, {first.num_bytes / MIB:.2f} MiB"
        yield Finding("ok", f"model: {shown}")
        if self._run is not None and self._past is not None:
            yield from fits(self._past, model_check(self._run, child))
            first = self._past.parameters or first
        elif self._run is not None and self._run.initial is not None:
            given = yield from self._try("initial", child, initial_parameters(self._run, child))
            if given is not None:
                yield Finding("ok", f"initial: {self._run.initial} fits the model")
            first = first if given is None else given
        if self._run is not None:
            yield from self._moving(self._run, child, first)
            yield from self._evaluation(self._run, child, first)
        yield from self._training(child, first)
        if self._run is not None and child.exports:
            path = folder / "final.safetensors"

            def export() -> Path:
                write_parameters(path, first)
                return child.export(path)

            if (written := (yield from self._try("export", child, export))) is not None:
                yield Finding("ok", f"export: the model can be saved as a {written.suffix} file")

    def _moving(self, config: FederationConfig, child: ModelChild, first: Parameters) -> Steps[None]:
        """Look at the frozen part of a new run, and at what distils its versions."""
        strategy = self._strategy
        if strategy is None:
            return
        yield from moving.distillation(strategy, able=child.distils)
        if self._past is None:
            told = yield from self._try("frozen", child, lambda: moving.frozen(config, strategy, first, child.frozen()))
            if told:
                yield Finding("ok", f"frozen: {told}")

    def _evaluation(self, config: FederationConfig, child: ModelChild, first: Parameters) -> Steps[None]:
        stop = config.run.stop
        try:
            check_goals(stop, evaluates=child.evaluates)
        except ConfigError as error:
            yield Finding("wrong", f"evaluation: {error}", "do one of the two", error)
            return
        if not child.evaluates:
            advice = "add load_test_data() to the app file to have it"
            yield Finding("warning", "evaluation: the app gives no test data, so there is none", advice)
            return
        metrics = yield from self._try("evaluation", child, lambda: child.evaluate(first))
        if metrics is None:
            return
        measured = ", ".join(f"{name} {value:.4g}" for name, value in sorted(metrics.items())) or "nothing"
        yield Finding("ok" if metrics else "warning", f"evaluation: the first model measures {measured}")
        for text in unmeasured(stop, metrics):
            advice = "the run ends at its first evaluation, with an error"
            yield Finding("wrong", f"stop: {text}", advice, ConfigError(text))
        for name in not_numbers(stop, metrics):
            what = f"stop: the first model measures {name} as nan, which reaches no goal"
            yield Finding("wrong", what, "let the evaluation give a number; the run ends if it never does")
        if self._past is None and stop.target is not None and target_reached(stop.target, metrics):
            value, target = metrics[stop.target.name], stop.target
            yield Finding(
                "wrong",
                f"stop: the first model has reached run.stop.target already: {target.name} is {value:.4g}, the target "
                f'{target.value:g} with mode = "{target.mode}"',
                "the run would end before its first task: set mode, or another value",
            )

    def _training(self, child: ModelChild, first: Parameters) -> Steps[None]:
        trial: UpdateTrial | None = None
        if isinstance(self._config, FederationConfig) and self._strategy is not None:
            run, training, strategy = self._config.run, self._config.training, self._strategy
            downlink = self._config.downlink
            trial = yield from self._try(
                "strategy", None, lambda: UpdateTrial(run, strategy, training, first, downlink)
            )
            if trial is None:
                return
            number, most = len(update_spec(strategy.reply, spec_of(first))), self._config.broker.max_tensors
            if number > most:
                what = f"tensors: an update has {number}, broker.max_tensors is {most}"
                yield Finding("wrong", what, f"set it to {number} or more, on the coordinator and on all participants")
        elif isinstance(self._config, FederationConfig):
            return
        hello = yield from self._try("training", child, lambda: child.hello(self._participant_id))
        if hello is None:
            return
        num_examples, replies = hello
        if trial is None:
            task, tensors = self._task(), first
        else:
            begun = trial
            issued = yield from self._try(
                "strategy", None, lambda: begun.task(self._participant_id, num_examples or 1, replies)
            )
            if issued is None:
                return
            task, tensors = issued
        step = task.model_copy(update={"training": task.training.model_copy(update={"epochs": 1, "max_steps": 1})})
        trained = yield from self._try("training", child, lambda: child.train(step, tensors))
        if trained is None:
            return
        update, payload = trained
        examples = update.num_examples if num_examples is None else num_examples
        if trial is not None and "loss" not in update.metrics and self._client_weights() == "quality":
            text = "run.client_weights: got 'quality', and the trainer reports no metric 'loss', which it goes by"
            yield Finding("wrong", text, "let train report a loss, or take other weights", ConfigError(text))
        yield Finding("ok", f"training: one step as {self._participant_id} on {examples} examples worked")
        if self._role != "coordinator":
            yield Finding("ok", f"trainer: its process {_stay(self._config.participant.keep_trainer_s)}")
        if trial is not None and self._strategy is not None:
            begun = trial

            def take() -> bool:
                begun.take(update, payload)
                return True

            if (yield from self._try("strategy", None, take)) is not None:
                yield Finding("ok", f"strategy: {self._strategy.name} takes this update, and makes a version of it")
            yield from self._coded(first, update, payload)

    def _coded(self, first: Parameters, update: Update, payload: Parameters) -> Steps[None]:
        """Send the update through the codec, if the machine has it."""
        config, strategy = self._config, self._strategy
        if not isinstance(config, FederationConfig) or strategy is None or codec_here(config.uplink)[1] is not None:
            return
        reply = strategy.reply
        told = yield from self._try("codec", None, lambda: codecs.trial(config, reply, first, update, payload) or "")
        if told:
            yield Finding("ok", f"codec: {told}")

    def _client_weights(self) -> str:
        return self._config.run.client_weights if isinstance(self._config, FederationConfig) else ""

    def _task(self) -> Task:
        """Return a task for a device, which does not know its run's."""
        return Task(
            task_id="doctor",
            run_id="doctor",
            participant_id=self._participant_id,
            base_version=0,
            reply="delta",
            training=TrainingConfig(),
            lease_s=600.0,
        )

    def _try(
        self, part: Part, child: ModelChild | None, act: Callable[[], T], limit_s: float | None = None
    ) -> Steps[T | None]:
        """Return what `act` gives. If it fails or takes too long, yield that and return None."""
        limit_s = limit_s or self._try_s
        try:
            with limited(limit_s):
                return act()
        except TookTooLong:
            if child is not None:
                child.kill()
            level: Level = "warning" if part in ("training", "evaluation", "export") else "wrong"
            what = f"{part}: it was cut off after {limit_s:g} s, so it is not known if it works"
            yield Finding(level, what, f"give it longer if it needs that: fedmq doctor --try-s {10 * self._try_s:g}")
        except MissingExtra as error:
            advice = "run that command in this environment, then fedmq doctor again"
            yield Finding("wrong", f"app: {error}", advice, error)
        except MemoryError:
            yield Finding("wrong", f"{part}: there is not enough memory", "take a smaller model, or a larger machine")
        except FedmqError as error:
            yield Finding("wrong", f"{part}: {error}", _ADVICE[part], error)
        except OSError:
            raise
        except Exception as error:  # noqa: BLE001  a strategy of the user's own
            failed = StrategyError(f"{type(error).__name__}: {error}")
            yield Finding("wrong", f"{part}: {failed}", _ADVICE[part], failed)
        return None
