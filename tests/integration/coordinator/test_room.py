"""Participants beyond the number that the strategy has room for."""

import logging

from fedmq.coordinator.settings import StopSettings
from fedmq.coordinator.strategies import Area
from tests.integration.coordinator.federation import DEADLINE_S, delta, update_for


def honest(p, task):
    """Claim one step in no time, as the task asks and the clock allows. Larger claims are logged as clamped."""
    p.send_update(update_for(task, num_steps=1, train_s=0.0), delta(task.task_id))


def test_a_participant_too_many_gets_no_tasks_and_the_log_says_why_once(federation, caplog):
    federation.strategy = Area(num_participants=2)
    federation.stop = StopSettings(max_updates=12)
    for name in ("p0", "p1", "p2"):
        federation.join(name, honest).hello().result(DEADLINE_S)
    with caplog.at_level(logging.WARNING, "fedmq.coordinator"):
        assert federation.run().accepted == 12
    assert len(federation.participants[2].tasks) == 0
    assert [r.getMessage().partition(" detail=")[0] for r in caplog.records] == [
        "event=participant_left_out participant=p2"
    ]
    with federation.ledger() as ledger:
        assert set(ledger.accepted_by_participant()) == {"p0", "p1"}
