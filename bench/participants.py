"""Light participants for the benchmarks: real participant services in threads of one process, whose training sleeps.

    python -m bench.participants URL PREFIX SPOOL_DIR NAME SLEEP_S [SLEEP_S ...]

Each SLEEP_S makes one participant, NAME-0, NAME-1, ..., whose training sleeps for so many seconds. Ends with the run.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from pathlib import Path

from fedmq.broker_config.amqp.transport import AmqpTransport
from fedmq.broker_config.topology import Topology
from fedmq.participant.service.service import ParticipantService
from fedmq.participant.settings import ParticipantSettings
from fedmq.participant.trainer import TrainResult
from fedmq.schemas.messages import TrainingConfig
from fedmq.schemas.parameters import Parameters


class SleepingTrainer:
    """A trainer that gives its parameters back after `sleep_s` seconds."""

    num_examples = 10

    def __init__(self, sleep_s: float) -> None:
        self._sleep_s = sleep_s

    def train(self, parameters: Parameters, config: TrainingConfig) -> TrainResult:  # noqa: ARG002
        time.sleep(self._sleep_s)
        return TrainResult(parameters, self.num_examples, num_steps=1, metrics={"loss": 1.0})


def main() -> None:
    logging.basicConfig(level=logging.ERROR)
    url, prefix, spool_dir, name = sys.argv[1:5]
    services = [
        ParticipantService(
            participant_id=f"{name}-{i}",
            settings=ParticipantSettings(),
            trainer=SleepingTrainer(float(sleep_s)),
            transport=AmqpTransport(url, name=f"{name}-{i}", max_message_bytes=2**27),
            topology=Topology(prefix),
            spool_dir=Path(spool_dir),
            max_message_bytes=2**27,
        )
        for i, sleep_s in enumerate(sys.argv[5:])
    ]
    threads = [threading.Thread(target=service.run) for service in services]
    for thread in threads:
        thread.start()
    print("ready", flush=True)
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
