"""An app file as a study's problem: the file that is studied is the file that is deployed.

    [problem]
    name = "app"
    app = "../mnist/app.py"

Each participant has the data that the app's load_data gives it, as in a deployment. Or `data` names a file, which
`deal_by` deals out; a population's `examples` says how much each participant gets. A PyTorch model trains one
participant after the other, and so do an app's own trainers.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from fedmq.app.app import App, load_app, trainer_of
from fedmq.app.distilling import distilled_by
from fedmq.app.models import Evaluate, TorchModel, framework_of, frozen_flags, has_model, is_torch
from fedmq.participant.trainer import checked_result
from fedmq.schemas.errors import AppError, FedmqError, TrainerError, in_short
from fedmq.schemas.messages import TrainingConfig
from fedmq.schemas.parameters import Parameters
from fedmq.studies.population.deals import AnyDeal, Iid
from fedmq.studies.population.population import Member
from fedmq.studies.problems.classification import Part, class_numbers, load_arrays, validated
from fedmq.studies.problems.frozen import without_frozen
from fedmq.studies.problems.lazy_training import Job, Trained
from fedmq.studies.problems.problem import Federation
from fedmq.studies.problems.user_randomness import DATA, INITIAL_MODEL, TRAINING, seeded
from fedmq.studies.value import Value

Data = tuple[Any, ...]
"""(x,), (x, y) or (x, y, sample_weight) of arrays or nests of arrays."""


class AppProblem(Value):
    """An app file as a problem."""

    name: Literal["app"] = "app"
    app: str
    """Path of the app file. It has build_model and load_data, or build_trainer and initial_parameters (or
    build_model)."""
    participant_id: str | None = None
    """Id that the app's functions are called with, such as "sensor-{number}". {number} is the participant's number,
    from
    1. Without it the ids are those of a recorded run, or else the study's own: p000000 and so on."""
    data: str | None = None
    """An .npz file in place of load_data and load_test_data. A study's file may say "mnist" or "mnist-full"."""
    deal_by: AnyDeal = Iid()
    path: Literal["measure", "cohort", "plain"] = "measure"
    """Way to train Keras models (studies.problems.keras.cohort)."""
    memory_bytes: Annotated[int, Field(ge=1)] = 1024**3
    """Memory for one cohort of a Keras model."""
    validation_part: Part = 0.0
    """Part of each participant's examples, or of the file's, that is kept back and evaluated on in place of the test
    set. The trials of the tuning have one. Trainers of the app's own are judged by its evaluate() in any case."""

    @property
    def files(self) -> tuple[str, ...]:
        """Files that decide the result, apart from those that the app itself reads."""
        return (self.app,) if self.data is None else (self.app, self.data)

    def deal(self, members: Sequence[Member], seed: int) -> Federation:
        with seeded(0, DATA):
            app = load_app(self.app)
        federation = self._dealt(app, members, seed)
        if "distil" in app.functions:
            federation = _Distilling(federation, app)
        if app.get("frozen") is None and not federation.initial.non_trainable:
            return federation
        with seeded(seed, INITIAL_MODEL):
            names = frozen_flags(app, federation.initial, lambda: framework_of(app, "to know what is frozen"))
        return without_frozen(federation, names)

    def _dealt(self, app: App, members: Sequence[Member], seed: int) -> Federation:
        names = tuple(self._name(m) for m in members)
        for function in ("build_trainer", "build_student"):
            if function in app.functions:
                if self.data is not None:
                    raise AppError(f"{self.app} has {function}, and so data of its own for all: leave out data")
                return TrainerFederation(app, names, seed)
        build_model = app.need(
            "build_model", "to train with Keras or PyTorch (or build_trainer, to train with anything else)"
        )
        if is_torch(app):
            return self._with_torch(TorchModel(app), app, names, members, seed)
        # TensorFlow, in the processes that run cells
        from fedmq.studies.problems.keras.cohort import KerasFederation
        from fedmq.studies.problems.keras.examples import examples, taken

        if self.data is None:
            data, rows = app_data(self.app, _digest(self.app), names)
            test: Any = None
            if self.validation_part:
                rows, kept = _kept_back(rows, self.validation_part, seed)
                test = taken(data, kept)
            elif (load_test := app.get("load_test_data")) is not None:
                with seeded(0, DATA):
                    given = load_test()
                if given is not None:
                    test = examples(given, f"load_test_data() in {self.app} gave")
        else:
            x, y, *others = validated(load_arrays(Path(self.data)), self.validation_part, seed)
            data = (x, y)
            labels = np.zeros(len(y), np.int64) if isinstance(self.deal_by, Iid) else class_numbers(y)
            rows, test = self.deal_by.deal(labels, members, seed), (others[0], others[1])
        try:
            return KerasFederation(
                build_model,
                data[0],
                data[1] if len(data) > 1 else None,
                rows,
                test=test,
                weights=data[2] if len(data) > 2 else None,
                path=self.path,
                memory_bytes=self.memory_bytes,
                seed=seed,
                app=(self.app, _digest(self.app)),
            )
        except (FedmqError, MemoryError):
            raise
        except Exception as e:  # an error of Keras's own classes, which another process may not have
            what = " ".join(str(e).split())[:400]
            raise AppError(f"the model of {self.app} does not train on its examples: {type(e).__name__}: {what}") from e

    def _with_torch(
        self, model: TorchModel, app: App, names: Sequence[str], members: Sequence[Member], seed: int
    ) -> Federation:
        """Return the federation of a PyTorch model. Raises AppError."""
        from fedmq.studies.problems.torch_models import Examples, TorchFederation

        if self.path == "cohort":
            raise AppError("a PyTorch model has no cohort path: set path to plain, or to measure")
        examples = Examples()
        test: Any = None
        if self.data is None:
            with seeded(0, DATA):
                load_data = app.need("load_data", "for a participant's examples")
                rows = [examples.add(load_data(name), f"what load_data({name!r}) in {self.app} gave") for name in names]
                load_test = None if self.validation_part else app.get("load_test_data")
                test = None if load_test is None else load_test()
            if self.validation_part:
                rows, kept = _kept_back(rows, self.validation_part, seed)
                test = examples.taken(kept)
        else:
            x, y, *others = validated(load_arrays(Path(self.data)), self.validation_part, seed)
            examples.add((x, y), self.data)
            labels = np.zeros(len(y), np.int64) if isinstance(self.deal_by, Iid) else class_numbers(y)
            rows, test = self.deal_by.deal(labels, members, seed), (others[0], others[1])
        with seeded(seed, INITIAL_MODEL):
            initial = model.initial().packed()
        return TorchFederation(model.trainer, examples, rows, test, initial)

    def for_tuning(self, part: float) -> tuple[AppProblem, str]:
        """Return the problem of the trials (studies.problems.problem.ForTuning)."""
        whose = "each participant's" if self.data is None else "the training"
        text = f"{part:.0%} of {whose} examples, kept back (trainers of the app's own: by its evaluate())"
        return self.model_copy(update={"validation_part": part}), text

    def _name(self, member: Member) -> str:
        if self.participant_id is None:
            return member.participant_id if member.history is None else member.history.participant_id
        return self.participant_id.replace("{number}", str(member.index + 1))


