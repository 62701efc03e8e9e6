"""SIGTERM to a process of its own, because only a main thread can have a signal handler."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.full import FULL

PROCESS = """
import pathlib, sys, threading
from fedmq.broker_config.embedded.transport import EmbeddedBroker, EmbeddedTransport
from fedmq.broker_config.topology import Topology
from fedmq.participant.service.service import ParticipantService
from fedmq.participant.settings import ParticipantSettings
from fedmq.schemas.messages import Hello
from tests.integration.participant.scripted import ScriptedCoordinator

class Endless:
    def train(self, parameters, config):
        print("training", flush=True)
        threading.Event().wait()

broker, topology = EmbeddedBroker(), Topology()
coordinator = ScriptedCoordinator(broker, topology)
threading.Thread(target=coordinator.issue, daemon=True).start()
service = ParticipantService(
    participant_id="sensor-1", settings=ParticipantSettings(), trainer=Endless(), topology=topology,
    transport=EmbeddedTransport(broker, "sensor-1"), spool_dir=pathlib.Path(sys.argv[1]), max_message_bytes=2**20,
)
print("ended", service.run(), flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT] if FULL else [signal.SIGTERM])
def test_a_signal_ends_a_participant_whose_trainer_never_returns_and_keeps_its_task(
    number: signal.Signals, tmp_path: Path
) -> None:
    process = subprocess.Popen([sys.executable, "-c", PROCESS, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process:
        assert process.stdout.readline() == "training\n"
        process.send_signal(number)
        assert process.stdout.readline() == "ended stopped\n"
        assert process.wait(30) == 0
    assert (tmp_path / "sensor-1" / "task.fedmq").exists()
