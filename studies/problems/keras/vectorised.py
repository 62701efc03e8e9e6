"""The cohort path of Keras models (studies.problems.keras.cohort): chunks of participants as one compiled program."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fedmq.coordinator.strategies.math.arithmetic import flat
from fedmq.participant.training.keras.backend import tf
from fedmq.participant.training.keras.data import as_trained
from fedmq.participant.training.keras.model import built_model, parameters_of
from fedmq.schemas.errors import ConfigError, TrainerError
from fedmq.schemas.messages import UNFROZEN
from fedmq.studies.population.deals import Rows
from fedmq.studies.problems.batches import cohort_rows
from fedmq.studies.problems.keras.known_models import check_examples, known_arrays, known_model
from fedmq.studies.problems.keras.rules import Stack, wide
from fedmq.studies.problems.lazy_training import Job, Trained, stacked_corrections

CPU_CHUNK, GPU_CHUNK = 16, 256
"""Participants in a chunk. On a CPU more of them gain little and fall out of its caches, and a closed loop's cohorts
are small as well."""


class VectorisedSteps:
    """Chunks of participants as one XLA program."""

    def __init__(
        self, program: Program, x: npt.NDArray[Any], y: npt.NDArray[Any], rows: Sequence[Rows], *, chunk: int
    ) -> None:
        program.check(x, y)
        self._program, self.chunk = program, chunk
        self._rows = [np.asarray(r, np.int64) for r in rows]
        self._x = tf.constant(as_trained(x))
        self._y = tf.constant(as_trained(y))
        self._stacks: dict[str, npt.NDArray[Any]] = {}

    def fits(self, job: Job) -> bool:
        """Return True if padding does not show in the result, and the weights that train are those of the app."""
        if job.config.extra.get(UNFROZEN) is not None:
            return False
        return self._program.whole_batch is None or len(self._rows[job.participant]) % job.config.batch_size == 0

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
        room = 1 << (steps - 1).bit_length()  # a power of 2: few shapes to compile
        rows = np.zeros((room, *cohort.rows.shape[1:]), np.int32)
        real = np.zeros((room, self.chunk), np.int32)
        # Padding by an example of the batch itself: what is infinite there is so in the plain path too.
        own = np.arange(batch_size) < cohort.real[..., None]
        rows[:steps] = np.where(own, cohort.rows, cohort.rows[..., :1])
        real[:steps] = cohort.real
        program = self._program
        trainable = [self._stacked(name, padded) for name in program.trainable]
        plan: dict[str, Any] = {
            "rows": rows,
            "real": real,
            "steps": np.int32(steps),
            "last_epoch": cohort.last_epoch.astype(np.int32),
            "rates": np.array([program.rule.rate(j.config.learning_rate) for j in padded], np.float32),
        }
        if any(j.config.proximal_mu for j in jobs):  # otherwise no step has to read the base versions
            plan["pulls"] = np.array([j.config.proximal_mu for j in padded], np.float32)
        if jobs[0].correction is not None:
            program.rule.check_plain()
            plan["corrections"] = [stacked_corrections(padded, name) for name in program.trainable]
        others = [np.stack([j.base[name] for j in padded]) for name in program.others]
        trained, others, measured = program.run(trainable, others, plan, self._x, self._y)
        arrays = {name: _viewed(t) for name, t in zip(program.trainable, trained, strict=True)}
        arrays |= {name: t.numpy() for name, t in zip(program.others, others, strict=True)}
        metrics = {name: t.numpy() for name, t in measured.items()}
        return [
            Trained(
                job.base.replace({name: arrays[name][i] for name in job.base}),
                len(self._rows[job.participant]),
                int(cohort.steps[i]),
                {name: float(values[i]) for name, values in metrics.items()},
            )
            for i, job in enumerate(jobs)
        ]

    def _stacked(self, name: str, jobs: Sequence[Job]) -> Any:
        """Stack a tensor of each base version, in memory that every chunk uses again.

        A program on the CPU reads it in place. TensorFlow copies it to a GPU by itself.
        """
        shape = jobs[0].base[name].shape
        size = math.prod(shape)
        if name not in self._stacks:
            self._stacks[name] = flat(self.chunk * size, np.dtype(np.float32)).reshape(self.chunk, *shape)
        stack = self._stacks[name]
        np.stack([j.base[name] for j in jobs], out=stack)
        return stack if sees_gpu() else tf.experimental.dlpack.from_dlpack(stack.__dlpack__())


class Program:
    """The training of a model's participants as a compiled function, for any data of one kind.

    Raises NotVectorised if something in the model or the data is not known (known_models).
    """

    def __init__(self, build_model: Callable[[], Any], data: tuple[Any, ...]) -> None:
        x, y = known_arrays(data)
        self.model = built_model(build_model, x[:1])
        self._known = known = known_model(self.model, x, y)
        self.rule, self.whole_batch, self._metrics = known.rule, known.whole_batch, known.metrics
        names = {id(v): name for v, name in zip(self.model.weights, parameters_of(self.model), strict=True)}
        self.trainable = [names[id(v)] for v in self.model.trainable_variables]
        self.others = [names[id(v)] for v in self.model.non_trainable_variables]
        """Names of tensors that are not trained."""
        self._constraints = [v.constraint for v in self.model.trainable_variables]
        self.run = tf.function(self._train_chunk, jit_compile=True, autograph=False, reduce_retracing=False)

    def check(self, x: npt.NDArray[Any], y: npt.NDArray[Any]) -> None:
        """Raise NotVectorised if these examples are not known. They may be another federation's."""
        check_examples(self.model, self._known.loss, x, y)

    def chunk(self, wanted: int | None, memory_bytes: int, example_bytes: int) -> int:
        """Return the number of participants in a chunk. Raises ConfigError if not even one fits into `memory_bytes`."""
        per_participant = self._bytes(example_bytes)
        if per_participant > memory_bytes:
            raise ConfigError(
                f"training one participant takes about {per_participant:,} bytes, the limit is {memory_bytes:,}: "
                "raise memory_bytes, or take a smaller model"
            )
        return min(wanted or (GPU_CHUNK if sees_gpu() else CPU_CHUNK), memory_bytes // per_participant)

    def _train_chunk(self, trainable: Stack, others: Stack, plan: dict[str, Any], all_x: Any, all_y: Any) -> Any:
        """Do all steps of a chunk (traced). The last result has the metrics of each participant's last epoch."""
        base, (room, chunk, size) = list(trainable), plan["rows"].shape
        places = tf.range(size)[None, :]

        def step(s: Any, state: tuple[Stack, Stack, Stack], total: Any, count: Any, measured: Any) -> Any:
            trainable, others, slots = state
            examples = plan["real"][s]
            active = examples > 0
            counted = tf.cast(places < examples[:, None], tf.float32)
            weights = counted * (size / tf.cast(tf.maximum(examples, 1), tf.float32)[:, None])
            x, y = tf.gather(all_x, plan["rows"][s]), tf.gather(all_y, plan["rows"][s])
            gradients, stepped, loss, measured_now = tf.vectorized_map(
                self._gradient, (trainable, others, x, y, weights, counted, measured)
            )
            if "pulls" in plan:
                gradients = [
                    g + wide(plan["pulls"], g) * (w - b) for g, w, b in zip(gradients, trainable, base, strict=True)
                ]
            if "corrections" in plan:
                gradients = [g + c for g, c in zip(gradients, plan["corrections"], strict=True)]
            moved, moments = self.rule.apply(gradients, trainable, slots, s + 1, plan["rates"])
            moved = [w if c is None else tf.vectorized_map(c, w) for w, c in zip(moved, self._constraints, strict=True)]
            in_last = active & (s >= plan["last_epoch"])
            shown = tf.where(in_last, tf.cast(examples, tf.float32), 0.0)
            measured = [_choose(in_last, new, old) for new, old in zip(measured_now, measured, strict=True)]
            state = (
                _choose(active, moved, trainable),
                _choose(active, stepped, others),
                _choose(active, moments, slots),
            )
            return s + 1, state, total + tf.where(shown > 0, shown * loss, 0.0), count + shown, measured

        start = (base, list(others), self.rule.slots(base))
        nothing = tf.zeros([chunk])
        unmeasured = [[nothing for _ in metric.variables] for metric in self._metrics]
        _, (trainable, others, _), total, count, measured = tf.while_loop(
            lambda s, *_: s < plan["steps"],
            step,
            (tf.constant(0), start, nothing, nothing, unmeasured),
            maximum_iterations=room,
        )
        results = {"loss": total / count}
        for metric, state in zip(self._metrics, measured, strict=True):
            results[metric.name] = tf.vectorized_map(metric.stateless_result, state)
        return trainable, others, results

    def _gradient(self, inputs: Any) -> Any:
        """Return the gradients, the other state, the loss and the metrics' state after one participant's batch
        (traced)."""
        trainable, others, x, y, weights, counted, measured = inputs
        with tf.GradientTape() as tape:
            tape.watch(trainable)
            predicted, stepped, extra = self.model.stateless_call(
                trainable, others, x, training=True, return_losses=True
            )
            # Loss and metrics have a value for each place of a prediction but its last axis.
            places = [-1] + [1] * (len(predicted.shape) - 2)
            loss = self.model._compile_loss(y, predicted, tf.reshape(weights, places))
            if extra:
                loss += tf.add_n(extra)
        gradients = [tf.convert_to_tensor(g) for g in tape.gradient(loss, trainable)]
        counted = tf.reshape(counted, places)
        measured = [
            list(metric.stateless_update_state(state, y, predicted, sample_weight=counted))
            for metric, state in zip(self._metrics, measured, strict=True)
        ]
        return gradients, stepped, loss, measured

    def _bytes(self, example_bytes: int) -> int:
        """Estimate the memory of one participant in a chunk, in bytes.

        It counts weights before, after and of the base, gradients and slots, and activations of a batch of 32, forward
        and backward.
        """
        weights = sum(math.prod(v.shape) * 4 for v in self.model.weights)
        outputs = sum(_size(layer) for layer in self.model.layers)
        return int(weights * (4 + 2 * self.rule.num_slots) + 32 * (example_bytes + 3 * 4 * outputs))


def sees_gpu() -> bool:
    """Return True if TensorFlow sees a GPU. It uses one without being asked to."""
    return bool(tf.config.list_physical_devices("GPU"))


def prepare_gpu() -> None:
    """Make a GPU, if there is one, sum in one order and multiply in float32.

    So one seed gives the same bytes again, and products are as on the participants. TensorFlow asks XLA for the same.
    An operation without such a form on a GPU raises an error.
    """
    if sees_gpu():
        tf.config.experimental.enable_tensor_float_32_execution(False)
        tf.config.experimental.enable_op_determinism()


def _viewed(tensor: Any) -> npt.NDArray[Any]:
    """Return a float32 tensor's values, without a copy if they are in this process's memory (`numpy()` makes one)."""
    on_cpu = tensor.device.endswith("CPU:0")
    return np.asarray(memoryview(tensor)) if on_cpu else tensor.numpy()


def _choose(active: Any, new: Stack, old: Stack) -> Stack:
    return [tf.where(wide(active, a), a, b) for a, b in zip(new, old, strict=True)]


def _size(layer: Any) -> int:
    """Return the number of elements of a layer's output for one example, as far as its shape is known."""
    shape = getattr(getattr(layer, "output", None), "shape", ())
    return math.prod(d for d in shape[1:] if d is not None) if shape else 0
