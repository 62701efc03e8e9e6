"""A device of the federation that keeps the chunks of its own update back, beside honest devices that upload theirs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import pytest

from fedmq.coordinator.service import intake
from fedmq.coordinator.state.ledger.reader import LedgerReader, open_if_made
from fedmq.schemas.codec import decode, encode
from fedmq.schemas.messages import ChunkedPayload, Hello, Task
from tests.integration.chunks.federation import Federation
from tests.security.attacks import Attacker, forged
from tests.security.site import COORDINATOR, Site, until

pytestmark = pytest.mark.broker
TURN_S = 0.5
NUM_BYTES, CHUNK_BYTES = 200_192, 8192


@pytest.fixture
def federation(site: Site, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Federation]:
    monkeypatch.setattr(intake, "TURN_S", TURN_S)
    made = Federation(tmp_path, site.topology, site.transport)
    try:
        yield made
    finally:
        made.close()
    site.clear()


def task_of(attacker: Attacker, channel: Any) -> Task:
    """Say hello as any device does, and return the task that comes."""
    queue = attacker.topology.participant(attacker.name)
    channel.queue_declare(queue.name, durable=True, arguments=queue.arguments())
    got: list[Task] = []

    def look() -> bool:
        method, _, body = channel.basic_get(queue.name, auto_ack=True)
        if method is not None and isinstance(found := decode(body).message, Task):
            got.append(found)
        return bool(got)

    hello = Hello(participant_id=attacker.name, session_id="s", num_examples=1, accepting=True)
    assert attacker.say(channel, encode(hello))
    until(look)
    return got[0]


@pytest.mark.parametrize("keeps", ["by a consumer of its own", "by an endless row of copies"])
def test_chunks_that_a_device_keeps_back_hold_no_other_update_up(
    site: Site, federation: Federation, keeps: str
) -> None:
    run_dir = federation.run_dir
    ended = federation.coordinator(versions=1_000, buffer_size=1, identity="user")
    attacker = Attacker(site, "sensor-2", "sensor", list)
    with site.raw(COORDINATOR) as admin, attacker.channel() as channel:
        admin.exchange_declare(site.topology.upload_exchange("sensor-2").name, "direct", durable=True)
        until(lambda: open_if_made(run_dir / "ledger.sqlite") is not None)
        task = task_of(attacker, channel)
        update = forged(task.task_id, attacker.name).model_copy(update={"base_version": task.base_version})
        queue = attacker.own(update.update_id)
        chunks = ChunkedPayload(
            payload_id="mine", num_bytes=NUM_BYTES, chunk_bytes=CHUNK_BYTES, count=25, digest="0" * 64
        )
        channel.queue_declare(queue, durable=True, arguments={"x-expires": 600_000})
        exchange = site.topology.upload_exchange(attacker.name).name
        channel.queue_bind(queue, exchange, queue)
        body = bytes(CHUNK_BYTES)
        headers: dict[str, Any] = {"payload_id": "mine", "chunk": 0, "digest": hashlib.sha256(body).hexdigest()}
        for _ in range(20):
            assert attacker.send(channel, body, exchange, queue, headers=headers)
        if keeps == "by a consumer of its own":
            channel.basic_qos(prefetch_count=1)
            channel.basic_consume(queue, lambda *_: None, exclusive=True)
        manifest = encode(update.model_copy(update={"chunks": chunks}))
        assert attacker.upload(channel, manifest)
        federation.participant("sensor", coordinator_user=COORDINATOR)

        def counts() -> bool:
            if keeps == "by an endless row of copies":
                for _ in range(20):
                    attacker.send(channel, body, exchange, queue, headers=headers)
            else:
                channel.connection.process_data_events(0)
            with LedgerReader(run_dir / "ledger.sqlite") as ledger:
                return ledger.accepted_by_participant().get("sensor", 0) >= 2

        until(counts)
        assert not ended.done()
        with LedgerReader(run_dir / "ledger.sqlite") as ledger:
            assert ledger.accepted_by_participant().keys() == {"sensor"}
