"""Failures of the strategy, over several starts of the core in one process (coordinator.decisions.failures).

Rules
1. After a failure the coordinator leaves the broker, so that everything uncommitted is delivered again, and takes the
   run over anew from its last commit. The updates to blame are condemned, and are discarded when they come again.
2. If the process ends before that commit, the next one meets the same failure, and condemns the same updates.
3. The strategy itself is to blame if it raises three times in a row for different participants (all of them, if there
   are fewer), or ten times in a row for any. Then the run stops, and can go on with a strategy that was mended. The
   updates since the last commit wait at the broker.
4. Failures are in a row if nothing was achieved in between: no committed update after one for an update, no version
   after one for a version.
5. A version that is not finite says nothing against the strategy. It stops the run only if nobody is to blame for it
   although the whole state was looked at after each update.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedmq.coordinator.decisions.events import BufferFailed
from fedmq.coordinator.decisions.failures import Condemned, StrategyFailed
from fedmq.schemas.errors import StrategyError
from fedmq.schemas.local.blame import line_of, short
from fedmq.schemas.local.event_log import EventLog

log = EventLog(__name__)

MOST_DIFFERENT = 3
"""Failures in a row for different participants that stop the run."""
MOST_IN_A_ROW = 10
"""Failures in a row that stop the run, whoever they are for."""
MOST_CONDEMNED = 10_000
"""Most updates that stay condemned. Older ones have come again, or belong to another coordinator's run by now."""


@dataclass(frozen=True, slots=True)
class _Past:
    """A failure, and how far the commits had come by then."""

    participant_id: str | None
    of_buffer: bool
    version: int
    accepted: int

    def is_followed_by(self, version: int, accepted: int) -> bool:
        """Return True if nothing was achieved since."""
        return self.version == version if self.of_buffer else self.accepted == accepted


@dataclass(frozen=True, slots=True)
class _Lost:
    """A buffer that makes no version, by the commit whose state has it."""

    seq: int
    event: BufferFailed


class Failures:
    """The lessons of this process's failures. They are kept while the process lives."""

    def __init__(self) -> None:
        self.condemned: dict[str, Condemned] = {}
        self.careful = False
        """True if the next core looks at its whole state after each update."""
        self._row: list[_Past] = []
        self._lost: _Lost | None = None

    def note(self, failed: StrategyFailed, *, seq: int, version: int, accepted: int, participants: int) -> None:
        """Learn from a failure after the commit `seq`, which holds this version and number of accepted updates.

        `participants` are known by now. Raises StrategyError if the run has to stop (rules 3 and 5).
        """
        failure = failed.failure
        detail = self.detail(failed)
        spared = failure.reason == "overflow" and (failure.update_ids or failure.of_buffer or not self.careful)
        if not spared:
            row = [past for past in self._row if past.is_followed_by(version, accepted)]
            self._row = [*row, _Past(failure.participant_id, failure.of_buffer, version, accepted)]
            self._stop_if_repeated(failed, detail, participants)
        log.error(
            "strategy_failed", reason=failure.reason, function=failure.function, updates=len(failure.update_ids),
            participant=failure.participant_id, detail=f"{detail}; the run goes on from its last commit",
        )  # fmt: skip
        alone = failure.participant_id is not None
        self.condemned |= dict.fromkeys(failure.update_ids, Condemned(failure.reason, detail, alone))
        while len(self.condemned) > MOST_CONDEMNED:
            del self.condemned[next(iter(self.condemned))]
        self.careful = not failure.update_ids and failure.reason == "overflow"
        lost = BufferFailed(failure.reason, detail, failure.group) if failure.of_buffer else None
        self._lost = None if lost is None else _Lost(seq, lost)

    def lost_buffer(self, seq: int) -> BufferFailed | None:
        """Return the event with which a core goes on from the commit `seq`; None unless its buffer failed."""
        lost, self._lost = self._lost, None
        return lost.event if lost is not None and lost.seq == seq else None

    @staticmethod
    def detail(failed: StrategyFailed) -> str:
        """Describe a failure in one short line, with the strategy's line if it raised."""
        if failed.failure.reason == "overflow":
            return short(str(failed))
        return f"{failed.failure.function}() raised at {line_of(failed)}"

    def _stop_if_repeated(self, failed: StrategyFailed, detail: str, participants: int) -> None:
        different = {past.participant_id or f"#{number}" for number, past in enumerate(self._row)}
        enough = min(MOST_DIFFERENT, max(participants, 1))
        if len(self._row) >= MOST_IN_A_ROW or (len(self._row) >= MOST_DIFFERENT and len(different) >= enough):
            raise StrategyError(
                f"{failed} ({detail}). It failed {len(self._row)} times in a row, so the run stops. Mend the strategy "
                "and start again: updates that were not discarded wait at the broker"
            ) from failed
