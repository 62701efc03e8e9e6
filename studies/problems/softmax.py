"""Softmax regression, trained by compiled loops (studies.problems.softmax_kernel).

The model is W [classes, features] and b [classes], in float32. Each participant is trained by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fedmq.schemas.errors import InputError
from fedmq.schemas.layout import Layout, layout
from fedmq.schemas.local.extras import require
from fedmq.schemas.messages import TrainingConfig
from fedmq.schemas.parameters import Parameters
from fedmq.schemas.tensors import all_finite
from fedmq.studies.population.deals import Rows
from fedmq.studies.problems.lazy_training import Job, SumJob, Trained, stacked_corrections

AT_ONCE = 25
"""Participants at a time. Their models stay in the processor's second-level cache until they are updates."""
NO_LIMIT = 2**62
"""Steps of a task that has no limit on them."""
if TYPE_CHECKING:
    from fedmq.studies.problems import softmax_kernel

Floats = npt.NDArray[np.float32]
_NOTHING, _NO_CORRECTIONS = np.empty(0, np.float32), np.empty((0, 0), np.float32)
_NO_NUMBERS = np.empty(0, np.int64)
_Settings = tuple[int, int, int | None, float | None, float]
"""batch_size, epochs, max_steps, learning_rate, proximal_mu."""


class _Start(NamedTuple):
    """Parameters that trainings start from."""

    block: Floats
    """The whole model. This reference keeps it at its address."""
    address: int


class SoftmaxFederation:
    """`x` [examples, features] in float32 and class numbers `y` [examples]. Participant i has `rows[i]` of them.

    `test` is (x, y) for the central evaluation; None for no evaluation.
    """

    def __init__(
        self,
        x: npt.NDArray[Any],
        y: npt.NDArray[Any],
        rows: Sequence[Rows],
        classes: int,
        test: tuple[npt.NDArray[Any], npt.NDArray[Any]] | None = None,
    ) -> None:
        shapes = layout(np.dtype(np.float32), (("w", (classes, x.shape[1])), ("b", (classes,))))
        self.initial = Parameters.in_block(shapes, np.zeros(shapes.size, np.float32))
        self.num_examples = [len(r) for r in rows]
        self.backend = SoftmaxCohort(x, y, rows, classes, shapes)
        self.evaluates = test is not None
        self._test = test
        self.data_bytes = x.nbytes + (0 if test is None else test[0].nbytes)

    def evaluate(self, parameters: Parameters) -> dict[str, float]:
        assert self._test is not None
        x, y = self._test
        logits = x @ parameters["w"].T + parameters["b"]
        logits -= logits.max(axis=1, keepdims=True)
        log_sums = np.log(np.exp(logits).sum(axis=1))
        losses = log_sums - logits[np.arange(len(y)), y]
        return {"loss": float(losses.mean()), "accuracy": float((logits.argmax(axis=1) == y).mean())}


class SoftmaxCohort:
    """Plain SGD on the mean cross-entropy of each batch, with FedProx's pull and a method's correction if asked for."""

    name = "compiled loops, softmax regression"
    at_once = AT_ONCE

    def __init__(
        self, x: npt.NDArray[Any], y: npt.NDArray[Any], rows: Sequence[Rows], classes: int, layout: Layout
    ) -> None:
        require("numba", "softmax regression in a study")
        from fedmq.studies.problems import softmax_kernel  # numba takes half a second to import

        self._kernel = softmax_kernel
        self._counts = [len(r) for r in rows]
        self._examples = softmax_kernel.Examples(
            np.ascontiguousarray(x, np.float32),
            np.ascontiguousarray(y, np.int64),
            np.concatenate([np.asarray(r, np.int64) for r in rows]),
            np.cumsum([0, *self._counts]),
            max(self._counts, default=0),
            classes,
        )
        _check(self._examples)
        self._layout = layout

    def train(self, jobs: Sequence[Job]) -> list[Trained]:
        return self._train(jobs, deltas=False)

    def train_deltas(self, jobs: Sequence[Job]) -> list[Trained]:
        return self._train(jobs, deltas=True)

    def _train(self, jobs: Sequence[Job], deltas: bool) -> list[Trained]:
        size = self._layout.size
        settings: dict[_Settings, int] = {}
        bases: dict[int, tuple[Floats, int]] = {}
        participants, seeds, own, starts, results, addresses = [], [], [], [], [], []
        for participant, base, config, _ in jobs:
            participants.append(participant)
            seeds.append(config.seed)
            own.append(settings.setdefault(_asked(config), len(settings)))
            if id(base) not in bases:
                block = _block_of(base, self._layout)
                bases[id(base)] = block, _address(block)  # the reference keeps it at its address
            starts.append(bases[id(base)][1])
            result = np.empty(size, np.float32)
            results.append(result)
            addresses.append(_address(result))
        kernel, steps = self._kernel, np.empty(len(jobs), np.int64)
        columns = (np.array(column, np.int64) for column in (participants, seeds, own, starts, addresses))
        plan, table = kernel.Plan(*columns, _NOTHING), self._table(settings)
        losses = kernel.train(self._examples, table, plan, _corrections(jobs), deltas, steps, _NOTHING)
        return [
            Trained(Parameters.in_block(self._layout, mine), self._counts[participant], done, {"loss": loss})
            for mine, participant, done, loss in zip(
                results, participants, steps.tolist(), losses.tolist(), strict=True
            )
        ]

    def summed(self, training: TrainingConfig) -> SoftmaxSums:
        """Return what trains by these settings and sums at once. Raises InputError if there is no learning rate."""
        return SoftmaxSums(self._kernel, self._examples, self._table([_asked(training)]), self._layout)

    def _table(self, settings: Iterable[_Settings]) -> softmax_kernel.Settings:
        """Return the settings as arrays. Raises InputError if there is no learning rate."""
        batch_sizes, epochs, max_steps, rates, mus = zip(*settings, strict=True)
        if None in rates:
            raise InputError("training.learning_rate is not set: softmax regression has no default, give one")
        return self._kernel.Settings(
            np.array(batch_sizes, np.int64),
            np.array(epochs, np.int64),
            np.array([NO_LIMIT if m is None else m for m in max_steps], np.int64),
            np.array(rates, np.float32),
            np.array(mus, np.float32) * np.array(rates, np.float32),
        )