class _Distilling:
    """A federation whose app distils versions. It is the same in all else."""

    def __init__(self, inner: Federation, app: App) -> None:
        self._inner = inner
        self._app = app
        self.initial, self.num_examples = inner.initial, inner.num_examples
        self.backend, self.evaluates = inner.backend, inner.evaluates

    def evaluate(self, parameters: Parameters) -> dict[str, float]:
        return self._inner.evaluate(parameters)

    def distil(self, ensemble: Any, start: Parameters, seed: int) -> Parameters:
        """See fedmq.app.distilling."""
        with seeded(seed, TRAINING):
            return distilled_by(self._app, ensemble, start, seed)

    def __getattr__(self, name: str) -> Any:
        if name == "_inner":
            raise AttributeError(name)
        return getattr(self._inner, name)


class TrainerFederation:
    """Participants with the app's own trainers, which train one after another."""

    def __init__(self, app: App, names: Sequence[str], seed: int) -> None:
        if "tensorflow" in sys.modules:
            from fedmq.studies.problems.keras.vectorised import prepare_gpu

            prepare_gpu()
        self.initial = _initial(app, seed)
        with seeded(0, DATA):
            trainers = [trainer_of(app, name) for name in names]
            # Still seeded, because a trainer may load its data only now.
            self.num_examples = [max(1, int(getattr(t, "num_examples", 1) or 1)) for t in trainers]
        self.backend = TrainerCohort(trainers)
        self._evaluate: Evaluate | None = app.get("evaluate") or _by_model(app)
        self.evaluates = self._evaluate is not None

    def evaluate(self, parameters: Parameters) -> dict[str, float]:
        assert self._evaluate is not None
        return {str(name): float(value) for name, value in self._evaluate(parameters).items()}


