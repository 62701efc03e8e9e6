"""Models that are too large for one message make whole runs, over memory and over RabbitMQ."""

from __future__ import annotations

from broker_config.embedded import EmbeddedBroker
from tests.integration.chunks.federation import DEADLINE_S, Federation


def test_a_model_in_chunks_makes_full_rounds(federation: Federation, broker: EmbeddedBroker) -> None:
    participants = [federation.participant(f"p{number}") for number in range(3)]
    summary = federation.coordinator(versions=3).result(DEADLINE_S)
    assert (summary.version, summary.accepted) == (3, 9)
    assert summary.discarded.keys() <= {"run_finished"}
    assert [one.result(DEADLINE_S) for one in participants] == ["run_finished"] * 3
    federation.check(versions=3, updates=9)
    assert not [name for name in broker.queue_names if ".payload." in name]
