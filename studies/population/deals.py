"""Ways to deal a data set's rows out to participants: IID, Dirichlet, shards, by position on an axis, by speed.

Every participant draws its rows for itself, from its own generator. It gets no row twice if there are enough of the
kind that it should have. Several participants may get the same row, so 10,000 participants can be dealt from 8,000
images. Only with shards and by speed does a participant's part depend on the other participants.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from fedmq.schemas.errors import InputError
from fedmq.studies.population.population import Member
from fedmq.studies.value import Value

Rows = npt.NDArray[np.int64]
"""Places of examples in a data set."""
Part = Annotated[float, Field(gt=0, le=1)]
Share = Annotated[float, Field(ge=0, le=1)]
MOST_EXAMPLES = 2**28
"""Most examples of all participants together: 2 GiB for their places alone."""


class Iid(Value):
    """Deal every row with the same probability."""

    name: Literal["iid"] = "iid"

    def deal(self, labels: Rows, members: Sequence[Member], seed: int) -> list[Rows]:
        rows = np.arange(len(labels))
        return [_sample(rows, m.examples, rng) for m, rng in _each(members, seed)]


class Dirichlet(Value):
    """Deal shares of the classes that are drawn from Dirichlet(alpha·p), with p the classes' shares of all data.

    Hsu et al. 2019, arXiv:1909.06335. An alpha of 0.1 gives few classes to each participant, one of 100 is nearly iid.
    """

    name: Literal["dirichlet"] = "dirichlet"
    alpha: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.5

    def deal(self, labels: Rows, members: Sequence[Member], seed: int) -> list[Rows]:
        classes = [np.flatnonzero(labels == label) for label in np.unique(labels)]
        concentration = self.alpha * np.array([len(c) for c in classes]) / len(labels)
        return [self._draw(classes, concentration, m.examples, rng) for m, rng in _each(members, seed)]

    def _draw(
        self, classes: Sequence[Rows], concentration: npt.NDArray[np.float64], count: int, rng: np.random.Generator
    ) -> Rows:
        shares = rng.dirichlet(concentration)
        if not shares.sum() > 0:  # alpha is so small that all shares underflow: take one class
            shares = np.eye(len(classes))[rng.integers(len(classes))]
        counts = rng.multinomial(count, shares / shares.sum())
        return np.concatenate([_sample(c, int(n), rng) for c, n in zip(classes, counts, strict=True)])


class Shards(Value):
    """Sort the rows by class, cut them into `each` shards a participant, and deal the shards out at random.

    McMahan et al. 2017, arXiv:1602.05629, section 3, with 2 shards each. A participant draws its `examples` from its
    own shards, which nobody else has. If it has as many examples as its shards hold, it gets exactly these.
    """

    name: Literal["shards"] = "shards"
    each: Annotated[int, Field(ge=1)] = 2

    def deal(self, labels: Rows, members: Sequence[Member], seed: int) -> list[Rows]:
        count = len(members) * self.each
        if count > len(labels):
            raise InputError(
                f"{len(members)} participants with {self.each} shards each are {count} shards, of {len(labels)} "
                "examples: take fewer shards or participants, or more data"
            )
        pieces = np.array_split(np.argsort(labels, kind="stable"), count)
        hands = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(1001,))).permutation(count)
        hands = hands.reshape(len(members), self.each)
        return [
            _sample(np.concatenate([pieces[i] for i in hand]), m.examples, rng)
            for hand, (m, rng) in zip(hands, _each(members, seed), strict=True)
        ]


class ByPosition(Value):
    """Deal by the participant's label position.

    A part `skew` of its rows comes from the neighbourhood of that place in the data sorted by class, the rest from
    anywhere. With population.correlation.speed_label, fast and slow participants then have different classes.
    """

    name: Literal["position"] = "position"
    skew: Share = 1.0
    width: Part = 0.2
    """Width of the neighbourhood, as a part of all data."""

    def deal(self, labels: Rows, members: Sequence[Member], seed: int) -> list[Rows]:
        return self.deal_at([m.label_position for m in members], labels, members, seed)

    def deal_at(self, positions: Sequence[float], labels: Rows, members: Sequence[Member], seed: int) -> list[Rows]:
        """Deal by the given positions, each in [0, 1]."""
        rows = np.argsort(labels, kind="stable")
        near = max(1, round(self.width * len(rows)))
        dealt = []
        for position, (m, rng) in zip(positions, _each(members, seed), strict=True):
            start = round(position * (len(rows) - near))
            own = int(rng.binomial(m.examples, self.skew))
            close = _sample(rows[start : start + near], own, rng)
            free = np.ones(len(rows), bool)
            free[close] = False
            rest = np.flatnonzero(free)
            dealt.append(np.concatenate([close, _sample(rest if len(rest) else rows, m.examples - own, rng)]))
        return dealt


class BySpeed(Value):
    """Deal as `position` does, by the rank of each participant's speed.

    The slowest have the first classes, the fastest the last ones. Equally fast participants stand in the order of their
    numbers.
    """

    name: Literal["speed"] = "speed"
    skew: Share = 1.0
    width: Part = 0.2

    def deal(self, labels: Rows, members: Sequence[Member], seed: int) -> list[Rows]:
        speeds = np.array([-m.slowness * (m.example_s or 1.0) for m in members])
        positions = np.empty(len(members))
        positions[np.argsort(speeds, kind="stable")] = (np.arange(len(members)) + 0.5) / len(members)
        return ByPosition(skew=self.skew, width=self.width).deal_at(positions.tolist(), labels, members, seed)


AnyDeal = Annotated[Iid | Dirichlet | Shards | ByPosition | BySpeed, Field(discriminator="name")]


def check_amount(members: Sequence[Member]) -> None:
    """Raise InputError if the participants should have more examples than a study can hold."""
    asked = sum(m.examples for m in members)
    if asked > MOST_EXAMPLES:
        raise InputError(
            f"the population's examples are {asked:.3g} for {len(members)} participants, allowed are "
            f"{MOST_EXAMPLES:,} for all together: give it a law with smaller numbers"
        )


def _each(members: Sequence[Member], seed: int) -> list[tuple[Member, np.random.Generator]]:
    """Pair each participant with its own generator for its data."""
    check_amount(members)
    return [(m, np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(m.index, 1000)))) for m in members]


def _sample(rows: Rows, count: int, rng: np.random.Generator) -> Rows:
    """Draw `count` of the rows, none twice if there are enough."""
    if count == 0:
        return rows[:0]
    return np.asarray(rng.choice(rows, count, replace=count > len(rows)), np.int64)
