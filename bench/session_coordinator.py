"""The coordinator of bench.sessions.

    python -m bench.session_coordinator URL PREFIX RUN_DIR SESSIONS UPDATES BROKER_PID

Prints "ready", and at its end one JSON line. Its times are of the monotonic clock, which all processes share.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

from bench.connection import FLEET, options
from bench.publisher import model
from fedmq.broker_config.amqp.transport import AmqpTransport
from fedmq.broker_config.topology import MAX_MESSAGE_BYTES, Topology
from fedmq.broker_config.transport import Delivery
from fedmq.coordinator.service.service import CoordinatorService
from fedmq.coordinator.settings import CommitSettings, RunSettings, StopSettings
from fedmq.coordinator.strategies import FedBuff
from fedmq.fleet import certificates
from fedmq.fleet.folder import FleetFolder
from fedmq.fleet.inventory import Inventory
from fedmq.run.enrolled import LOOK_S
from fedmq.schemas.messages import TrainingConfig

UPDATE_BYTES = 10_000
PATIENCE_S = 300.0
"""Seconds that a thousand sessions may take to connect, or a task to be answered."""


class AckedTransport(AmqpTransport):
    """A transport that notes the time of each update's ack, and the CPU time before and after the measured updates."""

    def watch(self, warm_up: int, measured: int, broker_pid: int) -> None:
        self._marks, self._broker_pid = (warm_up, warm_up + measured), broker_pid
        self.acked: dict[str, float] = {}
        self.spent: list[tuple[float, float, float]] = []
        """(time, CPU seconds of this process, CPU seconds of the broker)"""

    def ack(self, delivery: Delivery) -> bool:
        acked = super().ack(delivery)
        if delivery.queue.endswith(".updates") and delivery.correlation_id is not None:
            self.acked[delivery.correlation_id] = time.monotonic()
            if len(self.acked) in self._marks:
                self.spent.append((time.monotonic(), time.process_time(), broker_cpu_s(self._broker_pid)))
        return acked


def broker_cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def broker_rss_mb(pid: int) -> float:
    """Return the broker's peak RSS."""
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024


def checks() -> dict[str, Any]:
    """Return what a coordinator of a fleet does besides: it checks each sender, asks the inventory and signs tasks."""
    path = os.environ.get(FLEET)
    if path is None:
        return {}
    folder = FleetFolder(Path(path))
    sign = certificates.signer(folder.signing_key.read_text())
    return {"identity": "user", "members": Inventory(folder.inventory, LOOK_S), "sign": sign}


def coordinator(url: str, prefix: str, run_dir: str, sessions: str, updates: str, broker_pid: str) -> None:
    count, pid = int(sessions), int(broker_pid)
    transport = AckedTransport(url, name="coordinator", **options())
    transport.watch(count, int(updates), pid)
    service = CoordinatorService(
        run_dir=Path(run_dir),
        run=RunSettings(
            run_id="sessions", concurrency=count, min_participants=count, lease_s=PATIENCE_S,
            participant_timeout_s=PATIENCE_S, stop=StopSettings(max_updates=count + int(updates)),
        ),
        commit=CommitSettings(),
        strategy=FedBuff(buffer_size=10),
        training=TrainingConfig(),
        connect=lambda: transport,
        topology=Topology(prefix),
        initial_parameters=lambda: model(UPDATE_BYTES),
        max_message_bytes=MAX_MESSAGE_BYTES,
        **checks(),
    )  # fmt: skip
    print("ready", flush=True)
    service.run()
    measured = list(transport.acked.items())[count : count + int(updates)]
    seconds, cpu_s, of_broker_s = (after - before for before, after in zip(*transport.spent[:2], strict=True))
    told = {
        "seconds": seconds,
        "cpu_s": cpu_s,
        "broker_cpu_s": of_broker_s,
        "rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "broker_rss_mb": broker_rss_mb(pid),
        "committed": dict(measured),
    }
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR)
    coordinator(*sys.argv[1:])
