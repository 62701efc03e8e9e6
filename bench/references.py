"""Tasks that refer to one model in a stream, against tasks that each carry it: the broker's disk, and who sends what.

    python -m bench.references [--megabytes 5] [--participants 20] [--quick]

A real coordinator runs against a private RabbitMQ node. Its participants are queues: they have said hello, and take
nothing. So all tasks of version 0 wait on the broker, and its data folder has grown by what they cost. The bytes that
the coordinator sent are those that the broker has received on its connections. Then each participant reads its task,
and the model that it refers to.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

import numpy as np

from bench.report import Row, print_table
from fedmq.broker_config.amqp.transport import AmqpTransport
from fedmq.broker_config.node.node import PrivateNode
from fedmq.broker_config.topology import MAX_MESSAGE_BYTES, Topology
from fedmq.broker_config.transport import Delivery, Message
from fedmq.coordinator.service.service import CoordinatorService
from fedmq.coordinator.service.summary import RunSummary
from fedmq.coordinator.settings import CommitSettings, DownlinkSettings, RunSettings, StopSettings
from fedmq.coordinator.strategies import FedBuff
from fedmq.schemas.codec import decode, encode
from fedmq.schemas.codecs.known import capabilities
from fedmq.schemas.messages import Hello, Task, TrainingConfig
from fedmq.schemas.parameters import Parameters

MB = 1_000_000
TARGET = 0.1
"""Largest part of the inline tasks' bytes that tasks by reference may cost."""
DEADLINE_S = 120.0


@dataclass(frozen=True)
class Costs:
    """Bytes for the tasks of one version."""

    disk: int
    """Growth of the broker's data folder."""
    sent: int
    """Bytes from the coordinator to the broker."""
    read: int
    """Bytes that the participants read."""
    seconds: float
    """Time from the hellos to the last task on the broker."""


def size_of(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


def received(node: PrivateNode, name: str) -> int:
    """Return the bytes that the broker has received on the connections of a transport."""
    table = node.ctl("list_connections", "--no-table-headers", "client_properties", "recv_oct")
    return sum(int(line.rsplit(None, 1)[1]) for line in table.splitlines() if f'"{name} ' in line)


def until(condition: Callable[[], bool]) -> None:
    """Ask until the condition holds."""
    pause, deadline_s = threading.Event(), time.monotonic() + DEADLINE_S
    while not condition():
        if time.monotonic() > deadline_s:
            raise SystemExit(f"not so within {DEADLINE_S:g} s")
        pause.wait(0.05)


def measure(reference: str, model_bytes: int, participants: int) -> Costs:
    """Return what the tasks of version 0 cost on a node of their own."""
    with (
        tempfile.TemporaryDirectory(prefix="fedmq-bench-") as folder,
        PrivateNode(Path(folder) / "node", overrides={"max_message_size": str(MAX_MESSAGE_BYTES)}) as node,
    ):
        topology = Topology()
        names = [f"p{number}" for number in range(participants)]
        service = CoordinatorService(
            run_dir=Path(folder) / "run",
            run=RunSettings(
                run_id="bench",
                concurrency=participants,
                min_participants=participants,
                stop=StopSettings(max_versions=9),
            ),
            commit=CommitSettings(),
            strategy=FedBuff(buffer_size=participants),
            training=TrainingConfig(),
            connect=lambda: AmqpTransport(node.url, name="coordinator"),
            topology=topology,
            initial_parameters=lambda: random_model(model_bytes),
            max_message_bytes=MAX_MESSAGE_BYTES,
            downlink=DownlinkSettings(reference=reference),  # type: ignore[arg-type]
        )
        ended: Future[RunSummary] = Future()
        thread = threading.Thread(target=lambda: ended.set_result(service.run()))
        thread.start()
        people = AmqpTransport(node.url, name="people")
        queues = [topology.participant(name) for name in names]
        people.open(topology.seen_exchanges, (*queues, *topology.seen_queues), timeout_s=DEADLINE_S)
        disk, sent, began_s = size_of(Path(folder) / "node"), received(node, "coordinator"), time.monotonic()
        for name in names:
            hello = Hello(participant_id=name, session_id=name, num_examples=10, codecs=capabilities())
            control = topology.control
            people.publish(Message(control.exchange, control.routing_key, encode(hello), f"hello-{name}")).result(30)
        until(lambda: all(people.depth(queue.name) for queue in queues))
        seconds = time.monotonic() - began_s
        disk, sent = size_of(Path(folder) / "node") - disk, received(node, "coordinator") - sent
        read = sum(read_by(people, topology, name) for name in names)
        people.close()
        service.stop()
        ended.result(DEADLINE_S)
        thread.join()
    return Costs(disk, sent, read, seconds)


def random_model(num_bytes: int) -> Parameters:
    rng = np.random.default_rng(0)
    return Parameters({f"{i:03}/w": rng.random(num_bytes // 40, np.float32) for i in range(10)})


def read_by(transport: AmqpTransport, topology: Topology, name: str) -> int:
    """Return the bytes of a participant's task, and of the model that it refers to."""
    came: SimpleQueue[Delivery] = SimpleQueue()
    transport.consume(topology.participant(name).name, came.put, 1)
    delivery = came.get(timeout=DEADLINE_S)
    transport.stop_consuming(topology.participant(name).name)
    task, num_bytes = decode(delivery.body).message, len(delivery.body)
    if isinstance(task, Task) and task.reference is not None and task.chunks is not None:
        transport.consume(topology.models_name, came.put, task.chunks.count, task.reference.offset + 1)
        num_bytes += sum(len(came.get(timeout=DEADLINE_S).body) for _ in range(task.chunks.count))
        transport.stop_consuming(topology.models_name)
    return num_bytes


def main() -> None:
    logging.basicConfig(level=logging.ERROR)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=5.0)
    parser.add_argument("--participants", type=int, default=20)
    parser.add_argument("--quick", action="store_true", help="the same: it takes a few seconds")
    options = parser.parse_args()
    costs = {how: measure(how, int(options.megabytes * MB), options.participants) for how in ("never", "auto")}
    whole, shared = costs["never"], costs["auto"]

    def row(what: str, by_reference: int, inline: int, target: float) -> Row:
        shown = f"{by_reference / MB:.1f} MB", f"{inline / MB:.1f} MB"
        return Row(what, *shown, by_reference / inline, target, at_least=False)

    rows = [
        row("the broker's disk", shared.disk, whole.disk, TARGET),
        row("sent by the coordinator", shared.sent, whole.sent, TARGET),
        row("read by the participants", shared.read, whole.read, 1.01),
    ]
    title = f"bench/references: {options.participants} tasks of {options.megabytes:g} MB, by reference against whole"
    print_table(f"{title} ({shared.seconds:.1f} s against {whole.seconds:.1f} s)", rows)


if __name__ == "__main__":
    main()
