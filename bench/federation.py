"""A coordinator process for the benchmarks that need a whole federation, and the function that runs one.

    python -m bench.federation URL PREFIX RUN_DIR MODEL_BYTES BUFFER_SIZE CONCURRENCY MAX_UPDATES BUDGET_BYTES

Prints "ready", and at its end one JSON line with its peak RSS.
"""

from __future__ import annotations

import json
import logging
import resource
import subprocess
import sys
import uuid
from dataclasses import dataclass
from pathlib import Path

from bench.ingest import spawn
from bench.publisher import model
from fedmq.broker_config.amqp.transport import AmqpTransport
from fedmq.broker_config.node.node import PrivateNode
from fedmq.broker_config.topology import Topology
from fedmq.coordinator.service.service import CoordinatorService
from fedmq.coordinator.settings import CommitSettings, RunSettings, StopSettings
from fedmq.coordinator.state.ledger.reader import LedgerReader
from fedmq.coordinator.state.run_folder import RunFolder
from fedmq.coordinator.strategies import FedBuff
from fedmq.schemas.messages import TrainingConfig


@dataclass(frozen=True)
class Federation:
    """The federation to run. `processes` has one list of training durations (s) for each process of participants."""

    processes: list[list[float]]
    max_updates: int
    model_bytes: int = 100_000
    buffer_size: int = 10
    memory_budget_bytes: int = 128 * 1024**2


@dataclass(frozen=True)
class Outcome:
    rss_mb: float
    arrivals_s: list[float]
    """Run times, in seconds, at which the updates were accepted."""


def run(node: PrivateNode, federation: Federation, work_dir: Path) -> Outcome:
    """Run the federation to its end over the node's broker."""
    prefix = f"bench-{uuid.uuid4().hex[:8]}"
    folder = work_dir / prefix
    participants = sum(len(p) for p in federation.processes)
    coordinator = spawn(
        "bench.federation", node.url, prefix, str(folder / "run"), str(federation.model_bytes),
        str(federation.buffer_size), str(participants), str(federation.max_updates),
        str(federation.memory_budget_bytes),
    )  # fmt: skip
    hosts: list[subprocess.Popen[str]] = [
        spawn("bench.participants", node.url, prefix, str(folder / "spool"), f"p{i}", *map(str, durations))
        for i, durations in enumerate(federation.processes)
    ]
    assert coordinator.stdout is not None
    told = json.loads(coordinator.stdout.readline())
    for child in (coordinator, *hosts):
        if child.wait(timeout=120) != 0:
            raise SystemExit(f"a process of the benchmark failed: {child.args}")
    with LedgerReader(RunFolder(folder / "run").ledger) as ledger:
        arrivals_s = [row.run_s for row in ledger.updates()]
    return Outcome(told["rss_mb"], arrivals_s)


def main() -> None:
    logging.basicConfig(level=logging.ERROR)
    url, prefix, run_dir = sys.argv[1:4]
    model_bytes, buffer_size, concurrency, max_updates, budget_bytes = map(int, sys.argv[4:9])
    settings = RunSettings(run_id="bench", concurrency=concurrency, min_participants=concurrency,
                           stop=StopSettings(max_updates=max_updates))  # fmt: skip
    service = CoordinatorService(
        run_dir=Path(run_dir),
        run=settings,
        commit=CommitSettings(memory_budget_bytes=budget_bytes),
        strategy=FedBuff(buffer_size=buffer_size),
        training=TrainingConfig(),
        connect=lambda: AmqpTransport(url, name="coordinator", max_message_bytes=2**27),
        topology=Topology(prefix),
        initial_parameters=lambda: model(model_bytes),
        max_message_bytes=2**27,
    )
    print("ready", flush=True)
    service.run()
    print(json.dumps({"rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}), flush=True)


if __name__ == "__main__":
    main()