class SoftmaxSums:
    """Trainings whose deltas are summed as they are made: no delta is written where it would wait.

    The kernel is the one of `SoftmaxCohort.train_deltas`, and the sums are those that numpy makes of its results.
    """

    def __init__(
        self, kernel: Any, examples: softmax_kernel.Examples, settings: softmax_kernel.Settings, layout: Layout
    ) -> None:
        self._kernel, self._examples, self._settings, self.layout = kernel, examples, settings, layout

    def start(self, parameters: Parameters) -> _Start:
        block = _block_of(parameters, self.layout)
        return _Start(block, _address(block))

    def add(self, jobs: Sequence[SumJob], sums: Floats) -> bool:
        participants, seeds, starts, coefficients = zip(*jobs, strict=True)
        steps = np.empty(len(jobs), np.int64)
        plan = self._kernel.Plan(
            np.array(participants, np.int64),
            np.array(seeds, np.int64),
            np.zeros(len(jobs), np.int64),
            np.array([start.address for start in starts], np.int64),
            _NO_NUMBERS,
            np.array(coefficients, np.float32),
        )
        self._kernel.train(self._examples, self._settings, plan, _NO_CORRECTIONS, True, steps, sums)
        return bool(steps.min() >= 0)

    def train(self, job: SumJob) -> Parameters | None:
        block = np.empty(self.layout.size, np.float32)
        columns = ([job.participant], [job.seed], [0], [job.start.address], [_address(block)])
        plan = self._kernel.Plan(*(np.array(column, np.int64) for column in columns), _NOTHING)
        steps = np.empty(1, np.int64)
        self._kernel.train(self._examples, self._settings, plan, _NO_CORRECTIONS, False, steps, _NOTHING)
        return Parameters.in_block(self.layout, block) if all_finite({"": block}) else None


def _asked(config: TrainingConfig) -> _Settings:
    return config.batch_size, config.epochs, config.max_steps, config.learning_rate, config.proximal_mu


def _corrections(jobs: Sequence[Job]) -> Floats:
    """Return the tensors that a method adds to the gradients, [jobs, size]; of no jobs if it adds nothing."""
    w, b = (stacked_corrections(jobs, name) for name in ("w", "b"))
    if w is None or b is None:
        return _NO_CORRECTIONS
    return np.concatenate([w.reshape(len(jobs), -1), b], axis=1, dtype=np.float32)


def _check(examples: softmax_kernel.Examples) -> None:
    """Raise InputError for numbers out of their range: compiled loops would touch memory that is not their own."""
    ranges = (("labels", examples.y, examples.classes), ("rows", examples.rows, min(len(examples.x), len(examples.y))))
    for what, numbers, end in ranges:
        if len(numbers) and not 0 <= numbers.min() <= numbers.max() < end:
            raise InputError(f"{what} go from {numbers.min()} to {numbers.max()}, expected 0 to {end - 1}")


def _block_of(parameters: Parameters, layout: Layout) -> Floats:
    """Return the whole model in one array, in the order of `layout`. Compiled loops read it at its address.

    Raises InputError for a model of another size.
    """
    if parameters.layout is layout and parameters.block is not None:
        block = np.ascontiguousarray(parameters.block, np.float32)  # no copy, unless a strategy changed the type
    else:
        block = np.concatenate([parameters[name].ravel() for name in layout.names], dtype=np.float32)
    if block.size != layout.size:
        raise InputError(f"a model has {block.size} numbers, expected {layout.size}, as in the problem's initial one")
    return block


def _address(array: Floats) -> int:
    address: int = array.__array_interface__["data"][0]
    return address
