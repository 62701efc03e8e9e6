"""A strategy that one participant's updates make raise, over RabbitMQ and in chunks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import fedmq
from fedmq.coordinator.audit import audit
from fedmq.coordinator.state.run_folder import RunFolder
from tests.integration.chunks.federation import DEADLINE_S, Federation


@dataclass(frozen=True)
class NotOfTheLiar(fedmq.WeightedMean):
    def weight(self, update: Any, staleness: int) -> float:
        if update.participant_id == "liar":
            raise LookupError("no weight for the liar")
        return 1.0


def test_the_coordinator_goes_on_from_its_last_commit_on_a_new_connection(amqp_federation: Federation) -> None:
    federation = amqp_federation
    ended = federation.coordinator(versions=3, strategy=NotOfTheLiar(buffer_size=2))
    for name in ("liar", "a", "b"):
        federation.participant(name)
    summary = ended.result(DEADLINE_S)
    assert (summary.finished, summary.version) == ("max_versions", 3)
    assert summary.discarded["strategy_error"] >= 1
    checks = audit.verify(RunFolder(federation.run_dir), NotOfTheLiar(buffer_size=2))
    assert [check for check in checks if not check.holds] == []
