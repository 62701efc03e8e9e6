"""Speed of the coordinator with updates in chunks, against a stock pika consumer of the same chunks.

    python -m bench.chunked_ingest [--megabytes 200] [--updates 10] [--quick]

All updates are uploaded first, each into a queue of its own, in the way of participants. Then the clock runs from the
start of consuming to the last ack. The stock pika consumer (4 KiB socket reads) reads one queue after the other and
only acks. The real coordinator checks, assembles, decodes, aggregates (FedBuff) and commits. They take turns, and the
best of each counts.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from queue import SimpleQueue

import pika

from bench.ingest import MB, Outcome, commits_text, outcome_of, spawn
from bench.ingest_coordinator import RUN_ID
from bench.publisher import body, model, participant
from bench.report import Row, print_table
from fedmq.broker_config.amqp.transport import AmqpTransport, remove
from fedmq.broker_config.chunks.sender import ChunkSender, News
from fedmq.broker_config.node.node import PrivateNode
from fedmq.broker_config.topology import MAX_MESSAGE_BYTES, Topology
from fedmq.broker_config.transport import Message
from fedmq.schemas.chunks import Pieces
from fedmq.schemas.codec import decode, encode
from fedmq.schemas.errors import FedmqError
from fedmq.schemas.limits import CHUNK_BYTES, MAX_PAYLOAD_BYTES, Limits
from fedmq.schemas.messages import SCHEMA_VERSION, ChunkedPayload, Update

TARGET = 0.8
REPEATS = 3


def upload(url: str, prefix: str, run_uid: str, num_bytes: str, count: str) -> None:
    """Upload each update into its queue, then publish its manifest."""
    topology = Topology(prefix)
    transport = AmqpTransport(url, name="uploader")
    owners = {participant(seq) for seq in range(1, int(count) + 1)}
    exchanges = (*topology.exchanges, *map(topology.upload_exchange, owners))
    transport.open(exchanges, topology.shared_queues, timeout_s=60)
    payload = model(int(num_bytes), 1e-3)
    for seq in range(1, int(count) + 1):
        identity, task_id, encoded = body(RUN_ID, run_uid, seq, payload)
        pieces, news, done = Pieces([encoded]), SimpleQueue[News](), list[ChunkedPayload | BaseException]()
        queue = topology.upload(participant(seq), identity)
        ChunkSender(
            transport, queue, payload_id=identity, task_id=task_id, num_bytes=pieces.num_bytes, chunk_bytes=CHUNK_BYTES,
            read=pieces.read, put=news.put, on_done=done.append,
        ).begin()  # fmt: skip
        while not done:
            found = news.get()
            found.sender.on_news(found)
        chunks = done[0]
        if isinstance(chunks, BaseException):
            raise SystemExit(f"an upload failed: {chunks}")
        message = Message(
            exchange=topology.updates_exchange.name, routing_key=topology.updates.routing_key,
            body=encode(_manifest(encoded, chunks)), message_id=identity, correlation_id=task_id,
            headers={"schema_version": SCHEMA_VERSION, "kind": "update"},
        )  # fmt: skip
        transport.publish(message).result(60)
    transport.close()


def _manifest(encoded: bytes, chunks: ChunkedPayload) -> Update:
    message = decode(encoded, Limits(max_body_bytes=MAX_PAYLOAD_BYTES), check_finite=False).message
    if not isinstance(message, Update):
        raise FedmqError("an update was expected")
    return message.model_copy(update={"chunks": chunks})


def stock(url: str, count: str, *queues: str) -> None:
    """Consume `count` chunks of each queue, one queue after the other."""
    connection = pika.BlockingConnection(pika.URLParameters(url))
    channel = connection.channel()
    channel.basic_qos(prefetch_count=int(count))
    print("ready", flush=True)
    cpu_s = time.process_time()
    for queue in queues:
        for seen, (method, _, _) in enumerate(channel.consume(queue, inactivity_timeout=120), start=1):
            if method is None:
                sys.exit(f"no delivery within 120 s after {seen - 1} of {count}")
            channel.basic_ack(method.delivery_tag)
            if seen == int(count):
                break
        channel.cancel()
    print(json.dumps({"done_s": time.monotonic(), "cpu_s": time.process_time() - cpu_s}), flush=True)
    connection.close()


class Rig:
    """One model size on one node. Each measurement has queues and a run of its own, which are gone afterwards."""

    def __init__(self, node: PrivateNode, num_bytes: int, count: int, work_dir: Path) -> None:
        self._node = node
        self._num_bytes = str(num_bytes)
        self._count = count
        self._work_dir = work_dir

    def stock(self) -> Outcome:
        """Measure a pika consumer that only acks."""
        topology, run_uid = Topology(f"bench-{uuid.uuid4().hex[:8]}"), "00000000"
        queues = self._queues(topology, run_uid)
        chunks = str(-(-(int(self._num_bytes) + 1024) // CHUNK_BYTES))
        consumer = ["bench.chunked_ingest", "--as", "stock", self._node.url, chunks, *queues]
        return self._measure(topology, run_uid, consumer)

    def ours(self) -> Outcome:
        """Measure the coordinator."""
        topology = Topology(f"bench-{uuid.uuid4().hex[:8]}")
        with tempfile.TemporaryDirectory(dir=self._work_dir) as run_dir:
            prepare = ["bench.ingest_coordinator", "prepare", run_dir, self._num_bytes, str(self._count)]
            made = subprocess.run([sys.executable, "-m", *prepare], check=True, stdout=subprocess.PIPE, text=True)
            serve = [
                self._node.url,
                topology.prefix,
                run_dir,
                self._num_bytes,
                str(self._count),
                str(MAX_MESSAGE_BYTES),
            ]
            return self._measure(topology, made.stdout.strip(), ["bench.ingest_coordinator", "serve", *serve])

    def _queues(self, topology: Topology, run_uid: str) -> list[str]:
        seqs = range(1, self._count + 1)
        empty = model(64)
        return [topology.upload(participant(s), body(RUN_ID, run_uid, s, empty)[0]).name for s in seqs]

    def _measure(self, topology: Topology, run_uid: str, consumer: list[str]) -> Outcome:
        common = [self._node.url, topology.prefix, run_uid, self._num_bytes, str(self._count)]
        try:
            subprocess.run([sys.executable, "-m", "bench.chunked_ingest", "--as", "upload", *common], check=True)
            reader = spawn(*consumer)
            began_s = time.monotonic()
            assert reader.stdout is not None
            line = reader.stdout.readline()
            if reader.wait(timeout=120) != 0:
                raise SystemExit(f"a process of the benchmark failed: {reader.args}")
            return outcome_of(json.loads(line), began_s)
        finally:
            queues = [queue.name for queue in topology.shared_queues] + self._queues(topology, run_uid)
            owners = {participant(seq) for seq in range(1, self._count + 1)}
            exchanges = (*topology.exchanges, *map(topology.upload_exchange, owners))
            remove(self._node.url, exchanges=[exchange.name for exchange in exchanges], queues=queues)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--updates", type=int, default=10)
    parser.add_argument("--quick", action="store_true", help="two updates of 40 MB, once")
    options = parser.parse_args()
    size, count, repeats = (40, 2, 1) if options.quick else (options.megabytes, options.updates, REPEATS)
    limits = {"max_message_size": str(MAX_MESSAGE_BYTES)}
    with (
        tempfile.TemporaryDirectory(prefix="fedmq-bench-") as folder,
        PrivateNode(Path(folder) / "node", overrides=limits) as node,
    ):
        rig = Rig(node, size * MB, count, Path(folder))
        rounds = [(rig.stock(), rig.ours()) for _ in range(repeats)]
    stock_best = min((one for one, _ in rounds), key=lambda o: o.seconds)
    ours_best = min((one for _, one in rounds), key=lambda o: o.seconds)

    def rate(outcome: Outcome) -> str:
        return f"{count * size / outcome.seconds:.0f} MB/s"

    row = Row(
        f"{count} × {size} MB in chunks: stock pika", rate(ours_best), rate(stock_best),
        stock_best.seconds / ours_best.seconds, TARGET,
    )  # fmt: skip
    print_table("bench/chunked_ingest", [row])
    each = ", ".join(f"{one.seconds / other.seconds:.2f}" for one, other in rounds)
    print(f"  ratio of each round: {each}; {commits_text(ours_best)}; peak RSS {ours_best.rss_mb:.0f} MB")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--as"]:
        {"upload": upload, "stock": stock}[sys.argv[2]](*sys.argv[3:])
    else:
        main()
