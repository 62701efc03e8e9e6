"""Keras models trained in cohorts: the gradients of many participants as one compiled program, each participant from
its own base version, on its own batches.

Two paths give the same results to float tolerance:

    plain     the participant's own compiled step (participant.keras_trainer), one participant after the other: the
              reference, for any model
    cohort    tf.vectorized_map of the model's gradient over participants, and the optimizer's rule on the stacked
              tensors, all steps in one XLA program. For SGD (with momentum, Nesterov) and Adam.

Which is faster depends on the model: dense models gain much, small convolutions lose on a CPU. So `KerasCohort` times
both on the first cohort, takes the faster, and says so in its `name`. A choice by time can differ from one machine to
the next, and the paths differ in the last bits: a study that is to be repeated bit for bit names its path.

A cohort is cut into chunks of one fixed shape (`chunk` participants, padded), so that neither the size of a cohort nor
its neighbours change a participant's result. Unequal data: batches are padded and masked, participants with fewer steps
stand still while others go on. A model with state beside its weights (BatchNorm, Dropout) would see the padding; its
tasks that have a short batch are trained by the plain path. Dropout draws other random numbers when compiled by XLA,
from the same seeds: there the paths agree in distribution only.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from coordinator.arithmetic import flat
from participant.keras_trainer import KerasTrainer, built_model, check_plain, parameters_of
from schemas.errors import AppError, ConfigError, TrainerError
from schemas.parameters import Parameters
from studies.batches import Rows, cohort_rows
from studies.training import Job, Trained, stacked_corrections

PathName = Literal["measure", "cohort", "plain"]
Stack = list[Any]
"""Tensors with the participants of a chunk as their first axis."""

MEASURE_PLAIN_S = 1.0
CPU_CHUNK, GPU_CHUNK = 16, 256
"""On a CPU more gain little and fall out of its caches; a closed loop's cohorts are small as well."""
DEFAULT_MEMORY_BYTES = 1024**3


class NotVectorised(Exception):
    """Why a model has no cohort path."""


class KerasFederation:
    """`x` and `y` arrays of which participant i has `rows[i]`; `test` for the central evaluation.

    `build_model()` returns a compiled model, as for a deployment. Raises AppError where it cannot be used, ConfigError
    where one participant does not fit into `memory_bytes`.
    """

    def __init__(
        self,
        build_model: Callable[[], Any],
        x: npt.NDArray[Any],
        y: npt.NDArray[Any],
        rows: Sequence[Rows],
        test: tuple[npt.NDArray[Any], npt.NDArray[Any]] | None = None,
        *,
        path: PathName = "measure",
        chunk: int | None = None,
        memory_bytes: int = DEFAULT_MEMORY_BYTES,
    ) -> None:
        self.num_examples = [len(r) for r in rows]
        self.backend = KerasCohort(build_model, x, y, rows, path=path, chunk=chunk, memory_bytes=memory_bytes)
        self.initial = self.backend.initial
        self.data_bytes = x.nbytes + y.nbytes
        self.evaluates = test is not None
        self._evaluator = None if test is None else KerasTrainer(build_model, evaluation_data=test)

    def evaluate(self, parameters: Parameters) -> dict[str, float]:
        assert self._evaluator is not None
        return self._evaluator.evaluate(parameters)


