"""Federations in chunks whose messages, connections and disks fail at the worst moment."""

from __future__ import annotations

import threading

from broker_config.embedded import EmbeddedBroker
from tests.integration.chunks.federation import DEADLINE_S, Federation, Trainer, until
from tests.integration.chunks.test_chunked_runs import payload_queues


def test_a_reconnect_brings_back_no_queue_of_a_payload_that_was_delivered(
    federation: Federation, broker: EmbeddedBroker
) -> None:
    trainer = Trainer()
    trainer.gate = gate = threading.Event()
    ended = federation.participant("p0", trainer)
    run = federation.coordinator(versions=1, buffer_size=1)
    until(lambda: trainer.trainings == 1)
    assert payload_queues(broker) == []
    assert broker.drop_connections("coordinator") == 1
    gate.set()
    assert ended.result(DEADLINE_S) == "run_finished"
    assert run.result(DEADLINE_S).accepted == 1
    assert payload_queues(broker) == []
