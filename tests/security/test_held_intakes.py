"""Uploads in chunks that never become whole, from a device with exactly its rights, beside a run of honest uploads.

Each attack goes on while the run is looked at: the device has a task of its own, announces an update for it, and then
keeps its payload queue busy.
"""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import ClassVar

import pika
import pytest
from pika.exceptions import AMQPError

from fedmq.coordinator.audit import audit
from fedmq.coordinator.state.ledger.reader import LedgerReader
from fedmq.coordinator.state.run_folder import RunFolder
from fedmq.schemas import chunks
from fedmq.schemas.codec import decode, encode
from fedmq.schemas.errors import PeerError
from fedmq.schemas.messages import ChunkedPayload, Hello, Task, Update, update_id
from tests.integration.chunks.federation import CHUNK_BYTES, RUN_ID, Federation
from tests.security.site import COORDINATOR, WAIT_S, Site
from tests.security.test_attacks import HONEST, Beside, until

pytestmark = pytest.mark.broker
ATTACKER = "aXb"
NUM_BYTES = 200_192
COUNT = -(-NUM_BYTES // CHUNK_BYTES)
SOON_S = 15.0
"""Time within which two more updates of each honest device count: the machine may be busy, a drip takes 20 s."""


class Device:
    """The attacker: it has a task, and announces one payload after the other for it. The task stays its own from test
    to test, because no payload of it becomes whole."""

    task: ClassVar[Task | None] = None

    def __init__(self, site: Site, channel: pika.adapters.blocking_connection.BlockingChannel) -> None:
        self.topology, self.channel = site.topology, channel
        self.published = 0
        self.over = threading.Event()
        queue = self.topology.participant(ATTACKER)
        channel.queue_declare(queue.name, durable=True, arguments=queue.arguments())
        self.send(
            self.topology.control_exchange.name, "control",
            encode(Hello(participant_id=ATTACKER, session_id=uuid.uuid4().hex, num_examples=10)),
        )  # fmt: skip
        task = Device.task = Device.task or self._task()
        self.task_id, self._base_version = task.task_id, task.base_version
        self.update_id = update_id(RUN_ID, self.task_id, ATTACKER)
        upload = self.topology.upload(ATTACKER, self.update_id)
        channel.queue_declare(upload.name, durable=True, arguments=upload.arguments())
        channel.queue_bind(upload.name, upload.exchange, upload.routing_key)
        self.upload = upload

    def _task(self) -> Task:
        until_s = time.monotonic() + WAIT_S
        while time.monotonic() < until_s:
            _, _, body = self.channel.basic_get(self.topology.participant(ATTACKER).name, auto_ack=True)
            with contextlib.suppress(PeerError):
                message = None if body is None else decode(body).message
                if isinstance(message, Task):
                    return message
            self.channel.connection.sleep(0.05)
        raise AssertionError("the attacker got no task")

    def send(self, exchange: str, key: str, body: bytes, headers: dict[str, object] | None = None) -> None:
        properties = pika.BasicProperties(user_id=ATTACKER, headers=headers)
        with contextlib.suppress(pika.exceptions.UnroutableError, pika.exceptions.NackError):
            self.channel.basic_publish(exchange, key, body, properties)
            self.published += 1

    def announce(self) -> str:
        """Send a manifest of a new payload, and return the payload's id."""
        payload_id = uuid.uuid4().hex
        manifest = ChunkedPayload(
            payload_id=payload_id, num_bytes=NUM_BYTES, chunk_bytes=CHUNK_BYTES, count=COUNT, digest="0" * 64
        )
        update = Update(
            update_id=self.update_id, task_id=self.task_id, run_id=RUN_ID, participant_id=ATTACKER,
            base_version=self._base_version, payload="delta", num_examples=1, num_steps=1, train_s=0.0, chunks=manifest,
        )  # fmt: skip
        upload = self.upload
        self.channel.queue_declare(upload.name, durable=True, arguments=upload.arguments())
        self.channel.queue_bind(upload.name, upload.exchange, upload.routing_key)
        self.send(self.topology.updates_exchange.name, "update", encode(update))
        return payload_id

    def chunk(self, payload_id: str, index: int) -> None:
        body = bytes(CHUNK_BYTES)
        self.send(
            self.upload.exchange, self.upload.routing_key, body,
            chunks.headers(payload_id, index, chunks.digest_of(body)),
        )  # fmt: skip

    def pause(self, seconds: float) -> None:
        self.over.wait(seconds)


def fills_its_queue_with_repeats(device: Device) -> None:
    payload_id = device.announce()
    for _ in range(1000):
        if device.over.is_set():
            return
        device.chunk(payload_id, 0)


def drips_one_chunk_after_the_other(device: Device) -> None:
    payload_id = device.announce()
    for index in range(COUNT - 1):
        if device.over.is_set():
            return
        device.chunk(payload_id, index)
        device.pause(0.8)


def announces_what_is_not_there(device: Device) -> None:
    payload_id = device.announce()
    for index in range(3):
        device.chunk(payload_id, index)
    device.pause(1.0)


ATTACKS: list[Callable[[Device], None]] = [
    fills_its_queue_with_repeats, drips_one_chunk_after_the_other, announces_what_is_not_there,
]  # fmt: skip


@pytest.fixture(scope="module")
def beside(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Beside]:
    federation = Federation(tmp_path_factory.mktemp("beside"), site.topology, site.transport)
    try:
        one = Beside(federation)
        until(lambda: all(one.accepted().values()))
        with site.raw(COORDINATOR) as channel:
            channel.exchange_declare(site.topology.upload_exchange(ATTACKER).name, "direct", durable=True)
        yield one
    finally:
        federation.close()
    site.clear()


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_honest_uploads_go_on_within_seconds(
    site: Site, beside: Beside, attack: Callable[[Device], None], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    begun, over = threading.Event(), threading.Event()
    devices: list[Device] = []

    def act() -> None:
        with contextlib.suppress(AMQPError), site.raw(ATTACKER) as channel:
            channel.confirm_delivery()
            device = Device(site, channel)
            device.over = over
            devices.append(device)
            begun.set()
            while not over.is_set():
                attack(device)

    thread = threading.Thread(target=act)
    thread.start()
    try:
        assert begun.wait(WAIT_S), "the attacker got no task"
        until(lambda: f"participant={ATTACKER}" in "".join(m for m in caplog.messages if "event=payload_" in m))
        until(lambda: devices[0].published >= 3)  # the hello, a manifest and a chunk: the attack is under way
        before = beside.accepted()
        until(lambda: all(count >= before[name] + 2 for name, count in beside.accepted().items()), SOON_S)
    finally:
        over.set()
        thread.join(WAIT_S)
    assert not beside.run.done()


def test_the_run_lost_nothing(beside: Beside) -> None:
    """The last test of the file."""
    beside.federation.stop_coordinator()
    assert [check for check in audit.verify(RunFolder(beside.federation.run_dir)) if not check.holds] == []
    with LedgerReader(beside.federation.run_dir / "ledger.sqlite") as ledger:
        assert set(ledger.accepted_by_participant()) == set(HONEST)
        records = {row.record.participant_id: row.record for row in ledger.participants()}
    assert [records[name].discarded for name in HONEST] == [0, 0]