class KerasCohort:
    """See the module docstring."""

    def __init__(
        self,
        build_model: Callable[[], Any],
        x: npt.NDArray[Any],
        y: npt.NDArray[Any],
        rows: Sequence[Rows],
        *,
        path: PathName = "measure",
        chunk: int | None = None,
        memory_bytes: int = DEFAULT_MEMORY_BYTES,
    ) -> None:
        self._plain = PlainSteps(build_model, x, y, rows)
        self.initial = parameters_of(self._plain.trainer.model).packed()
        self._path = path
        self._cohort: VectorisedSteps | None = None
        self.name = "Keras, one compiled step after the other"
        if path != "plain":
            try:
                self._cohort = VectorisedSteps(build_model, x, y, rows, chunk=chunk, memory_bytes=memory_bytes)
                self.name = f"Keras, vectorised in chunks of {self._cohort.chunk}"
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
        """Time both on the first jobs; what they gave is thrown away, so that one path trains them all."""
        assert self._cohort is not None
        sample = [job for job in jobs if self._cohort.fits(job)][: self._cohort.chunk]
        if not sample:
            return
        self._plain.train(sample[:1])
        start, done = time.perf_counter(), 0
        while done < len(sample) and time.perf_counter() - start < MEASURE_PLAIN_S:
            self._plain.train(sample[done : done + 1])
            done += 1
        plain_s = (time.perf_counter() - start) / done
        try:
            self._cohort.train(sample)
        except (tf.errors.OpError, NotImplementedError, TypeError, ValueError) as error:
            self._path = "plain"
            self.name = f"Keras, one compiled step after the other (not vectorised: {str(error).splitlines()[0][:200]})"
            return
        start = time.perf_counter()
        self._cohort.train(sample)
        cohort_s = (time.perf_counter() - start) / len(sample)
        self._path = "cohort" if cohort_s < plain_s else "plain"
        times = f"a participant took {cohort_s * 1e3:.2f} ms vectorised, {plain_s * 1e3:.2f} ms by itself"
        how = f"vectorised in chunks of {self._cohort.chunk}" if self._path == "cohort" else "one step after the other"
        self.name = f"Keras, {how} ({times})"


class PlainSteps:
    """The participants' own trainer, for one participant after the other."""

    def __init__(
        self, build_model: Callable[[], Any], x: npt.NDArray[Any], y: npt.NDArray[Any], rows: Sequence[Rows]
    ) -> None:
        self._x, self._y, self._rows = x, y, rows
        self.trainer = KerasTrainer(build_model, (x[:1], y[:1]))

    def train(self, jobs: Sequence[Job]) -> list[Trained]:
        return [self._one(job) for job in jobs]

    def _one(self, job: Job) -> Trained:
        rows = self._rows[job.participant]
        self.trainer.use_data((self._x[rows], self._y[rows]))
        result = self.trainer.train(job.base, job.config, job.correction)
        parameters = Parameters(result.parameters, job.base.non_trainable)
        return Trained(parameters, result.num_examples, result.num_steps, result.metrics)


