"""The stream of models: a device may read it, and that is all. Each act here is made with exactly a device's rights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from fedmq.broker_config.topology import Queue
from tests.security.site import COORDINATOR, Site

pytestmark = pytest.mark.broker
Act = Callable[[Any], object]
BODIES = [b"one", b"two", b"three"]
NOT_ALLOWED, NOT_FOR_STREAMS = 403, 540


@pytest.fixture
def stream(site: Site) -> Iterator[Queue]:
    """A stream with three messages, made by the coordinator."""
    made = site.topology.models(2**20, 2**19)
    with site.raw(COORDINATOR) as channel:
        channel.queue_declare(made.name, durable=True, arguments=made.arguments())
        channel.exchange_declare(site.topology.upload_exchange("sensor").name, "direct", durable=True)
        channel.confirm_delivery()
        for body in BODIES:
            channel.basic_publish("", made.name, body, mandatory=True)
    yield made
    with site.raw(COORDINATOR) as channel:
        channel.queue_delete(made.name)


def read(channel: Any, name: str, offset: int | str = "first") -> list[bytes]:
    """Read as many messages as the fixture wrote."""
    found: list[bytes] = []
    channel.basic_qos(prefetch_count=len(BODIES))
    arguments = {"x-stream-offset": offset}
    for _, _, body in channel.consume(name, arguments=arguments, inactivity_timeout=20.0):
        assert body is not None, "nothing comes"
        found.append(body)
        if len(found) == len(BODIES):
            return found
    return found


def changes(site: Site, stream: Queue) -> dict[str, Act]:
    """Return the ways to change, take or end the stream, or to add to it."""
    name, uploads = stream.name, site.topology.upload_exchange("sensor").name
    own = site.topology.upload("sensor", "0" * 32)

    def publish(exchange: str, key: str, **headers: Any) -> Act:
        import pika

        def act(channel: Any) -> None:
            channel.confirm_delivery()
            channel.basic_publish(exchange, key, b"forged", pika.BasicProperties(headers=headers or None))

        return act

    def dead_letters(channel: Any) -> None:
        channel.queue_declare(
            own.name, durable=True, arguments={"x-dead-letter-exchange": "", "x-dead-letter-routing-key": name}
        )

    return {
        "delete": lambda c: c.queue_delete(name),
        "delete if unused": lambda c: c.queue_delete(name, if_unused=True),
        "declare as it is": lambda c: c.queue_declare(name, durable=True, arguments=stream.arguments()),
        "declare otherwise": lambda c: c.queue_declare(name, durable=True),
        "declare exclusive": lambda c: c.queue_declare(name, exclusive=True),
        "bind to its own exchange": lambda c: c.queue_bind(name, uploads, "k"),
        "bind to the updates": lambda c: c.queue_bind(name, site.topology.updates.exchange, "update"),
        "unbind": lambda c: c.queue_unbind(name, site.topology.updates.exchange, "update"),
        "publish": publish("", name),
        "dead-letter into it": dead_letters,
        "make an exchange of its name": lambda c: c.exchange_declare(name, "fanout", durable=True),
        "declare one beside it": lambda c: c.queue_declare(f"{name}.2", durable=True, arguments=stream.arguments()),
    }


def test_a_device_reads_the_stream_and_may_not_change_it(site: Site, stream: Queue) -> None:
    found = {what: site.refusal("sensor", act) for what, act in changes(site, stream).items()}

    assert found == dict.fromkeys(found, NOT_ALLOWED)
    for name in ("sensor", "sensor-2"):
        with site.raw(name) as channel:
            assert read(channel, stream.name) == BODIES


def test_what_a_right_to_read_gives_for_other_queues_it_does_not_give_for_streams(site: Site, stream: Queue) -> None:
    """Whoever may read a queue may purge it and take its messages one by one: RabbitMQ has neither for streams."""
    acts: dict[str, Act] = {
        "purge": lambda c: c.queue_purge(stream.name),
        "get": lambda c: c.basic_get(stream.name),
        "get and ack": lambda c: c.basic_get(stream.name, auto_ack=True),
    }

    found = {what: site.refusal("sensor", act) for what, act in acts.items()}

    assert found == dict.fromkeys(found, NOT_FOR_STREAMS)
    with site.raw("sensor-2") as channel:
        assert read(channel, stream.name) == BODIES


def test_a_reader_takes_nothing_from_the_others(site: Site, stream: Queue) -> None:
    """Acks, rejections and an exclusive consumer of one device change nothing for another one."""
    with site.raw("sensor") as one, site.raw("sensor-2") as other:
        one.basic_qos(prefetch_count=3)
        one.basic_consume(stream.name, lambda *_: None, exclusive=True, arguments={"x-stream-offset": "first"})
        assert read(other, stream.name) == BODIES
        one.basic_ack(0, multiple=True)
    for settle in ("basic_ack", "basic_nack", "basic_reject"):

        def act(channel: Any, settle: str = settle) -> None:
            channel.basic_qos(prefetch_count=3)
            for method, _, _ in channel.consume(stream.name, arguments={"x-stream-offset": "first"}):
                getattr(channel, settle)(method.delivery_tag)
                if method.delivery_tag == len(BODIES):
                    channel.connection.process_data_events()
                    return

        assert site.refusal("sensor", act) in (None, NOT_FOR_STREAMS)  # 3.10 ends the connection of who gives back
    with site.raw("sensor-2") as other:
        assert read(other, stream.name) == BODIES


def test_the_acts_that_are_refused_are_real(site: Site, stream: Queue) -> None:
    """The coordinator may do all that, apart from what the stream's arguments forbid."""
    acts = changes(site, stream)
    for what in (
        "declare as it is",
        "bind to its own exchange",
        "unbind",
        "publish",
        "declare one beside it",
        "delete",
    ):
        assert site.refusal(COORDINATOR, acts[what]) is None, what
    with site.raw(COORDINATOR) as channel:
        channel.queue_delete(f"{stream.name}.2")