def _initial(app: App, seed: int) -> Parameters:
    """Return version 0. A coordinator takes it from the same functions (fedmq.app.model_worker)."""
    own = app.get("initial_parameters")
    if own is None:
        needed = "for the first version of the model (or initial_parameters, without one)"
        if "build_student" in app.functions:
            return framework_of(app, needed).initial()
        build_model = app.need("build_model", needed)
        if is_torch(app):
            with seeded(seed, INITIAL_MODEL):
                return TorchModel(app).initial().packed()
        from fedmq.studies.problems.keras.cohort import drawn_model

        return drawn_model(build_model, seed)
    with seeded(seed, INITIAL_MODEL):
        given = own()
    if not isinstance(given, Mapping) or not given:
        raise AppError(f"initial_parameters in {app.path} gave {given!r:.80}, expected name -> array.")
    flags = given.non_trainable if isinstance(given, Parameters) else frozenset()
    return Parameters({str(name): np.asarray(array) for name, array in given.items()}, flags)


def _by_model(app: App) -> Evaluate | None:
    """Return an evaluation on the app's test data; None if it has no model or no such data."""
    test_data = app.get("load_test_data")
    if not has_model(app) or test_data is None:
        return None
    with seeded(0, DATA):
        data = test_data()
    return framework_of(app, "to evaluate").evaluator(data)


class TrainerCohort:
    """Any trainers (participant.trainer) as a study's backend.

    A trainer that keeps state between tasks keeps it here too, in the order in which results are needed. Write trainers
    without such state: a deployment that restarts loses it.
    """

    name = "the app's own trainers, one after the other"

    def __init__(self, trainers: Sequence[Any]) -> None:
        self.trainers = trainers
        self._seed_themselves = [_seeds_itself(trainer) for trainer in trainers]

    def train(self, jobs: Sequence[Job]) -> list[Trained]:
        return [self._one(job) for job in jobs]

    def _one(self, job: Job) -> Trained:
        with seeded(job.config.seed, TRAINING, keras=not self._seed_themselves[job.participant]):
            result = _called(self.trainers[job.participant], job.base, job.config, job.correction)
        arrays = {name: np.asarray(result.parameters[name]) for name in job.base if name in result.parameters}
        if len(arrays) != len(job.base):
            raise TrainerError(f"train returned the tensors {list(result.parameters)}, expected {list(job.base)}")
        trained = Parameters(arrays, job.base.non_trainable)
        return Trained(trained, int(result.num_examples), int(result.num_steps), dict(result.metrics))


def _seeds_itself(trainer: Any) -> bool:
    if "tensorflow" not in sys.modules:
        return False
    from fedmq.participant.training.keras.trainer import KerasTrainer

    return isinstance(trainer, KerasTrainer)


def _called(trainer: Any, base: Parameters, config: TrainingConfig, correction: Parameters | None) -> Any:
    try:
        given = (
            trainer.train(base, config) if correction is None else trainer.train(base, config, correction=correction)
        )
        return checked_result(given)
    except Exception as e:
        raise TrainerError(f"{type(trainer).__name__}.train failed: {in_short(e)}") from e


@lru_cache(maxsize=1)
def app_data(path: str, digest: str, names: tuple[str, ...]) -> tuple[Data, list[npt.NDArray[np.int64]]]:  # noqa: ARG001 - a changed file is loaded again
    """Return everybody's examples, and the rows of each participant in them. Equal parts are kept once."""
    from fedmq.studies.problems.keras.examples import count, digest_of, examples, joined

    parts: dict[str, tuple[int, int]] = {}
    all_data: list[Data] = []
    rows, end = [], 0
    with seeded(0, DATA):
        load_data = load_app(path).need("load_data", "for a participant's examples")
        for name in names:
            data = examples(load_data(name), f"load_data({name!r}) in {path} gave")
            key = digest_of(data)
            if key not in parts:
                parts[key] = (end, end + count(data))
                end += count(data)
                all_data.append(data)
            rows.append(np.arange(*parts[key]))
    try:
        return joined(all_data), rows
    except ValueError as e:
        raise AppError(f"load_data in {path} gives participants examples of other shapes: {e}") from None


def _kept_back(
    rows: Sequence[npt.NDArray[np.int64]], part: float, seed: int
) -> tuple[list[npt.NDArray[np.int64]], npt.NDArray[np.int64]]:
    """Return the rows that each participant keeps, and the rows that were taken from all of them.

    Participants with the same examples lose the same ones. A participant with a single example keeps it.
    """
    left, kept = [], {}
    for own in rows:
        count = min(max(1, round(part * len(own))), len(own) - 1)
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(int(own[0]), 1003)))
        order = rng.permutation(len(own))
        left.append(own[np.sort(order[count:])])
        kept[int(own[0])] = own[np.sort(order[:count])]
    validation = np.concatenate([*kept.values()])
    if not len(validation):
        raise AppError("no participant has two examples, one to judge trials by: set tuning.validation_part = 0")
    return left, validation


def _digest(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
