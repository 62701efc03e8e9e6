"""Full rounds with a model far above the message limit: the coordinator's RAM, and the speed of payloads both ways.

    python -m bench.large_model [--megabytes 500] [--participants 3] [--versions 2] [--quick]

A private RabbitMQ node has RabbitMQ 4's default message limit (16 MiB). A real coordinator runs in a process of its
own: FedBuff, and one update of each participant makes a version. Each participant is a real service in a process of its
own. Its training does nothing, so all uploads come at once. Peak RSS is the coordinator's own, in model sizes. About
125 MB of it do not grow with the model: the process, and chunks that are out and unconfirmed. With less than 300 MB
they would hide the models, so they are left out there.
"""

from __future__ import annotations

import argparse
import json
import logging
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from bench.report import Row, print_table
from fedmq.broker_config.amqp.transport import AmqpTransport
from fedmq.broker_config.node.node import PrivateNode
from fedmq.broker_config.topology import MAX_MESSAGE_BYTES, Topology
from fedmq.coordinator.service.service import CoordinatorService
from fedmq.coordinator.settings import CommitSettings, RunSettings, StopSettings
from fedmq.coordinator.strategies import FedBuff
from fedmq.participant.service.service import ParticipantService
from fedmq.participant.settings import ParticipantSettings
from fedmq.participant.trainer import TrainResult
from fedmq.schemas.messages import TrainingConfig
from fedmq.schemas.parameters import Parameters

MB = 1_000_000
RSS_TARGET = 3.5
"""Most peak RSS of the coordinator, in model sizes."""
BESIDE_MB = 125
"""RSS beside the models: 63 MB after the imports, and the publisher's window of 64 MiB."""
LARGE_MB = 300
"""Size of a model from which on all RSS counts."""
TENSORS = 20
DEADLINE_S = 3600.0


def model(num_bytes: int) -> Parameters:
    """Return float32 tensors of equal size. They are ones, because pages of zeros would cost no RAM."""
    return Parameters({f"{i:03}/w": np.ones(num_bytes // 4 // TENSORS, np.float32) for i in range(TENSORS)})


class NullTrainer:
    """A trainer that gives its parameters back."""

    num_examples = 10

    def train(self, parameters: Parameters, config: TrainingConfig) -> TrainResult:  # noqa: ARG002
        return TrainResult(parameters, self.num_examples, num_steps=1, metrics={"loss": 1.0})


def coordinator(url: str, folder: str, num_bytes: str, participants: str, versions: str) -> None:
    """Run the coordinator. Prints one JSON line at the end."""
    service = CoordinatorService(
        run_dir=Path(folder) / "run",
        run=RunSettings(
            run_id="large", concurrency=int(participants), min_participants=int(participants), lease_s=DEADLINE_S,
            participant_timeout_s=DEADLINE_S, stop=StopSettings(max_versions=int(versions)),
        ),
        commit=CommitSettings(),
        strategy=FedBuff(buffer_size=int(participants)),
        training=TrainingConfig(),
        connect=lambda: AmqpTransport(url, name="coordinator"),
        topology=Topology(),
        initial_parameters=lambda: model(int(num_bytes)),
        max_message_bytes=MAX_MESSAGE_BYTES,
    )  # fmt: skip
    summary = service.run()
    told = {
        "accepted": summary.accepted,
        "discarded": dict(summary.discarded),
        "rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MB,
    }
    print(json.dumps(told), flush=True)


def participant(url: str, folder: str, name: str) -> None:
    """Run a participant until the run is over."""
    ParticipantService(
        participant_id=name,
        settings=ParticipantSettings(),
        trainer=NullTrainer(),
        transport=AmqpTransport(url, name=name),
        topology=Topology(),
        spool_dir=Path(folder) / "spool",
        max_message_bytes=MAX_MESSAGE_BYTES,
    ).run()


def measure(num_bytes: int, participants: int, versions: int) -> tuple[float, float]:
    """Return (seconds, the coordinator's peak RSS in MB) of a whole run."""
    limits = {"max_message_size": str(MAX_MESSAGE_BYTES)}
    with (
        tempfile.TemporaryDirectory(prefix="fedmq-bench-") as folder,
        PrivateNode(Path(folder) / "node", overrides=limits) as node,
    ):
        own = [sys.executable, "-m", "bench.large_model", "--as"]
        others = [subprocess.Popen([*own, "participant", node.url, folder, f"p{i}"]) for i in range(participants)]
        began_s = time.monotonic()
        arguments = [node.url, folder, str(num_bytes), str(participants), str(versions)]
        try:
            done = subprocess.run(
                [*own, "coordinator", *arguments], stdout=subprocess.PIPE, text=True, check=True, timeout=DEADLINE_S
            )
            seconds = time.monotonic() - began_s
        finally:
            for other in others:
                try:
                    other.wait(60)
                except subprocess.TimeoutExpired:
                    other.kill()
                    other.wait()
    told = json.loads(done.stdout)
    if told["accepted"] != participants * versions:
        raise SystemExit(f"expected {participants * versions} accepted updates, got {told}")
    return seconds, told["rss_mb"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=500)
    parser.add_argument("--participants", type=int, default=3)
    parser.add_argument("--versions", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="100 MB, one version")
    options = parser.parse_args()
    size, versions = (100, 1) if options.quick else (options.megabytes, options.versions)
    seconds, rss_mb = measure(size * MB, options.participants, versions)
    moved = 2 * options.participants * versions * size
    what, counted_mb = f"{versions} versions of {size} MB, {options.participants} participants: peak RSS", rss_mb
    if size < LARGE_MB:
        what, counted_mb = f"{what} above {BESIDE_MB} MB", rss_mb - BESIDE_MB
    print_table(
        f"bench/large_model: {moved} MB of tasks and updates in {seconds:.0f} s, {moved / seconds:.0f} MB/s",
        [Row(what, f"{counted_mb:.0f} MB", f"{size} MB", counted_mb / size, RSS_TARGET, at_least=False)],
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--as"]:
        logging.basicConfig(level=logging.WARNING)
        {"coordinator": coordinator, "participant": participant}[sys.argv[2]](*sys.argv[3:])
    else:
        main()
