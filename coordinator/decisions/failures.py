"""Failures of the strategy: it raised, or what it made is not finite.

The core cannot go on after one, because a strategy may have changed half of its state. Its owner gives the core up and
begins again from the last state that it knows to be good: for the coordinator that is the last commit, and the broker
delivers again what came since. The failure says what must not happen again:

- `update_ids` are condemned (`Core.condemn`). They are discarded with the failure's reason when they come again.
- If a version failed (`of_buffer`), the updates of its buffer that the last commit holds are taken out of the model
  again (`BufferFailed`).
- If nobody can be blamed yet (`careful`), the next core looks at its whole state after each update, which is slow. Then
  the next failure names the update or the version.

A study has no commit to go back to. It stops (studies.engine.engine).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from fedmq.schemas.errors import StrategyError

FailureReason = Literal["strategy_error", "overflow"]
FAILURES: frozenset[str] = frozenset(get_args(FailureReason))
DropReason = FailureReason | Literal["set_back"]
"""Reasons for which updates that were accepted are taken out of the model again. `set_back`: the whole state of the
method began anew (coordinator.decisions.set_backs)."""
DROPPED: frozenset[str] = FAILURES | {"set_back"}


@dataclass(frozen=True, slots=True)
class Failure:
    """A function that failed, and the updates to blame for it."""

    reason: FailureReason
    function: str
    """The strategy's function; "aggregate" or "state" for what is not finite."""
    update_ids: tuple[str, ...] = ()
    participant_id: str | None = None
    """Participant of the only update to blame; None if it is a buffer's, or nobody's."""
    of_buffer: bool = False
    """True if a version failed, or could not be decided on."""
    group: int | None = None
    """Arrival group that the version was to be made of."""
    careful: bool = False
    """True if the whole state has to be looked at after each update to find the one to blame."""


class StrategyFailed(StrategyError):
    """A failure of the strategy. What it raised, if it raised, is the cause of this error."""

    def __init__(self, text: str, failure: Failure) -> None:
        super().__init__(text)
        self.failure = failure

    def blame(
        self,
        update_ids: tuple[str, ...],
        *,
        participant_id: str | None = None,
        of_buffer: bool = False,
        group: int | None = None,
    ) -> None:
        """Say whose failure it is."""
        self.failure = replace(
            self.failure, update_ids=update_ids, participant_id=participant_id, of_buffer=of_buffer, group=group
        )


@dataclass(frozen=True, slots=True)
class Condemned:
    """The verdict on an update that comes again after a failure."""

    reason: FailureReason
    detail: str
    fault: bool
    """True if the update is to blame by itself, and not as one of a buffer."""


@dataclass(frozen=True, slots=True)
class Drop:
    """A buffer that was taken out of the model again, after it had been committed."""

    accepted: int
    """Number of updates accepted in the run until then."""
    version: int
    reason: DropReason
    group: int | None
    count: int
    """Number of updates in it; it may be 0 if the method began anew."""

    @property
    def anew(self) -> bool:
        """True if the strategy's whole state began anew, and with it what participants remember."""
        return self.reason == "set_back"


def drops_in(scalars: Mapping[str, Any]) -> list[Drop]:
    """Return all drops of a run, in their order, from the scalars of a checkpoint."""
    return [Drop(**fields) for fields in scalars.get("drops", ())]
