"""A stream of models that is deleted while a participant reads it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fedmq.broker_config.chunks import receiver
from fedmq.schemas.messages import ChunkedPayload, Decline, Hello, ModelReference
from tests.integration.chunks.federation import until
from tests.integration.participant.conftest import TOPOLOGY, Running
from tests.integration.participant.scripted import DEADLINE_S, ScriptedCoordinator
from tests.integration.participant.test_service import AddOne


def test_a_stream_that_is_deleted_in_a_download_costs_the_task_at_once(
    coordinator: ScriptedCoordinator,
    start: Callable[..., Running],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nobody is patient here, so only the broker's word that the consumer is gone can end the download."""
    monkeypatch.setattr(receiver, "PATIENCE_S", 1e6)
    stream = TOPOLOGY.models(2**21, 2**20)
    coordinator.transport.declare(stream).result(DEADLINE_S)
    start(AddOne())
    coordinator.wait_for(Hello)
    chunks = ChunkedPayload(payload_id="one", num_bytes=2048, chunk_bytes=1024, count=2, digest="0" * 64)
    reference = ModelReference(offset=0, digest="0" * 64)
    with caplog.at_level("INFO"):
        coordinator.send(coordinator.task(1, chunks=chunks, reference=reference))
        until(lambda: "event=download " in caplog.text)
        coordinator.transport.delete_queue(stream.name).result(DEADLINE_S)
    declined = coordinator.wait_for(Decline)
    assert (declined.task_id, declined.reason) == ("task-1", "payload_lost")
    assert declined.retry_after_s == 0, "the next task brings it"
