from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fedmq.broker_config.embedded.transport import EmbeddedBroker, EmbeddedTransport
from fedmq.broker_config.topology import MAX_MESSAGE_BYTES, Topology
from fedmq.participant.service.service import ParticipantService
from fedmq.participant.settings import ParticipantSettings
from tests.integration.participant.scripted import DEADLINE_S, ScriptedCoordinator

TOPOLOGY = Topology()


class Running:
    """A participant on a thread of its own."""

    def __init__(self, service: ParticipantService) -> None:
        self.service = service
        self.ended: str | None = None
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.ended = self.service.run()
        except BaseException as error:  # noqa: BLE001  handed to the test's thread
            self.error = error

    def wait(self) -> str | None:
        """Wait for the end. Return the reason, or raise what the participant raised."""
        self.thread.join(DEADLINE_S)
        assert not self.thread.is_alive(), "the participant did not end"
        if self.error is not None:
            raise self.error
        return self.ended

    def stop(self) -> str | None:
        self.service.stop()
        return self.wait()


@pytest.fixture
def broker() -> EmbeddedBroker:
    return EmbeddedBroker()


@pytest.fixture
def coordinator(broker: EmbeddedBroker) -> Iterator[ScriptedCoordinator]:
    scripted = ScriptedCoordinator(broker, TOPOLOGY)
    yield scripted
    scripted.transport.close()


@pytest.fixture
def start(broker: EmbeddedBroker, tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """Return start(trainer, ...), which runs a participant "sensor-1" with its spool below tmp_path."""
    started: list[Running] = []

    def start_one(trainer: Any, **options: Any) -> Running:
        values: dict[str, Any] = {
            "participant_id": "sensor-1",
            "settings": ParticipantSettings(),
            "transport": EmbeddedTransport(broker, "sensor-1"),
            "topology": TOPOLOGY,
            "spool_dir": tmp_path / "spool",
            "max_message_bytes": MAX_MESSAGE_BYTES,
        }
        running = Running(ParticipantService(trainer=trainer, **values | options))
        started.append(running)
        return running

    yield start_one
    for running in started:
        running.service.stop()
        running.thread.join(DEADLINE_S)
