"""Any compiled Keras model as a study's problem. TensorFlow is imported when the problem is dealt out, in the process
that runs the cell."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from fedmq.studies.population.deals import AnyDeal, Iid
from fedmq.studies.population.population import Member
from fedmq.studies.problems.classification import KEPT_BACK, class_numbers, load_arrays, validated

if TYPE_CHECKING:
    from fedmq.studies.problems.keras.cohort import KerasFederation


@dataclass(frozen=True)
class KerasProblem:
    """A compiled Keras model, and data that are dealt out.

    build_model     a function that other processes can import. It returns a compiled model, as in an app file
    data            an .npz file with x_train, y_train (class numbers), x_test and y_test, given to the model as they
    are path            "measure" times the vectorised cohorts and the plain steps on the first cohort, and takes the
    faster
                    one for all cells of the study. Name "cohort" or "plain" for the same bytes in another folder too
    """

    build_model: Callable[[], Any]
    data: str
    deal_by: AnyDeal = field(default_factory=Iid)
    path: Literal["measure", "cohort", "plain"] = "measure"
    memory_bytes: int = 1024**3
    """Memory for one cohort. A model that needs more for one participant is refused, with the number."""
    validation_part: float = 0.0
    """Part of the training examples that is kept from all participants, and evaluated on in place of the test set."""

    @property
    def files(self) -> tuple[str, ...]:
        """Files that the problem reads."""
        return (self.data,)

    def deal(self, members: Sequence[Member], seed: int) -> KerasFederation:
        from fedmq.studies.problems.keras.cohort import KerasFederation

        x, y, x_test, y_test = validated(load_arrays(Path(self.data)), self.validation_part, seed)
        labels = np.zeros(len(y), np.int64) if isinstance(self.deal_by, Iid) else class_numbers(y)
        rows = self.deal_by.deal(labels, members, seed)
        return KerasFederation(
            self.build_model,
            x,
            y,
            rows,
            test=(x_test, y_test),
            path=self.path,
            memory_bytes=self.memory_bytes,
            seed=seed,
        )

    def for_tuning(self, part: float) -> tuple[KerasProblem, str]:
        """Return the problem of the trials (studies.problems.problem.ForTuning)."""
        return replace(self, validation_part=part), KEPT_BACK.format(part=part)
