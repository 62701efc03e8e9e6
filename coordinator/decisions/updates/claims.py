"""Bounds on the numbers that a participant reports about its own work.

Rules
 1. A number is a claim. A claim beyond a bound is clamped to the bound, counted by its name and logged once. The update
    stays welcome: an honest participant loses no update by a bound that is too narrow for it. The clamped number is the
    one that the strategy, the ledger and every replay see.
 2. `num_steps` is at least 1, and at most what the task asked for: its epochs over the participant's examples in
    batches of the task's size, and its `max_steps`.
 3. `train_s` is at most the time since the task was made, by the coordinator's own clocks. This includes the time in
    which no coordinator was up (`Elapsed`). Clocks differ by a little, so a claim is clamped only if it is more than a
    thousandth above that time.
 4. `num_examples` is at most the limit of the run, or of the participant. The first accepted update fixes it. Each
    accepted update after it may at most double it or halve it.
 5. A metric is a number from -1e15 to 1e15. One that is no number becomes 1e15: as a loss that is the worst one.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from fedmq.coordinator.decisions.participants.participant import Participant
from fedmq.coordinator.decisions.task_desk import TaskDesk
from fedmq.coordinator.decisions.tasks.book import HeldTask
from fedmq.schemas.messages import Update
from fedmq.schemas.texts import escaped

MOST_METRIC = 1e15
"""Largest metric. Means over participants, JSON and SQL all hold it."""
CLOCKS_DIFFER = 1.001
"""Factor by which a participant's clock may run faster than ours before its claim is clamped."""


class Elapsed:
    """The time since a moment of the run, with the time in which run time stood still.

    Run time does not count the downtime of the coordinator. A participant trains on meanwhile, so its claims are
    compared with the sum of both.
    """

    def __init__(self) -> None:
        self._gaps: list[tuple[float, float]] = []
        """(run time at which it ended, seconds) of each downtime."""

    def add_gap(self, now: float, seconds: float, oldest_s: float) -> None:
        """Note a downtime that ends now. Gaps from before the oldest open task was made (`oldest_s`) are dropped."""
        self._gaps = [gap for gap in self._gaps if gap[0] >= oldest_s]
        if seconds > 0:
            self._gaps.append((now, seconds))

    def since(self, then: float, now: float) -> float:
        """Return the seconds from run time `then` to run time `now`, downtime included."""
        since = max(0.0, now - then)
        return since + sum(seconds for at, seconds in self._gaps if at >= then) if self._gaps else since

    def scalars(self) -> list[list[float]]:
        """Return the JSON values that the checkpoint stores."""
        return [list(gap) for gap in self._gaps]

    def load(self, scalars: Iterable[Iterable[float]]) -> None:
        """Restore what `scalars` gave."""
        self._gaps = [(float(at), float(seconds)) for at, seconds in scalars]


class Claims:
    """The bounds of a run's claims, and the count of those beyond them. It shares the task desk's time."""

    def __init__(self, desk: TaskDesk) -> None:
        self.clamped: Counter[str] = Counter()
        """Number of accepted updates in which each claim was clamped, by its name."""
        self._desk = desk
        self._elapsed = Elapsed()

    def within_bounds(self, p: Participant, task: HeldTask, update: Update) -> tuple[Update, str]:
        """Return the task's update with its claims inside their bounds, and a description of the clamped ones."""
        desk, max_steps = self._desk, self._most_steps(p, task)
        kept, names = bounded(
            update,
            most_examples=desk.most_examples(p),
            last_examples=p.counted_examples,
            epochs=desk.training.epochs if desk.groups is None or max_steps is None else max_steps,
            batch_size=desk.training.batch_size,
            max_steps=max_steps,
            elapsed_s=self._elapsed.since(task.issued_s, desk.now),
        )
        if not names:
            return update, ""
        self.clamped.update(names)
        p.clamped += 1
        return kept, shown(update, kept, names)

    def _most_steps(self, p: Participant, task: HeldTask) -> int | None:
        """Return the most steps that the task can have asked for; None if it set no limit.

        The participant's speed is the one by which the steps were set, unless a lapsed task's update came in between.
        """
        desk = self._desk
        steps, limit = desk.settings.steps, desk.training.max_steps
        if steps is None or desk.groups is not None or not (p.lapsed or task.repeats):
            return desk.max_steps(task)
        return steps.max_steps if limit is None else min(steps.max_steps, limit)

    def stood_still(self, seconds: float) -> None:
        """Note that run time stood still until now for so many seconds."""
        now = self._desk.now
        oldest_s = min((task.issued_s for task in self._desk.tasks.open()), default=now)
        self._elapsed.add_gap(now, seconds, oldest_s)

    def scalars(self) -> dict[str, Any]:
        """Return the values that the checkpoint stores."""
        return {"clamped": dict(self.clamped), "gaps": self._elapsed.scalars()}

    def load(self, scalars: Mapping[str, Any]) -> None:
        """Restore what `scalars` gave. A ledger of an older fedmq does not have it."""
        self.clamped = Counter(scalars.get("clamped", {}))
        self._elapsed.load(scalars.get("gaps", ()))


def most_steps(num_examples: int, epochs: int, batch_size: int, max_steps: int | None) -> int:
    """Return the number of optimiser steps that a task asks of a participant with so many examples."""
    asked = epochs * -(-num_examples // batch_size) if num_examples > 1 else epochs
    return asked if max_steps is None or asked < max_steps else max_steps


def examples_between(claimed: int, most: int, last: int | None) -> int:
    """Return the number of examples that counts. `last` is the one of the last accepted update; None before it."""
    within = claimed if claimed < most else most
    if last is None or last // 2 < within <= 2 * last:  # the usual case
        return within
    return min(max(within, -(-last // 2)), max(2 * last, 1))


def bounded(
    update: Update,
    *,
    most_examples: int,
    last_examples: int | None,
    epochs: int,
    batch_size: int,
    max_steps: int | None,
    elapsed_s: float,
) -> tuple[Update, tuple[str, ...]]:
    """Return the update with its numbers inside the bounds, and the names of the clamped ones.

    `elapsed_s` is the time since the task was made, in seconds. An update that keeps to the bounds is returned itself.
    """
    found: dict[str, Any] = {}
    claimed, done, metrics = update.num_examples, update.num_steps, update.metrics
    n = examples_between(claimed, most_examples, last_examples)
    if n != claimed:
        found["num_examples"] = n
    # A data set that grew faster than rule 4 allows was trained on all the same.
    asked = most_steps(claimed if claimed < most_examples else most_examples, epochs, batch_size, max_steps)
    if not 1 <= done <= asked:
        found["num_steps"] = min(max(done, 1), asked)
    if not update.train_s <= elapsed_s * CLOCKS_DIFFER:
        found["train_s"] = elapsed_s
    for value in metrics.values():
        if not -MOST_METRIC <= value <= MOST_METRIC:
            found["metrics"] = {name: _metric(value) for name, value in metrics.items()}
            break
    return (update.model_copy(update=found), tuple(found)) if found else (update, ())


def shown(update: Update, kept: Update, names: Iterable[str]) -> str:
    """Describe for a log line what was clamped, as `num_steps 9 -> 4`."""
    return ", ".join(f"{name} {_short(getattr(update, name))} -> {_short(getattr(kept, name))}" for name in names)


def _short(value: object) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{escaped(name)}={number:.6g}" for name, number in list(value.items())[:4])
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _metric(value: float) -> float:
    return MOST_METRIC if math.isnan(value) else min(max(value, -MOST_METRIC), MOST_METRIC)
