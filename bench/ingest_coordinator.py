"""The coordinator's side of bench.ingest: one verb a process.

    python -m bench.ingest_coordinator declare URL PREFIX                        the topology, for a bare consumer
    python -m bench.ingest_coordinator prepare RUN_DIR MODEL_BYTES COUNT         a run whose COUNT tasks are all out
    python -m bench.ingest_coordinator serve URL PREFIX RUN_DIR MODEL_BYTES COUNT [MAX_MESSAGE_BYTES [IDENTITY [CODEC]]]

`serve` is the real service, resumed on the prepared run. It prints "ready" once it consumes, and one JSON line at its
end: the time of the last update's ack (monotonic clock), CPU seconds until then, peak RSS, and the time of each commit.
"""

from __future__ import annotations

import json
import logging
import resource
import sys
import time
from pathlib import Path
from typing import Any

from bench.connection import options
from bench.publisher import model, participant
from fedmq.broker_config.amqp.transport import AmqpTransport
from fedmq.broker_config.topology import Topology
from fedmq.broker_config.transport import Delivery, OnDelivery
from fedmq.coordinator.decisions.commands import IssueTask
from fedmq.coordinator.decisions.events import ParticipantSeen
from fedmq.coordinator.service.commits.commit import Committer
from fedmq.coordinator.service.commits.effects import Pending
from fedmq.coordinator.service.service import CoordinatorService
from fedmq.coordinator.service.startup import open_core
from fedmq.coordinator.settings import CommitSettings, RunSettings, StopSettings, UplinkSettings
from fedmq.coordinator.state.checkpoint_files import CheckpointFiles
from fedmq.coordinator.state.ledger.writer import Ledger
from fedmq.coordinator.state.run_folder import RunFolder
from fedmq.coordinator.strategies import FedBuff
from fedmq.coordinator.uplink import uplink_codec
from fedmq.schemas.messages import Hello, TrainingConfig

RUN_ID = "ingest"
MAX_MESSAGE_BYTES = 2**27


def settings(count: int) -> RunSettings:
    return RunSettings(
        run_id=RUN_ID, concurrency=count, lease_s=3600, participant_timeout_s=3600, stop=StopSettings(max_updates=count)
    )


STRATEGY, TRAINING = FedBuff(buffer_size=10), TrainingConfig()


class TimedTransport(AmqpTransport):
    """A transport that says when it consumes updates, so the publishers start on time, and notes the last ack."""

    began_cpu_s = done_cpu_s = done_s = 0.0

    def consume(self, queue: str, on_delivery: OnDelivery, prefetch: int) -> None:
        super().consume(queue, on_delivery, prefetch)
        if queue.endswith(".updates"):
            self.began_cpu_s = time.process_time()
            print("ready", flush=True)

    def ack(self, delivery: Delivery) -> bool:
        acked = super().ack(delivery)
        if delivery.queue.endswith(".updates"):
            self.done_s, self.done_cpu_s = time.monotonic(), time.process_time()
        return acked


class CommitTimes(logging.Handler):
    """A log handler that collects the coordinator's commits: (updates, seconds)."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.commits: list[tuple[int, float]] = []
        coordinator = logging.getLogger("fedmq.coordinator")
        coordinator.setLevel(logging.DEBUG)
        coordinator.propagate = False
        coordinator.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        event, *fields = record.getMessage().split()
        if event == "event=commit":
            value = dict(field.split("=") for field in fields)
            self.commits.append((int(value["updates"]), float(value["took_s"])))


def declare(url: str, prefix: str) -> None:
    topology = Topology(prefix)
    transport = AmqpTransport(url, name="bench", max_message_bytes=MAX_MESSAGE_BYTES, **options())
    transport.open(topology.exchanges, topology.shared_queues, timeout_s=60)
    transport.close()


def prepare(run_dir: str, num_bytes: str, count: str) -> None:
    """Make the run folder of a coordinator that was killed with all its tasks out. Prints the run's uid."""
    folder, number = RunFolder(Path(run_dir)), int(count)
    folder.acquire("bench")
    with Ledger(folder.ledger) as ledger:
        ledger.take_over("bench", 0, 0.0)
        core = open_core(folder, ledger, run=settings(number), strategy=STRATEGY, training=TRAINING,
                         commit=CommitSettings(), initial_parameters=lambda: model(int(num_bytes)),
                         evaluates=False)  # fmt: skip
        out: dict[str, str] = {}
        for seq in range(1, number + 1):
            commands = core.step(ParticipantSeen(_hello(participant(seq))), 0.0)
            out.update({c.task_id: c.participant_id for c in commands if isinstance(c, IssueTask)})
        for task_id, name in out.items():  # they can send nothing that the run accepts, so none is asked again
            core.step(ParticipantSeen(_hello(name, replies=("parameters",), task_ids=(task_id,))), 0.0)
        run_uid = next(iter(out)).rsplit("-", 1)[0]
        if out != {f"{run_uid}-{seq}": participant(seq) for seq in range(1, number + 1)}:
            raise SystemExit(f"expected one task for each of {number} participants, got {len(out)}")
        files = CheckpointFiles.of(folder, CommitSettings(), RUN_ID, run_uid)
        Committer(files, ledger, 2).commit(core, Pending(), lambda: 0.0)
    folder.release()
    print(run_uid)


def _hello(participant_id: str, **fields: Any) -> Hello:
    return Hello(participant_id=participant_id, session_id="s", num_examples=10, **fields)


def serve(
    url: str, prefix: str, run_dir: str, num_bytes: str, count: str, most: str = str(MAX_MESSAGE_BYTES),
    identity: Any = "open", codec: str = "none",
) -> None:  # fmt: skip
    transport = TimedTransport(url, name="coordinator", max_message_bytes=int(most), **options())
    service = CoordinatorService(
        run_dir=Path(run_dir), run=settings(int(count)), commit=CommitSettings(), strategy=STRATEGY, training=TRAINING,
        connect=lambda: transport, topology=Topology(prefix), initial_parameters=lambda: model(int(num_bytes)),
        max_message_bytes=int(most), identity=identity,
        uplink=uplink_codec(UplinkSettings(codec=codec), STRATEGY.reply),
    )  # fmt: skip
    times = CommitTimes()
    summary = service.run()
    if summary.accepted != int(count):
        raise SystemExit(f"expected {count} accepted updates, got {summary.accepted}: {dict(summary.discarded)}")
    told = {
        "done_s": transport.done_s,
        "cpu_s": transport.done_cpu_s - transport.began_cpu_s,
        "rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "commits": times.commits,
    }
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR)
    {"declare": declare, "prepare": prepare, "serve": serve}[sys.argv[1]](*sys.argv[2:])
