"""synthetic(α, β): softmax regressions with models (α) and inputs (β) that differ from participant to participant.

Li et al. 2020, "Federated Optimization in Heterogeneous Networks" (FedProx, arXiv:1812.06127), section 5.1. Participant
k has

    y = argmax softmax(W_k·x + b_k)     W_k, b_k ~ N(u_k, 1) entry by entry, u_k ~ N(0, α)
    x ~ N(v_k, Σ)                       Σ diagonal with Σ_jj = j^-1.2; v_k ~ N(B_k, 1) entry by entry, B_k ~ N(0, β)

with 60 features and 10 classes. α and β are standard deviations, as in the authors' own generator, which made the
published sets synthetic(0, 0), (0.5, 0.5) and (1, 1). With `iid` there is one W, b ~ N(0, 1) for all, and x ~ N(0, Σ).
u_k is the same for all classes, so it adds u_k·(Σ x + 1) to each of them, and the argmax stays the same. α is there
because the sets are named by it, but no label depends on it. The models differ because each W_k is drawn anew.
The authors deal out 50 + LogNormal(4, 2) examples. Here the population's `examples` decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from fedmq.studies.population.deals import check_amount
from fedmq.studies.population.laws import NonNegative
from fedmq.studies.population.population import Member
from fedmq.studies.problems.softmax import SoftmaxFederation
from fedmq.studies.value import Value

Array = npt.NDArray[Any]


class Synthetic(Value):
    """The problem of the module docstring. Every participant keeps a part of its examples back. Together they are the
    test set."""

    name: Literal["synthetic"] = "synthetic"
    alpha: NonNegative = 1.0
    beta: NonNegative = 1.0
    iid: bool = False
    features: Annotated[int, Field(ge=1, le=100_000)] = 60
    classes: Annotated[int, Field(ge=2, le=10_000)] = 10
    test_part: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Part of a participant's data that is for the test. It comes on top of its `examples` for training."""
    metrics: ClassVar[tuple[str, ...]] = ("loss", "accuracy")
    """Metrics of an evaluation."""

    def for_tuning(self, part: float) -> tuple[Synthetic, str]:  # noqa: ARG002
        """Return the problem of the trials (studies.problems.problem.ForTuning)."""
        return self, "participants and examples of the tuning's own seeds"

    def deal(self, members: Sequence[Member], seed: int) -> SoftmaxFederation:
        train, rows, test = self.examples(members, seed)
        return SoftmaxFederation(*train, rows, self.classes, test)

    def examples(
        self, members: Sequence[Member], seed: int
    ) -> tuple[tuple[Array, Array], list[Array], tuple[Array, Array]]:
        """Return (x, y) for training, the rows in it of each participant, and (x, y) for the test."""
        check_amount(members)
        shared = self._model(0.0, _generator(seed, 0, 1002)) if self.iid else None
        found = [self._drawn(m, seed, shared) for m in members]
        counts = [m.examples for m in members]
        ends = np.cumsum(counts)
        rows = [np.arange(end - count, end) for end, count in zip(ends.tolist(), counts, strict=True)]
        train = _joined([(x[:n], y[:n]) for (x, y), n in zip(found, counts, strict=True)])
        return train, rows, _joined([(x[n:], y[n:]) for (x, y), n in zip(found, counts, strict=True)])

    def _drawn(self, member: Member, seed: int, shared: tuple[Array, Array] | None) -> tuple[Array, Array]:
        """Draw one participant's examples: those for training, then those for the test."""
        rng = _generator(seed, member.index, 1000)
        u, center = self.alpha * rng.standard_normal(), self.beta * rng.standard_normal()
        w, b = shared or self._model(u, rng)
        v = np.zeros(self.features) if self.iid else center + rng.standard_normal(self.features)
        count = member.examples + max(1, round(member.examples * self.test_part / (1 - self.test_part)))
        spread = np.arange(1, self.features + 1) ** -0.6  # standard deviations: √(j^-1.2)
        x = v + spread * rng.standard_normal((count, self.features))
        return x.astype(np.float32), (x @ w + b).argmax(axis=1)

    def _model(self, mean: float, rng: np.random.Generator) -> tuple[Array, Array]:
        w = mean + rng.standard_normal((self.features, self.classes))
        return w, mean + rng.standard_normal(self.classes)


def _generator(seed: int, index: int, purpose: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(index, purpose)))


def _joined(parts: Sequence[tuple[Array, Array]]) -> tuple[Array, Array]:
    return np.concatenate([x for x, _ in parts]), np.concatenate([y for _, y in parts])
