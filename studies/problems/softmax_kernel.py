"""The steps of softmax regression as compiled loops. Participants are trained one after the other, and each batch's
rows are read in place. So intermediate results, which numpy would write to memory between two calls, stay in the
processor's registers and first cache.

A task that goes through few examples many times is done in its dual form. SGD from (W₀, b₀) on the n examples X of a
participant never leaves the span of their gradients. After any number of steps W = W₀ - AᵀX and b = b₀ - Aᵀ1, with
A [n, classes]. A row of A is the sum of an example's steps so far (the step's rate, times its share of the batch, times
its residual p - y). So the scores are X W₀ᵀ + b₀ - (XXᵀ + 1) A, and nothing between the first product with X and the
last one is as long as a model. This is the kernel form of a linear model's gradient descent (Kivinen, Smola and
Williamson 2004, "Online learning with kernels"). The form of a task follows from its own settings and examples alone.

Five examples and two classes at a time share the numbers that they read. Sums may be taken in any order (`reassoc`) and
products added in one rounding (`contract`), so that the compiler can use the processor's vectors. Infinities and NaNs
stay what they are. The same instructions make a participant's numbers, whichever others are trained in the call.

The file is one kernel, so it stays whole.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt
from numba.core import types
from numba.extending import intrinsic
from numba.np.numpy_support import carray

from fedmq.participant.training.shuffling import FIRST as _FIRST
from fedmq.participant.training.shuffling import GAMMA as _GAMMA
from fedmq.participant.training.shuffling import LOWER as _LOWER
from fedmq.participant.training.shuffling import SECOND as _SECOND

Floats = npt.NDArray[np.float32]
Numbers = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]
MOST_DUAL_EXAMPLES = 1024
"""Most examples of one participant in the dual form. Its Gram matrix has as many numbers squared."""

_Function = TypeVar("_Function", bound=Callable[..., Any])

TILE = 5
"""Examples that go through the loops together. The rest go one by one."""


class Examples(NamedTuple):
    """The examples of all participants."""

    x: Floats
    """Inputs, [examples, features]."""
    y: Numbers
    """Class numbers, [examples]."""
    rows: Numbers
    """Places of the participants' examples, one participant's after another's."""
    firsts: Numbers
    """Place in `rows` where each participant begins, and the end after the last one, [participants + 1]."""
    most: int
    """Examples of the participant with the most."""
    classes: int


class Settings(NamedTuple):
    """The different settings of the trainings to do, each [settings]."""

    batch_sizes: Numbers
    epochs: Numbers
    max_steps: Numbers
    rates: Floats
    """Learning rates."""
    pulls: Floats
    """Part of the distance to the start that each step takes back."""


class Plan(NamedTuple):
    """Trainings to do, each [jobs]. Weights are W [classes, features] and then b [classes], in one block."""

    participants: Numbers
    seeds: Numbers
    """Seeds of the orders of examples."""
    settings: Numbers
    """Places in `Settings`."""
    starts: Numbers
    """Addresses of the weights that the trainings start from."""
    results: Numbers
    """Addresses of memory for the results; of no jobs if they are summed."""
    coefficients: Floats
    """Coefficients of the results in their sum; of no jobs if they are not summed."""


def _rounded(function: _Function, fastmath: bool | set[str] = False) -> _Function:
    """Compile by numba, with every operation rounded by itself.

    The code is kept on disk if possible: compiling takes seconds in each process of a study.
    """
    options: dict[str, Any] = {"fastmath": fastmath, "error_model": "numpy"}
    try:
        return cast(_Function, numba.njit(cache=True, **options)(function))
    except RuntimeError:  # neither this folder nor the user's own is writable
        return cast(_Function, numba.njit(**options)(function))


def _compiled(function: _Function) -> _Function:
    """Compile by numba, with sums in any order and products added in one rounding."""
    return _rounded(function, {"reassoc", "contract"})


