"""One publisher process of bench.ingest: it publishes the updates of tasks that are already out, without training.

    python -m bench.publisher URL PREFIX RUN_ID RUN_UID MODEL_BYTES FIRST COUNT STEP [IDENTITY [CODEC]]

Task number s belongs to participant p<s>. With IDENTITY "user" its update is of the user p<s>. The broker lets a user
with the tag `impersonator` say so. With CODEC "int8" the updates are coded. Prints "ready", waits for a line on stdin,
publishes the updates of tasks FIRST, FIRST+STEP, ... and exits once all of them are confirmed.
"""

from __future__ import annotations

import sys
from concurrent.futures import Future, wait
from typing import Any

import numpy as np

from bench.connection import options
from fedmq.broker_config.amqp.transport import AmqpTransport
from fedmq.broker_config.topology import Topology
from fedmq.broker_config.transport import Message
from fedmq.schemas.codec import encode
from fedmq.schemas.codecs.known import codec_of
from fedmq.schemas.codecs.wire import Wire
from fedmq.schemas.messages import SCHEMA_VERSION, Update, Uplink, update_id
from fedmq.schemas.parameters import Parameters
from fedmq.schemas.tensors import spec_of

UNCONFIRMED = 8
"""Most updates that are published and not confirmed."""


def model(num_bytes: int, value: float = 0.0) -> Parameters:
    """Return a model of this size: a few float32 tensors, like those of a small network."""
    count = num_bytes // 4
    shares = {"000/kernel": count - count // 8 - count // 64, "001/kernel": count // 8, "002/bias": count // 64}
    return Parameters({name: np.full(size, value, np.float32) for name, size in shares.items()})


def participant(seq: int) -> str:
    return f"p{seq}"


def coded(payload: Parameters, codec: str) -> Parameters:
    """Return an update's tensors as they travel in this codec; "none" leaves them as they are."""
    if codec == "none":
        return payload
    found = codec_of(Uplink(codec=codec))
    assert found is not None
    return Wire(found, False, spec_of(payload)).encode(payload, 1, None, {}).tensors


def body(run_id: str, run_uid: str, seq: int, payload: Parameters, codec: str = "none") -> tuple[str, str, bytes]:
    """Return (update_id, task_id, encoded update) of task number `seq`."""
    task_id = f"{run_uid}-{seq}"
    identity = update_id(run_id, task_id, participant(seq))
    update = Update(
        update_id=identity,
        task_id=task_id,
        run_id=run_id,
        participant_id=participant(seq),
        base_version=0,
        payload="delta",
        num_examples=10,
        num_steps=1,
        metrics={"loss": 0.5},
        train_s=0.0,
        codec=None if codec == "none" else codec,
    )
    return identity, task_id, encode(update, payload)


class Impersonator(AmqpTransport):
    """A transport whose every message is of the user that the header "user" names."""

    def __init__(self, url: str, name: str) -> None:
        super().__init__(url, name=name, max_message_bytes=2**27, **options())
        plain = self._driver.properties

        def properties(message: Message) -> Any:
            found = plain(message)
            found.user_id = str(message.headers["user"])
            return found

        self._publisher._properties = properties


def main() -> None:
    url, prefix, run_id, run_uid = sys.argv[1:5]
    num_bytes, first, count, step = map(int, sys.argv[5:9])
    topology = Topology(prefix)
    identity, codec = [*sys.argv[9:], *("open", "none")[len(sys.argv[9:]) :]]
    if identity == "user":
        transport: AmqpTransport = Impersonator(url, f"publisher-{first}")
    else:
        transport = AmqpTransport(url, name=f"publisher-{first}", max_message_bytes=2**27, **options())
    transport.open(topology.exchanges, topology.shared_queues, timeout_s=60)
    payload = coded(model(num_bytes, 1e-3), codec)
    print("ready", flush=True)
    sys.stdin.readline()
    pending: set[Future[None]] = set()
    for seq in range(first, first + count * step, step):
        name, task_id, encoded = body(run_id, run_uid, seq, payload, codec)
        message = Message(
            exchange=topology.updates_exchange.name,
            routing_key=topology.updates.routing_key,
            body=encoded,
            message_id=name,
            correlation_id=task_id,
            headers={"schema_version": SCHEMA_VERSION, "kind": "update", "user": participant(seq)},
        )
        pending.add(transport.publish(message, timeout_s=120))
        while len(pending) >= UNCONFIRMED:
            done, pending = wait(pending, return_when="FIRST_COMPLETED")
            for future in done:
                future.result()
    for future in pending:
        future.result()
    transport.close()


if __name__ == "__main__":
    main()
