"""Keras models trained in cohorts: the gradients of many participants as one compiled program. Each participant starts
from its own base version, and has its own batches.

Two paths give the same results to float tolerance:

    plain     the participant's own compiled step (participant.training.keras.trainer), one participant after another:
              the reference, for any model
    cohort    tf.vectorized_map of the model's gradient over participants, and the optimizer's rule on the stacked
              tensors, all steps in one XLA program. It takes a model of which it knows everything: layers, loss,
              metrics, regularisers, constraints, optimizer and data (known_layers, known_models)

The model decides which path is faster: dense models gain much, small convolutions lose on a CPU. So `KerasCohort` times
both on the first cohort, takes the faster one, and says so in its `name`. The other cells of the study take the same
path (studies.problems.keras.path_choice). A choice by time can differ from one machine to the next, and the paths
differ in the last bits. Name the path in a study that has to be repeated bit for bit in another folder.

A cohort is cut into chunks of one fixed shape (`chunk` participants, padded), so that neither the size of a cohort nor
its neighbours change a participant's result. If participants have unequal data, batches are padded and masked, and
participants with fewer steps stand still while others go on. Nothing that looks at a whole batch may see the padding.
So a model with BatchNormalization has its tasks with a short batch trained by the plain path, and what else looks at a
batch is not known. Random layers are not known either: compiled by XLA they draw other numbers from the same seeds.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Literal, TypeVar

import numpy.typing as npt

from fedmq.participant.training.keras.backend import tf
from fedmq.participant.training.keras.data import Data
from fedmq.participant.training.keras.model import built_model, parameters_of
from fedmq.participant.training.keras.trainer import KerasTrainer
from fedmq.schemas.errors import AppError
from fedmq.schemas.parameters import Parameters
from fedmq.studies.population.deals import Rows
from fedmq.studies.problems.keras.compiled_cache import kept
from fedmq.studies.problems.keras.examples import data_bytes, spec, taken
from fedmq.studies.problems.keras.path_choice import shared
from fedmq.studies.problems.keras.rules import NotVectorised
from fedmq.studies.problems.keras.vectorised import Program, VectorisedSteps, prepare_gpu, sees_gpu
from fedmq.studies.problems.lazy_training import Job, Trained
from fedmq.studies.problems.user_randomness import INITIAL_MODEL, TRAINING, seeded

T = TypeVar("T")
PathName = Literal["measure", "cohort", "plain"]

MEASURE_PLAIN_S = 1.0
DEFAULT_MEMORY_BYTES = 1024**3


class KerasFederation:
    """Examples of which participant i has `rows[i]`, and `test` for the central evaluation.

    `x` and `y` are arrays, or nests (dict, tuple, list) of arrays; y may be None. `weights` are the examples' own.
    `test` is (x, y) or (x, y, sample_weight).

    `build_model()` returns a compiled model, as for a deployment. The initial model follows from `seed`. `app`
    identifies the model: federations of one model share its compiled functions.

    Raises AppError if the model cannot be used, ConfigError if one participant does not fit into `memory_bytes`.
    """

    def __init__(
        self,
        build_model: Callable[[], Any],
        x: Any,
        y: Any,
        rows: Sequence[Rows],
        test: Data | None = None,
        *,
        weights: npt.NDArray[Any] | None = None,
        path: PathName = "measure",
        chunk: int | None = None,
        memory_bytes: int = DEFAULT_MEMORY_BYTES,
        seed: int = 0,
        app: Hashable = None,
    ) -> None:
        app = build_model if app is None else app
        self.num_examples = [len(r) for r in rows]
        self.backend = KerasCohort(
            build_model,
            x,
            y,
            rows,
            weights=weights,
            path=path,
            chunk=chunk,
            memory_bytes=memory_bytes,
            seed=seed,
            app=app,
        )
        self.initial = self.backend.initial
        self.data_bytes = data_bytes(self.backend.data)
        self.evaluates = test is not None
        self._test = test
        self._evaluator = None
        if test is not None:
            self._evaluator = _kept(
                ("evaluates", app, spec(test)), lambda: KerasTrainer(build_model, evaluation_data=test)
            )

    def evaluate(self, parameters: Parameters) -> dict[str, float]:
        assert self._evaluator is not None
        assert self._test is not None
        self._evaluator.use_evaluation_data(self._test)  # the evaluator is another federation's too
        return self._evaluator.evaluate(parameters)


def drawn_model(build_model: Callable[[], Any], seed: int) -> Parameters:
    """Return version 0.

    The numbers that `build_model` draws follow from this seed, unless it sets a seed of its own.
    """
    prepare_gpu()
    return _seeded(seed, lambda: parameters_of(built_model(build_model)).packed())


def _seeded(seed: int, make: Callable[[], T]) -> T:
    with seeded(seed, INITIAL_MODEL):
        return make()


def _kept(key: Hashable, make: Callable[[], T]) -> T:
    """Keep what `make` gives.

    It is seeded, so that draws of a model besides its weights are the same in each process.
    """
    return kept(key, lambda: _seeded(0, make))


class KerasCohort:
    """A backend that trains Keras models by one of the two paths of the module docstring."""

    def __init__(
        self,
        build_model: Callable[[], Any],
        x: Any,
        y: Any,
        rows: Sequence[Rows],
        *,
        weights: npt.NDArray[Any] | None = None,
        path: PathName = "measure",
        chunk: int | None = None,
        memory_bytes: int = DEFAULT_MEMORY_BYTES,
        seed: int = 0,
        app: Hashable = None,
    ) -> None:
        app = build_model if app is None else app
        self.initial = drawn_model(build_model, seed)
        self.data: Data = tuple(part for part in (x, y, weights) if part is not None)
        self._spec = spec(self.data)
        first = taken(self.data, [0])
        self._plain = PlainSteps(
            _kept(("plain", app, self._spec), lambda: KerasTrainer(build_model, first)), self.data, rows
        )
        self._path = path
        self._cohort: VectorisedSteps | None = None
        self.name = "Keras, one compiled step after the other"
        if path != "plain":
            try:
                program = _kept(("vectorised", app, self._spec), lambda: Program(build_model, self.data))
                at_once = program.chunk(chunk, memory_bytes, x[:1].nbytes)
                self._cohort = VectorisedSteps(program, x, y, rows, chunk=at_once)
                self.name = f"Keras, vectorised in chunks of {self._cohort.chunk}"
                if program.whole_batch is not None:
                    self.name += f" (tasks with a short batch one after the other: {program.whole_batch!r} looks at it)"
            except NotVectorised as why:
                if path == "cohort":
                    raise AppError(f"this model has no cohort path: {why}. Set path to plain, or to measure") from None
                self._path = "plain"
                self.name += f" ({why})"

    def train(self, jobs: Sequence[Job]) -> list[Trained]:
        if self._path == "measure":
            self._choose(jobs)
        if self._path == "plain" or self._cohort is None:
            return self._plain.train(jobs)
        fits = self._cohort.fits
        together = [i for i, job in enumerate(jobs) if fits(job)]
        alone = [i for i, job in enumerate(jobs) if not fits(job)]
        results = dict(zip(together, self._cohort.train([jobs[i] for i in together]), strict=True))
        results |= zip(alone, self._plain.train([jobs[i] for i in alone]), strict=True)
        return [results[i] for i in range(len(jobs))]

    def _choose(self, jobs: Sequence[Job]) -> None:
        """Choose the path of the study's other cells, or else the faster one. It trains all jobs of the cell."""
        assert self._cohort is not None
        sample = [job for job in jobs if self._cohort.fits(job)][: self._cohort.chunk]
        if sample:
            kind = self._kind(sample[0].config.batch_size)
            chosen = shared(kind, ("path", "name"), lambda: self._measured(sample))
            self._path, self.name = ("cohort" if chosen["path"] == "cohort" else "plain"), chosen["name"]

    def _kind(self, batch_size: int) -> str:
        """Return a file name for everything that the times depend on: equal for all cells of one model and batch
        size."""
        model = [(name, str(a.dtype), a.shape) for name, a in self.initial.items()]
        text = repr((model, self._spec, batch_size, self.name, sees_gpu()))
        return f"keras-{hashlib.sha256(text.encode()).hexdigest()[:16]}"

    def _measured(self, sample: Sequence[Job]) -> dict[str, str]:
        """Return the faster path and its name for the report. The results of the sample are thrown away."""
        assert self._cohort is not None
        self._plain.train(sample[:1])
        start, done = time.perf_counter(), 0
        while done < len(sample) and time.perf_counter() - start < MEASURE_PLAIN_S:
            self._plain.train(sample[done : done + 1])
            done += 1
        plain_s = (time.perf_counter() - start) / done
        try:
            self._cohort.train(sample)
        except (tf.errors.OpError, NotImplementedError, TypeError, ValueError) as error:
            why = str(error).splitlines()[0][:200]
            return {"path": "plain", "name": f"Keras, one compiled step after the other (not vectorised: {why})"}
        start = time.perf_counter()
        self._cohort.train(sample)
        cohort_s = (time.perf_counter() - start) / len(sample)
        path = "cohort" if cohort_s < plain_s else "plain"
        times = f"a participant took {cohort_s * 1e3:.2f} ms vectorised, {plain_s * 1e3:.2f} ms by itself"
        how = f"vectorised in chunks of {self._cohort.chunk}" if path == "cohort" else "one step after the other"
        return {"path": path, "name": f"Keras, {how} ({times})"}


class PlainSteps:
    """The participants' own trainer, for one participant after another."""

    def __init__(self, trainer: KerasTrainer, data: Data, rows: Sequence[Rows]) -> None:
        self._trainer, self._data, self._rows = trainer, data, rows

    def train(self, jobs: Sequence[Job]) -> list[Trained]:
        return [self._one(job) for job in jobs]

    def _one(self, job: Job) -> Trained:
        self._trainer.use_data(taken(self._data, self._rows[job.participant]))
        with seeded(job.config.seed, TRAINING, keras=False):  # Python code in a step may draw, as tf.py_function's
            result = self._trainer.train(job.base, job.config, job.correction)
        parameters = Parameters(result.parameters, job.base.non_trainable)
        return Trained(parameters, result.num_examples, result.num_steps, result.metrics)
