"""Hundreds of participants' sessions in one process, on one thread: the broker sees a thousand devices.

    python -m bench.light_sessions URL PREFIX NAME [NAME ...]

Each session has an AMQP connection and a queue of its own, and sends the messages of a participant: a hello, and for
each task an update of the size of its model, confirmed before the task is acked. Nothing is trained, and nothing is
written to a disk. With a fleet (bench.connection) each connection has a certificate, and each message a sender. Prints
"ready" once all have said hello. When the run has ended it prints one JSON line: the times at which the tasks' updates
were published (monotonic clock).
"""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

import pika
from pika.adapters.select_connection import IOLoop
from pika.credentials import ExternalCredentials

from bench.connection import files, options
from fedmq.broker_config.amqp.tls import TlsFiles
from fedmq.broker_config.amqp.transport import AmqpTransport
from fedmq.broker_config.topology import MAX_MESSAGE_BYTES, Queue, Topology
from fedmq.schemas.codec import decode, encode
from fedmq.schemas.messages import SCHEMA_VERSION, AnyMessage, Hello, Notice, Task, Update, update_id
from fedmq.schemas.parameters import Parameters

AT_ONCE = 16
"""Connections that are made at once: a broker gives up a handshake that takes longer than 10 s."""


class Host:
    """The sessions of this process."""

    def __init__(self, url: str, topology: Topology, names: list[str]) -> None:
        self.loop: Any = IOLoop()
        self.parameters = pika.URLParameters(url)
        self.has_senders = bool(files())
        if self.has_senders:
            self.parameters.ssl_options = pika.SSLOptions(TlsFiles(**files()).context(), self.parameters.host)
            self.parameters.credentials = ExternalCredentials()
        self.topology = topology
        self.published: dict[str, float] = {}
        self._waiting = list(names)
        self._left = self._to_come = len(names)

    def run(self) -> None:
        for _ in range(min(AT_ONCE, len(self._waiting))):
            Session(self, self._waiting.pop())
        self.loop.start()

    def said_hello(self) -> None:
        self._to_come -= 1
        if self._waiting:
            Session(self, self._waiting.pop())
        elif not self._to_come:
            print("ready", flush=True)

    def finished(self) -> None:
        self._left -= 1
        if not self._left:
            self.loop.stop()


class Session:
    """One participant's session."""

    def __init__(self, host: Host, name: str) -> None:
        self._host, self._name = host, name
        self._queue = host.topology.participant(name)
        self._delivered: dict[int, int] = {}
        """Tasks to ack, by the number of their update's publish on this channel."""
        self._published = 0
        pika.SelectConnection(
            host.parameters,
            on_open_callback=lambda connection: connection.channel(on_open_callback=self._declare),
            on_open_error_callback=self._broken,
            on_close_callback=self._broken,
            custom_ioloop=host.loop,
        )

    def _broken(self, _connection: Any, error: Any) -> None:
        raise SystemExit(f"{self._name} has lost the broker: {error!r}")

    def _declare(self, channel: Any) -> None:
        self._channel, queue = channel, self._queue
        channel.basic_qos(prefetch_count=4)
        channel.confirm_delivery(self._confirmed)
        channel.queue_declare(queue.name, durable=True, arguments=queue.arguments())
        channel.basic_consume(queue.name, self._on_delivery, callback=lambda _: self._say_hello())

    def _say_hello(self) -> None:
        hello = Hello(participant_id=self._name, session_id="light", num_examples=10)
        self._publish(self._host.topology.control, hello)
        self._host.said_hello()

    def _publish(self, queue: Queue, message: AnyMessage, tensors: Parameters | None = None, **ids: str) -> None:
        self._published += 1
        properties = pika.BasicProperties(
            delivery_mode=2, headers={"schema_version": SCHEMA_VERSION, "kind": message.kind}, **ids
        )
        if self._host.has_senders:
            properties.user_id = self._name
        self._channel.basic_publish(queue.exchange, queue.routing_key, encode(message, tensors), properties)

    def _confirmed(self, frame: Any) -> None:
        if isinstance(frame.method, pika.spec.Basic.Nack):
            raise SystemExit(f"the broker refused a message of {self._name}")
        number, several = frame.method.delivery_tag, frame.method.multiple
        for done in [n for n in self._delivered if n == number or (several and n < number)]:
            self._channel.basic_ack(self._delivered.pop(done))

    def _on_delivery(self, channel: Any, method: Any, _properties: Any, body: bytes) -> None:
        decoded = decode(body)
        message = decoded.message
        if isinstance(message, Task):
            assert decoded.parameters is not None
            self._train(message, decoded.parameters)
            self._delivered[self._published] = method.delivery_tag
            return
        channel.basic_ack(method.delivery_tag)
        if isinstance(message, Notice) and message.event == "run_finished":
            self._host.finished()

    def _train(self, task: Task, tensors: Parameters) -> None:
        identity = update_id(task.run_id, task.task_id, self._name)
        update = Update(
            update_id=identity,
            task_id=task.task_id,
            run_id=task.run_id,
            participant_id=self._name,
            base_version=task.base_version,
            payload=task.reply,
            num_examples=10,
            num_steps=1,
            train_s=0.0,
        )
        self._host.published[task.task_id] = time.monotonic()
        self._publish(self._host.topology.updates, update, tensors, message_id=identity, correlation_id=task.task_id)


def main() -> None:
    url, prefix, *names = sys.argv[1:]
    topology = Topology(prefix)
    transport = AmqpTransport(url, name="light", max_message_bytes=MAX_MESSAGE_BYTES, **options())
    transport.open(topology.exchanges, topology.shared_queues, timeout_s=60)
    transport.close()
    host = Host(url, topology, names)
    host.run()
    print(json.dumps(host.published), flush=True)


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR)
    main()
