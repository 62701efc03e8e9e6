"""Back-offs: how long a participant gets no task after a decline, a failure or a task that lapsed (core.py, rule 8)."""

from __future__ import annotations

from fedmq.coordinator.decisions.participants.participant import Participant
from fedmq.coordinator.decisions.participants.roster import Roster
from fedmq.coordinator.settings import RunSettings

MAX_BACKOFF_S = 600.0
"""Longest back-off after failures, and the shortest time between two that a new session ends (seconds)."""
FREE_DECLINES = 20
"""Declines beyond the accepted updates after which a participant waits at least LEAST_WAIT_S after each."""
LEAST_WAIT_S, MOST_WAIT_S = 1.0, 60.0
"""That wait doubles with each further FREE_DECLINES, up to MOST_WAIT_S: each task may carry the whole model."""
FAILURES = frozenset({"trainer_error", "no_data", "unsupported", "unreadable", "bad_signature"})
"""Reasons of declines that will come again. To ask at once would spin."""


class BackOffs:
    """The back-offs of a run's participants. A caller settles the participant afterwards."""

    def __init__(self, settings: RunSettings, roster: Roster) -> None:
        self._settings = settings
        self._roster = roster

    def on_hello(self, p: Participant, now: float, *, new_session: bool, accepting: bool) -> None:
        """End a back-off that this hello may end."""
        if not p.failures:
            if (new_session or accepting) and p.asked_again_at_s is not None:
                if least_s := _least_wait_s(p):
                    self._roster.back_off(p, min(p.asked_again_at_s, now + least_s))
                else:
                    p.asked_again_at_s = None
        elif new_session and p.asked_again_at_s is not None and not _pardoned_lately(p, now):
            p.asked_again_at_s, p.pardoned_s = None, now

    def on_decline(self, p: Participant, now: float, reason: str, retry_after_s: float | None) -> None:
        """Back off for as long as the participant asks, and longer if its reason is a failure."""
        if reason in FAILURES:
            self.on_failure(p, now, retry_after_s or 0.0)
        else:
            wait_s = self._settings.decline_backoff_s if retry_after_s is None else retry_after_s
            self._roster.back_off(p, now + max(wait_s, _least_wait_s(p)))

    def on_failure(self, p: Participant, now: float, at_least_s: float = 0.0) -> None:
        """Back off after a task that failed in a way that will come again."""
        p.failures += 1
        wait_s = _doubled(max(self._settings.decline_backoff_s, 1.0), p.failures)
        self._roster.back_off(p, now + max(wait_s, at_least_s))

    def on_silence(self, p: Participant, now: float, forgiven: int = 0) -> None:
        """Back off after a task that lapsed, if it is not among the first `forgiven` failures in a row."""
        if self._settings.lapse_backoff_s:
            p.failures += 1
            if p.failures > forgiven:
                wait_s = _doubled(self._settings.lapse_backoff_s, p.failures - forgiven)
                self._roster.back_off(p, now + wait_s)


def _least_wait_s(p: Participant) -> float:
    """Return how long this participant waits after a decline at least; 0 if it has not declined often."""
    often = p.declined - p.accepted - FREE_DECLINES
    return 0.0 if often <= 0 else min(LEAST_WAIT_S * 2.0 ** min(often // FREE_DECLINES, 20), MOST_WAIT_S)


def _pardoned_lately(p: Participant, now: float) -> bool:
    return p.pardoned_s is not None and now - p.pardoned_s < MAX_BACKOFF_S


def _doubled(first_s: float, failures: int) -> float:
    return min(first_s * 2.0 ** min(failures - 1, 20), MAX_BACKOFF_S)
