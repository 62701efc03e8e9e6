"""A recorded run's order in the engine: its tasks go out when they went out, and its updates come when they came.

Rules
 1. Each participant offers itself at the moments at which the run gave it a task whose update it then accepted. The
    core gives it a task at once, and the update comes at the recorded moment. At one moment updates come before tasks
    go out, as in a step of the core. So if an asynchronous strategy makes its versions as the run did, each task has
    the version that it had in the run, and the staleness of each update is the run's.
 2. A participant that was given a task while a lapsed one was in training counts as two
    (studies.population.recorded_runs.lanes). In a replay (studies.engine.replay) it is one participant, whose first
    task lapses when the second goes out.
 3. A synchronous strategy asks when its round opens: it meets the same offers and durations, in its own order. In a
    replay its rounds are the run's (studies.engine.recorded_versions).
 4. When the record is over the run ends, as `record_over`, unless it has reached a limit of its own before.
"""

from __future__ import annotations

from fedmq.coordinator.decisions.events import StopRequested
from fedmq.studies.engine.engine import Engine
from fedmq.studies.population.recorded_runs import offers


class RecordedEngine(Engine):
    """An engine for a population in the recorded order. See the module docstring."""

    def _open(self) -> None:
        self._offers = offers([d.member.history for d in self._devices if d.member.history is not None])
        self._plan_offer(0)

    def _plan_offer(self, k: int) -> None:
        if k < len(self._offers):
            self._plan(max(self._offers[k][1].issued_s, self._now), self._offer, k)
        else:
            self._plan(self._now, self._close, 0)

    def _offer(self, k: int) -> None:
        i, task = self._offers[k]
        device = self._devices[i]
        if device.work is not None or device.offers:
            self._outcome.missed_arrivals += 1
        else:
            device.offers, device.next_task = True, task
            self._say_hello(i)
        # The next offer is planned after this task's end: an update that comes at the next offer's moment comes first.
        self._plan(self._now, self._plan_offer, k + 1)

    def _close(self, _: int) -> None:
        """Stop once nobody is training any more: a synchronous round would wait for ever, deadline after deadline."""
        ends = [at for device in self._devices if (at := device.ends_at()) is not None]
        if ends:
            self._plan(max(ends), self._close, 0)
        else:
            self._events.append(StopRequested("record_over"))