def _typed_pointer(_: Any, address: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return _FLOAT32_POINTER(address), generate


_FLOAT32_POINTER: Any = types.CPointer(types.float32)  # type: ignore[no-untyped-call]
_pointer: Any = intrinsic(_typed_pointer)
"""Pointer to float32 numbers at an address, for compiled code."""


@_compiled
def train(
    examples: Examples, settings: Settings, plan: Plan, corrections: Floats, deltas: bool, steps: Numbers, sums: Floats
) -> npt.NDArray[np.float64]:
    """Do the trainings, and return the mean losses of their last epochs, [jobs].

    Each step takes away the `corrections` as well, [jobs, size] or of no jobs. The results are the weights, or the
    weights minus those of the start if `deltas` is set. `steps` [jobs] receives the number of steps.

    If the plan has coefficients, coefficient·(weights minus those of the start) is added to `sums` [size] in place of
    a result. Then `steps` receives -1 for a training whose weights are not finite.
    """
    features, jobs = examples.x.shape[1], len(steps)
    weights = examples.classes * features
    mine = np.empty(weights + examples.classes, np.float32)
    w, b = mine[:weights].reshape(examples.classes, features), mine[weights:]
    words, losses = np.empty(examples.most, np.uint64), np.zeros(jobs)
    for k in range(jobs):
        start = carray(_pointer(plan.starts[k]), mine.shape)
        mine[:] = start
        rows = examples.rows[examples.firsts[plan.participants[k]] : examples.firsts[plan.participants[k] + 1]]
        own = plan.settings[k]
        size, rate, pull = settings.batch_sizes[own], settings.rates[own], settings.pulls[own]
        an_epoch = (len(rows) + size - 1) // size
        steps[k] = min(settings.epochs[own] * an_epoch, settings.max_steps[own])
        passes = min(settings.epochs[own] * len(rows), steps[k] * size)
        order = words[: len(rows)]
        if pull == 0 and not len(corrections) and _dual_costs_less(passes, len(rows), examples.classes, features):
            losses[k] = _dual_steps(examples, rows, plan.seeds[k], order, steps[k], size, rate, w, b)
        else:
            correction = corrections[k] if len(corrections) else mine[:0]
            losses[k] = _steps(
                examples, rows, plan.seeds[k], order, steps[k], size, rate, mine, start, pull, correction
            )
        if len(plan.coefficients):
            if not _add_scaled(sums, plan.coefficients[k], mine, start):
                steps[k] = -1
            continue
        result = carray(_pointer(plan.results[k]), mine.shape)
        if deltas:
            for j in range(len(mine)):
                result[j] = mine[j] - start[j]
        else:
            result[:] = mine
    return losses


@_rounded
def _add_scaled(sums: Floats, coefficient: np.float32, mine: Floats, start: Floats) -> bool:
    """Do sums += coefficient·(mine - start) as numpy does. Return False if a difference is not finite."""
    wrong = 0
    for j in range(len(sums)):
        delta = mine[j] - start[j]
        wrong += delta - delta != 0
        sums[j] += delta * coefficient
    return wrong == 0


@_compiled
def _steps(
    examples: Examples,
    rows: Numbers,
    seed: int,
    order: Words,
    steps: int,
    size: int,
    rate: np.float32,
    mine: Floats,
    start: Floats,
    pull: np.float32,
    correction: Floats,
) -> float:
    """Do the steps on the weights `mine` (W and then b), and return the mean loss of the last epoch."""
    classes, features = examples.classes, examples.x.shape[1]
    w, b = mine[: classes * features].reshape(classes, features), mine[classes * features :]
    z, batch = np.empty((size, classes), np.float32), np.empty(size, np.int64)
    spare = np.zeros(features, np.float32)
    an_epoch = (len(rows) + size - 1) // size
    loss, seen = 0.0, 0
    for step in range(steps):
        epoch, first = step // an_epoch, step % an_epoch * size
        if first == 0:
            _order(seed, epoch, order)
        picked = batch[: min(size, len(rows) - first)]
        for i in range(len(picked)):
            picked[i] = rows[order[first + i]]
        _scores(examples.x, picked, w, z)
        for i in range(len(picked)):
            for c in range(len(b)):
                z[i, c] += b[c]
        its_loss = _gradients(z, examples.y, picked, rate / np.float32(len(picked)))
        if epoch == (steps - 1) // an_epoch:
            loss += its_loss
            seen += len(picked)
        if pull != 0:
            for j in range(len(mine)):
                mine[j] -= pull * (mine[j] - start[j])
        for j in range(len(correction)):
            mine[j] -= rate * correction[j]
        _subtract(examples.x, picked, z, w, spare)
        for i in range(len(picked)):
            for c in range(len(b)):
                b[c] -= z[i, c]
    return loss / seen


@_compiled
def _dual_costs_less(passes: int, count: int, classes: int, features: int) -> bool:
    """Return True if the dual form takes fewer multiplications, for `passes` of `count` different examples."""
    dual = count * features * (2 * classes + count // 2) + passes * count * classes
    return count <= MOST_DUAL_EXAMPLES and dual < 2 * passes * features * classes


@_compiled
def _dual_steps(
    examples: Examples,
    rows: Numbers,
    seed: int,
    order: Words,
    steps: int,
    size: int,
    rate: np.float32,
    w: Floats,
    b: Floats,
) -> float:
    """Do what `_steps` does, by the sum of each example's steps so far."""
    count = len(rows)
    z, batch = np.empty((size, examples.classes), np.float32), np.empty(size, np.int64)
    labels, spare = np.empty(count, np.int64), np.zeros(count, np.float32)
    had, first_scores = np.zeros((count, examples.classes), np.float32), np.empty((count, examples.classes), np.float32)
    _scores(examples.x, rows, w, first_scores)
    scores = np.empty((examples.classes, count), np.float32)
    for i in range(count):
        labels[i] = examples.y[rows[i]]
        for c in range(examples.classes):
            scores[c, i] = first_scores[i, c] + b[c]
    gram = _gram(examples.x, rows)
    an_epoch = (count + size - 1) // size
    loss, seen = 0.0, 0
    for step in range(steps):
        epoch, first = step // an_epoch, step % an_epoch * size
        if first == 0:
            _order(seed, epoch, order)
        picked = batch[: min(size, count - first)]
        for i in range(len(picked)):
            picked[i] = order[first + i]
            for c in range(examples.classes):
                z[i, c] = scores[c, picked[i]]
        its_loss = _gradients(z, labels, picked, rate / np.float32(len(picked)))
        if epoch == (steps - 1) // an_epoch:
            loss += its_loss
            seen += len(picked)
        for i in range(len(picked)):
            for c in range(examples.classes):
                had[picked[i], c] += z[i, c]
        _subtract(gram, picked, z, scores, spare)
    _subtract(examples.x, rows, had, w, np.zeros(w.shape[1], np.float32))
    for i in range(count):
        for c in range(len(b)):
            b[c] -= had[i, c]
    return loss / seen


@_compiled
def _gram(x: Floats, rows: Numbers) -> Floats:
    """Return x[rows[i]] · x[rows[j]] + 1, [rows, rows]. The bias is a feature that is 1 for every example."""
    count = len(rows)
    gram = np.empty((count, count), np.float32)
    many = count // TILE * TILE
    for i in range(0, many, TILE):
        p = rows[i : i + TILE]
        for j in range(0, i + TILE, 2):
            k = min(j + 1, count - 1)
            _five_scores(x[p[0]], x[p[1]], x[p[2]], x[p[3]], x[p[4]], x[rows[j]], x[rows[k]], gram, i, j, k)
    for i in range(many, count):
        for j in range(0, i + 1, 2):
            k = min(j + 1, count - 1)
            _one_score(x[rows[i]], x[rows[j]], x[rows[k]], gram, i, j, k)
    for i in range(count):
        for j in range(i + 1):
            gram[i, j] += 1
            gram[j, i] = gram[i, j]
    return gram


@_compiled
def _order(seed: int, epoch: int, words: Words) -> None:
    """Fill `words` with the order of a task's examples, that of participant.training.shuffling."""
    place = _mixed(_mixed(np.uint64(seed) + _GAMMA) + np.uint64(epoch) * _GAMMA)
    for i in range(len(words)):
        words[i] = _mixed(place + np.uint64(i) * _GAMMA) & ~_LOWER | np.uint64(i)
    words.sort()
    for i in range(len(words)):
        words[i] &= _LOWER


@_compiled
def _mixed(word: np.uint64) -> np.uint64:
    word ^= word >> np.uint64(30)
    word *= _FIRST
    word ^= word >> np.uint64(27)
    word *= _SECOND
    return word ^ word >> np.uint64(31)


@_compiled
def _scores(x: Floats, picked: Numbers, w: Floats, z: Floats) -> None:
    """Set z[i, c] = x[picked[i]] · w[c]."""
    many = len(picked) // TILE * TILE
    for i in range(0, many, TILE):
        p = picked[i : i + TILE]
        for c in range(0, len(w), 2):
            d = min(c + 1, len(w) - 1)
            _five_scores(x[p[0]], x[p[1]], x[p[2]], x[p[3]], x[p[4]], w[c], w[d], z, i, c, d)
    for i in range(many, len(picked)):
        for c in range(0, len(w), 2):
            d = min(c + 1, len(w) - 1)
            _one_score(x[picked[i]], w[c], w[d], z, i, c, d)


@_compiled
def _gradients(z: Floats, y: Numbers, picked: Numbers, share: np.float32) -> float:
    """Turn the scores z into the gradients of the cross-entropy, times `share`, and return the cross-entropy's sum."""
    loss = 0.0
    for i in range(len(picked)):
        mine, label = z[i], y[picked[i]]
        largest = mine[0]
        for c in range(len(mine)):
            largest = max(largest, mine[c])
        for c in range(len(mine)):
            mine[c] -= largest
        at_label = mine[label]
        total = np.float32(0)
        for c in range(len(mine)):
            mine[c] = np.exp(mine[c])
            total += mine[c]
        loss += np.log(total) - at_label
        by = share / total
        for c in range(len(mine)):
            mine[c] *= by
        mine[label] -= share
    return loss


@_compiled
def _subtract(x: Floats, picked: Numbers, z: Floats, w: Floats, spare: Floats) -> None:
    """Do w[c] -= Σ z[i, c] x[picked[i]]. `spare` [features] takes a step that is not needed."""
    many = len(picked) // TILE * TILE
    for i in range(0, many, TILE):
        p = picked[i : i + TILE]
        for c in range(0, len(w), 2):
            d = min(c + 1, len(w) - 1)
            _five_steps(x[p[0]], x[p[1]], x[p[2]], x[p[3]], x[p[4]], z, i, c, d, w[c], w[d] if d > c else spare)
    for i in range(many, len(picked)):
        for c in range(0, len(w), 2):
            d = min(c + 1, len(w) - 1)
            _one_step(x[picked[i]], z, i, c, d, w[c], w[d] if d > c else spare)


@_compiled
def _five_scores(
    x0: Floats,
    x1: Floats,
    x2: Floats,
    x3: Floats,
    x4: Floats,
    wc: Floats,
    wd: Floats,
    z: Floats,
    i: int,
    c: int,
    d: int,
) -> None:
    c0 = c1 = c2 = c3 = c4 = d0 = d1 = d2 = d3 = d4 = np.float32(0)
    for j in range(len(x0)):
        u, v = wc[j], wd[j]
        c0 += x0[j] * u
        c1 += x1[j] * u
        c2 += x2[j] * u
        c3 += x3[j] * u
        c4 += x4[j] * u
        d0 += x0[j] * v
        d1 += x1[j] * v
        d2 += x2[j] * v
        d3 += x3[j] * v
        d4 += x4[j] * v
    z[i, c], z[i + 1, c], z[i + 2, c], z[i + 3, c], z[i + 4, c] = c0, c1, c2, c3, c4
    z[i, d], z[i + 1, d], z[i + 2, d], z[i + 3, d], z[i + 4, d] = d0, d1, d2, d3, d4


@_compiled
def _one_score(x0: Floats, wc: Floats, wd: Floats, z: Floats, i: int, c: int, d: int) -> None:
    c0 = d0 = np.float32(0)
    for j in range(len(x0)):
        c0 += x0[j] * wc[j]
        d0 += x0[j] * wd[j]
    z[i, c], z[i, d] = c0, d0


@_compiled
def _five_steps(
    x0: Floats,
    x1: Floats,
    x2: Floats,
    x3: Floats,
    x4: Floats,
    z: Floats,
    i: int,
    c: int,
    d: int,
    wc: Floats,
    wd: Floats,
) -> None:
    c0, c1, c2, c3, c4 = z[i, c], z[i + 1, c], z[i + 2, c], z[i + 3, c], z[i + 4, c]
    d0, d1, d2, d3, d4 = z[i, d], z[i + 1, d], z[i + 2, d], z[i + 3, d], z[i + 4, d]
    for j in range(len(x0)):
        wc[j] -= x0[j] * c0 + x1[j] * c1 + x2[j] * c2 + x3[j] * c3 + x4[j] * c4
        wd[j] -= x0[j] * d0 + x1[j] * d1 + x2[j] * d2 + x3[j] * d3 + x4[j] * d4


@_compiled
def _one_step(x0: Floats, z: Floats, i: int, c: int, d: int, wc: Floats, wd: Floats) -> None:
    for j in range(len(x0)):
        wc[j] -= x0[j] * z[i, c]
        wd[j] -= x0[j] * z[i, d]