class VectorisedSteps:
    """Chunks of participants as one XLA program. Raises NotVectorised where the model is not of the known kinds."""

    def __init__(
        self,
        build_model: Callable[[], Any],
        x: npt.NDArray[Any],
        y: npt.NDArray[Any],
        rows: Sequence[Rows],
        *,
        chunk: int | None,
        memory_bytes: int,
    ) -> None:
        self.model = built_model(build_model, x[:1])
        self._rule = optimizer_rule(self.model)
        self._rows = [np.asarray(r, np.int64) for r in rows]
        self._x = tf.constant(_as_trained(x))
        self._y = tf.constant(_as_trained(y))
        names = {id(v): name for v, name in zip(self.model.weights, parameters_of(self.model), strict=True)}
        self._trainable = [names[id(v)] for v in self.model.trainable_variables]
        self._others = [names.get(id(v)) for v in self.model.non_trainable_variables]
        """Tensors that are not trained; None stands for the state of a random generator."""
        self._other_dtypes = [v.dtype for v in self.model.non_trainable_variables]
        self._stateful = bool(self._others)
        self._stacks: dict[str, npt.NDArray[Any]] = {}
        per_participant = self._bytes(x[:1].nbytes)
        if per_participant > memory_bytes:
            raise ConfigError(
                f"training one participant takes about {per_participant:,} bytes, the limit is {memory_bytes:,}: "
                "raise memory_bytes, or take a smaller model"
            )
        self._on_gpu = bool(tf.config.list_physical_devices("GPU"))
        wanted = chunk or (GPU_CHUNK if self._on_gpu else CPU_CHUNK)
        self.chunk = min(wanted, memory_bytes // per_participant)
        # One eager call makes the loss's and the optimizer's variables, which a traced function may not.
        self.model.compute_loss(x[:1], y[:1], self.model(x[:1]))
        self._program = tf.function(self._train_chunk, jit_compile=True, autograph=False, reduce_retracing=False)

    def fits(self, job: Job) -> bool:
        """Whether padding would not show in the result."""
        return not self._stateful or len(self._rows[job.participant]) % job.config.batch_size == 0

    def train(self, jobs: Sequence[Job]) -> list[Trained]:
        results: dict[int, Trained] = {}
        for size in sorted({job.config.batch_size for job in jobs}):
            own = [i for i in range(len(jobs)) if jobs[i].config.batch_size == size]
            own.sort(key=lambda i: len(self._rows[jobs[i].participant]) * jobs[i].config.epochs)
            for start in range(0, len(own), self.chunk):
                part = own[start : start + self.chunk]
                results |= zip(part, self._chunk([jobs[i] for i in part], size), strict=True)
        return [results[i] for i in range(len(jobs))]

    def _chunk(self, jobs: Sequence[Job], batch_size: int) -> list[Trained]:
        padded = [*jobs, *[jobs[0]] * (self.chunk - len(jobs))]
        if any(len(self._rows[job.participant]) == 0 for job in jobs):
            raise TrainerError("a participant has no training examples")
        cohort = cohort_rows([(self._rows[j.participant], j.config) for j in padded], batch_size)
        steps = len(cohort.rows)
        room = 1 << (steps - 1).bit_length()  # few shapes to compile, whatever the sizes
        rows = np.zeros((room, *cohort.rows.shape[1:]), np.int32)
        real = np.zeros((room, self.chunk), np.int32)
        rows[:steps], real[:steps] = cohort.rows, cohort.real
        trainable = [self._stacked(name, padded) for name in self._trainable]
        plan: dict[str, Any] = {
            "rows": rows,
            "real": real,
            "steps": np.int32(steps),
            "last_epoch": cohort.last_epoch.astype(np.int32),
            "rates": np.array([self._rule.rate(j.config.learning_rate) for j in padded], np.float32),
        }
        if any(j.config.proximal_mu for j in jobs):  # else the program need not read the base versions at each step
            plan["pulls"] = np.array([j.config.proximal_mu for j in padded], np.float32)
        if jobs[0].correction is not None:
            self._rule.check_plain()
            plan["corrections"] = [stacked_corrections(padded, name) for name in self._trainable]
        trained, others, loss = self._program(trainable, self._other_state(padded), plan)
        arrays = {name: _viewed(t) for name, t in zip(self._trainable, trained, strict=True)}
        arrays |= {n: t.numpy() for n, t in zip(self._others, others, strict=True) if n is not None}
        losses = loss.numpy()
        return [
            Trained(
                job.base.replace({name: arrays[name][i] for name in job.base}),
                len(self._rows[job.participant]),
                int(cohort.steps[i]),
                {"loss": float(losses[i])},
            )
            for i, job in enumerate(jobs)
        ]

    def _stacked(self, name: str, jobs: Sequence[Job]) -> Any:
        """A tensor of each base version, in memory that every chunk uses again and a program on the CPU reads where it
        is; TensorFlow takes it to a GPU by itself."""
        shape = jobs[0].base[name].shape
        size = math.prod(shape)
        if name not in self._stacks:
            self._stacks[name] = flat(self.chunk * size, np.dtype(np.float32)).reshape(self.chunk, *shape)
        stack = self._stacks[name]
        np.stack([j.base[name] for j in jobs], out=stack)
        return stack if self._on_gpu else tf.experimental.dlpack.from_dlpack(stack.__dlpack__())

    def _other_state(self, jobs: Sequence[Job]) -> list[npt.NDArray[Any]]:
        """As the participant's trainer starts a task: its parameters, and generators seeded by the task."""
        if not self._others:
            return []
        generators = sum(name is None for name in self._others)
        seeds = [
            iter(np.random.SeedSequence(j.config.seed, spawn_key=(1,)).generate_state(max(generators, 1))) for j in jobs
        ]
        return [
            np.stack([np.array([next(own) >> 1, 0]) for own in seeds]).astype(dtype)
            if name is None
            else np.stack([j.base[name] for j in jobs])
            for name, dtype in zip(self._others, self._other_dtypes, strict=True)
        ]

    def _train_chunk(self, trainable: Stack, others: Stack, plan: dict[str, Any]) -> Any:
        """Traced: all steps of a chunk. The last result is the mean loss of each participant's last epoch."""
        base, (room, chunk, size) = list(trainable), plan["rows"].shape
        places = tf.range(size)[None, :]

        def step(s: Any, state: tuple[Stack, Stack, Stack], total: Any, count: Any) -> Any:
            trainable, others, slots = state
            examples = plan["real"][s]
            active = examples > 0
            weights = tf.cast(places < examples[:, None], tf.float32)
            weights *= size / tf.cast(tf.maximum(examples, 1), tf.float32)[:, None]
            x, y = tf.gather(self._x, plan["rows"][s]), tf.gather(self._y, plan["rows"][s])
            gradients, stepped, loss = tf.vectorized_map(self._gradient, (trainable, others, x, y, weights))
            if "pulls" in plan:
                gradients = [
                    g + _wide(plan["pulls"], g) * (w - b) for g, w, b in zip(gradients, trainable, base, strict=True)
                ]
            if "corrections" in plan:
                gradients = [g + c for g, c in zip(gradients, plan["corrections"], strict=True)]
            moved, moments = self._rule.apply(gradients, trainable, slots, s + 1, plan["rates"])
            shown = tf.where(active & (s >= plan["last_epoch"]), tf.cast(examples, tf.float32), 0.0)
            state = (
                _choose(active, moved, trainable),
                _choose(active, stepped, others),
                _choose(active, moments, slots),
            )
            return s + 1, state, total + tf.where(shown > 0, shown * loss, 0.0), count + shown

        start = (base, list(others), self._rule.slots(base))
        nothing = tf.zeros([chunk])
        _, (trainable, others, _), total, count = tf.while_loop(
            lambda s, *_: s < plan["steps"],
            step,
            (tf.constant(0), start, nothing, nothing),
            maximum_iterations=room,
        )
        return trainable, others, total / count

    def _gradient(self, inputs: Any) -> Any:
        """Traced: of one participant's batch."""
        trainable, others, x, y, weights = inputs
        with tf.GradientTape() as tape:
            tape.watch(trainable)
            predicted, stepped, extra = self.model.stateless_call(
                trainable, others, x, training=True, return_losses=True
            )
            loss = self.model._compile_loss(y, predicted, weights)
            if extra:
                loss += tf.add_n(extra)
        gradients = tape.gradient(loss, trainable, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        return gradients, stepped, loss

    def _bytes(self, example_bytes: int) -> int:
        """About what one participant of a chunk needs: weights before, after and base, gradients, slots; activations
        of a batch of 32, there and back."""
        weights = sum(math.prod(v.shape) * 4 for v in self.model.weights)
        outputs = sum(_size(layer) for layer in self.model.layers)
        return int(weights * (4 + 2 * self._rule.num_slots) + 32 * (example_bytes + 3 * 4 * outputs))


class Rule:
    """An optimizer's step on stacked tensors, as Keras computes it (keras.optimizers.SGD and Adam)."""

    def __init__(self, optimizer: Any) -> None:
        self._o = optimizer
        self._rate = float(optimizer.learning_rate.numpy())
        self._adam = isinstance(optimizer, keras.optimizers.Adam)
        self.num_slots = 2 if self._adam else int(bool(optimizer.momentum))

    def rate(self, asked: float | None) -> float:
        return self._rate if asked is None else asked

    def check_plain(self) -> None:
        """Raises AppError where the optimizer's steps are not plain gradient steps."""
        check_plain(self._o)

    def slots(self, trainable: Stack) -> Stack:
        """All zero: first moments of all tensors, then second ones."""
        return [tf.zeros_like(w) for _ in range(self.num_slots) for w in trainable]

    def apply(self, gradients: Stack, trainable: Stack, slots: Stack, t: Any, rates: Any) -> tuple[Stack, Stack]:
        """The weights and slots after step `t` (from 1), with a rate for each participant."""
        if self._adam:
            return self._apply_adam(gradients, trainable, slots, tf.cast(t, tf.float32), rates)
        moves = [-_wide(rates, g) * g for g in gradients]
        if not self.num_slots:
            return [w + d for w, d in zip(trainable, moves, strict=True)], []
        momentum = self._o.momentum
        slots = [momentum * m + d for m, d in zip(slots, moves, strict=True)]
        moves = [momentum * m + d for m, d in zip(slots, moves, strict=True)] if self._o.nesterov else slots
        return [w + d for w, d in zip(trainable, moves, strict=True)], slots

    def _apply_adam(self, gradients: Stack, trainable: Stack, slots: Stack, t: Any, rates: Any) -> tuple[Stack, Stack]:
        b1, b2, n = self._o.beta_1, self._o.beta_2, len(trainable)
        rates = rates * tf.sqrt(1 - tf.pow(b2, t)) / (1 - tf.pow(b1, t))
        first = [m + (g - m) * (1 - b1) for m, g in zip(slots[:n], gradients, strict=True)]
        second = [v + (tf.square(g) - v) * (1 - b2) for v, g in zip(slots[n:], gradients, strict=True)]
        moved = [
            w - m * _wide(rates, w) / (tf.sqrt(v) + self._o.epsilon)
            for w, m, v in zip(trainable, first, second, strict=True)
        ]
        return moved, [*first, *second]


def optimizer_rule(model: Any) -> Rule:
    """Raises NotVectorised, saying why, unless the model's training is one that `VectorisedSteps` repeats exactly."""
    o = model.optimizer
    if type(o) not in (keras.optimizers.SGD, keras.optimizers.Adam):
        raise NotVectorised(f"its optimizer is {type(o).__name__}, vectorised are SGD and Adam")
    if getattr(o, "amsgrad", False):
        raise NotVectorised("its Adam uses amsgrad")
    options = ("clipnorm", "clipvalue", "global_clipnorm", "weight_decay", "gradient_accumulation_steps", "use_ema",
               "loss_scale_factor")  # fmt: skip
    used = [name for name in options if getattr(o, name, None)]
    if used:
        raise NotVectorised(f"its optimizer uses {used[0]}")
    if not isinstance(o._learning_rate, keras.Variable):
        raise NotVectorised("its learning rate has a schedule")
    if type(model).train_step is not keras.Model.train_step or type(model).compute_loss is not keras.Model.compute_loss:
        raise NotVectorised("it has a train_step or compute_loss of its own")
    if not isinstance(model.loss, str | keras.losses.Loss) or len(model.outputs or [0]) != 1:
        raise NotVectorised("its loss is not a single one of Keras's")
    if getattr(model.loss, "reduction", "sum_over_batch_size") != "sum_over_batch_size":
        raise NotVectorised("its loss is not the mean over the batch")
    if any(v.dtype != "float32" for v in model.trainable_variables):
        raise NotVectorised("its weights are not all float32")
    return Rule(o)


def _viewed(tensor: Any) -> npt.NDArray[Any]:
    """A float32 tensor's values without a copy, which `numpy()` makes, where they are in this process's memory."""
    on_cpu = tensor.device.endswith("CPU:0")
    return np.asarray(memoryview(tensor)) if on_cpu else tensor.numpy()


def _wide(per_participant: Any, like: Any) -> Any:
    """[participants] with as many axes as `like`."""
    return tf.reshape(per_participant, [-1] + [1] * (len(like.shape) - 1))


def _choose(active: Any, new: Stack, old: Stack) -> Stack:
    return [tf.where(_wide(active, a), a, b) for a, b in zip(new, old, strict=True)]


def _as_trained(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Floats in Keras's float type, as the trainer has them."""
    if array.dtype.kind == "f" and array.dtype.name != keras.config.floatx():
        return array.astype(keras.config.floatx())
    return array


def _size(layer: Any) -> int:
    """Elements of a layer's output for one example, as far as its shape says."""
    shape = getattr(getattr(layer, "output", None), "shape", ())
    return math.prod(d for d in shape[1:] if d is not None) if shape else 0


__all__ = ["KerasCohort", "KerasFederation", "NotVectorised", "PlainSteps", "VectorisedSteps"]
