"""Attacks of a device on its federation, with exactly a device's rights and a plain AMQP client.

To add one, write a function that takes an `Attacker` and decorate it:

- `@refused` for acts that the broker must refuse, each by itself. The function returns them by name.
- `@harmless` for what a device can do, and must not matter. The function does it, and returns the number of acts that
  the broker took over. So the test knows that the attack was made.

`test_attacks.py` makes each of them beside a run, and looks if the run goes on and loses nothing.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pika
from pika.exceptions import AMQPError, ChannelClosedByBroker, ConnectionClosedByBroker, NackError, UnroutableError

from fedmq.broker_config.topology import Topology
from fedmq.schemas.codec import encode
from fedmq.schemas.messages import (
    ChunkedPayload,
    Decline,
    Hello,
    Notice,
    Receipt,
    Task,
    TrainingConfig,
    Update,
    update_id,
)
from fedmq.schemas.parameters import Parameters
from tests.integration.chunks.federation import RUN_ID, initial
from tests.security.site import Site

Act = Callable[[Any], object]
"""One act on a plain pika channel."""
Acts = Mapping[str, Act]
REFUSED: dict[str, Callable[[Attacker], Acts]] = {}
HARMLESS: dict[str, Callable[[Attacker], int]] = {}
DIRECT = "amq.direct"
MIB = 1024**2


@dataclass(frozen=True)
class Attacker:
    """A device of the federation that means harm. `victim` is another device, and `open_tasks` gives the ids of the
    tasks that are out now: who sees its own can guess the others'."""

    site: Site
    name: str
    victim: str
    open_tasks: Callable[[], list[str]]

    @property
    def topology(self) -> Topology:
        return self.site.topology

    @contextlib.contextmanager
    def channel(self) -> Iterator[Any]:
        """Yield a channel that confirms what is published."""
        with self.site.raw(self.name) as channel:
            channel.confirm_delivery()
            yield channel

    def own(self, key: str | None = None) -> str:
        """Return a name under which the attacker may declare a queue or an exchange, and write to it."""
        return self.topology.upload(self.name, key or uuid.uuid4().hex).name

    def has_own(self, channel: Any, **arguments: Any) -> str:
        """Declare a queue of the attacker's own and return its name."""
        name = self.own()
        channel.queue_declare(name, durable=True, arguments={"x-expires": 60_000, **arguments})
        return name

    def send(self, channel: Any, body: bytes, exchange: str, key: str, **properties: Any) -> bool:
        """Publish, and return True if the broker took the message over."""
        properties.setdefault("user_id", self.name)
        try:
            channel.basic_publish(exchange, key, body, pika.BasicProperties(**properties), mandatory=True)
        except (NackError, UnroutableError):
            return False
        return True

    def say(self, channel: Any, body: bytes, **properties: Any) -> bool:
        """Publish to the control queue."""
        return self.send(channel, body, self.topology.control_exchange.name, "control", **properties)

    def upload(self, channel: Any, body: bytes, **properties: Any) -> bool:
        """Publish to the updates queue."""
        return self.send(channel, body, self.topology.updates_exchange.name, "update", **properties)


def refused(function: Callable[[Attacker], Acts]) -> Callable[[Attacker], Acts]:
    REFUSED[function.__name__] = function
    return function


def harmless(function: Callable[[Attacker], int]) -> Callable[[Attacker], int]:
    HARMLESS[function.__name__] = function
    return function


def codes_of(attacker: Attacker, acts: Acts) -> dict[str, int | None]:
    """Return the code with which the broker refuses each act; None for one that it does not refuse."""
    found: dict[str, int | None] = {}
    left = dict(acts)
    while left:
        with attacker.channel() as first:
            connection = first.connection
            for what in list(left):
                found[what] = _code_of(connection, left.pop(what))
                if not connection.is_open:
                    break
    return found


def _code_of(connection: Any, act: Act) -> int | None:
    channel = connection.channel()
    channel.confirm_delivery()
    try:
        act(channel)
    except (ChannelClosedByBroker, ConnectionClosedByBroker) as error:
        return int(error.reply_code)
    except UnroutableError:
        pass
    channel.close()
    return None


# Reading what others send


@refused
def copies_of_what_is_shared(a: Attacker) -> Acts:
    """A queue of one's own bound to a shared exchange, or to another's, gets a silent copy of everything."""
    t = a.topology
    sources = (
        t.updates_exchange.name, t.control_exchange.name, t.dead_exchange.name, t.upload_exchange(a.victim).name,
        DIRECT, "amq.topic", "amq.fanout", "amq.rabbitmq.trace", "amq.rabbitmq.log",
    )  # fmt: skip
    keys = ("update", "control", "dead", "#", t.upload(a.victim, "0" * 32).name)

    def bind(source: str, key: str) -> Act:
        return lambda channel: channel.queue_bind(a.has_own(channel), source, key)

    return {f"{source} {key}": bind(source, key) for source in sources for key in keys}


@refused
def exchanges_behind_exchanges(a: Attacker) -> Acts:
    """An exchange of one's own behind a shared exchange gets a copy as well."""
    t = a.topology
    sources = (t.updates_exchange.name, t.control_exchange.name, t.upload_exchange(a.victim).name, DIRECT)

    def bind(source: str) -> Act:
        def act(channel: Any) -> None:
            exchange = a.own()
            channel.exchange_declare(exchange, "fanout", auto_delete=True)
            channel.exchange_bind(exchange, source, "update")

        return act

    return {source: bind(source) for source in sources}


@refused
def queues_of_others(a: Attacker) -> Acts:
    """Read, purge, delete and take over, also by names that nearly fit."""
    t = a.topology
    names = (
        t.updates.name, t.control.name, t.dead.name, t.leader.name, t.participant(a.victim).name,
        t.upload(a.victim, "0" * 32).name, f"{t.participant(a.name).name}.x",
        f"x{t.participant(a.name).name}", t.upload(a.name, "0" * 31).name, t.upload(a.name, "0" * 33).name,
        t.upload(a.name, "G" * 32).name, t.participant(a.name).name.upper(), "fedXmq.control", "celery", "amq.gen-mine",
    )  # fmt: skip
    acts: dict[str, Act] = {}
    for name in names:
        acts |= {
            f"get {name!r}": lambda channel, name=name: channel.basic_get(name),
            f"consume {name!r}": lambda channel, name=name: channel.basic_consume(name, lambda *_: None),
            f"purge {name!r}": lambda channel, name=name: channel.queue_purge(name),
            f"delete {name!r}": lambda channel, name=name: channel.queue_delete(name),
            f"declare {name!r}": lambda channel, name=name: channel.queue_declare(name, durable=True),
            f"exclusive {name!r}": lambda channel, name=name: channel.queue_declare(name, exclusive=True),
        }
    return acts


@refused
def names_from_the_server(a: Attacker) -> Acts:
    return {
        "exclusive": lambda channel: channel.queue_declare("", exclusive=True),
        "auto-delete": lambda channel: channel.queue_declare("", auto_delete=True),
        "durable": lambda channel: channel.queue_declare("", durable=True),
    }


# Taking paths away


@refused
def paths_taken_away(a: Attacker) -> Acts:
    t = a.topology
    shared = (t.updates_exchange.name, t.control_exchange.name, t.dead_exchange.name)
    others = (*shared, t.upload_exchange(a.victim).name, t.upload_exchange(a.name).name)
    acts: dict[str, Act] = {}
    for queue in t.shared_queues:
        acts[f"unbind {queue.name}"] = lambda channel, q=queue: channel.queue_unbind(q.name, q.exchange, q.routing_key)
    for name in others:
        acts |= {
            f"delete {name}": lambda channel, name=name: channel.exchange_delete(name),
            f"delete {name} if unused": lambda channel, name=name: channel.exchange_delete(name, if_unused=True),
            f"other type {name}": lambda channel, name=name: channel.exchange_declare(name, "topic", durable=True),
            f"other arguments {name}": lambda channel, name=name: channel.exchange_declare(
                name, "direct", durable=True, arguments={"alternate-exchange": t.updates_exchange.name}
            ),
        }
    return acts


# Speaking to others


@refused
def words_to_other_devices(a: Attacker) -> Acts:
    """Publish where a device has no right to: to queues of others by the default exchange, and to others' exchanges."""
    t = a.topology
    task = Task(
        task_id="t", run_id=RUN_ID, participant_id=a.victim, base_version=0, reply="delta", training=TrainingConfig(),
        lease_s=1.0,
    )  # fmt: skip
    receipt = Receipt(update_id="u", task_id="t", run_id=RUN_ID, participant_id=a.victim, verdict="accepted", version=1)
    notice = Notice(run_id=RUN_ID, participant_id=a.victim, event="run_finished")
    bodies = {"task": encode(task, initial()), "receipt": encode(receipt), "notice": encode(notice), "nothing": b""}
    ways = {
        "its queue": ("", t.participant(a.victim).name),
        "its upload": (t.upload_exchange(a.victim).name, t.upload(a.victim, "0" * 32).name),
        "its payload queue": ("", t.upload(a.victim, "0" * 32).name),
        "the leader's queue": ("", t.leader.name),
        "the updates queue": ("", t.updates.name),
        "the models": ("", t.models_name),
        "the dead letters": (t.dead_exchange.name, "dead"),
        "the direct exchange": (DIRECT, t.participant(a.victim).name),
        "one's own queue": ("", t.participant(a.name).name),
        "reply-to": ("", "amq.rabbitmq.reply-to.x"),
    }
    return {
        f"{what} to {where}": lambda channel, body=body, way=way: a.send(channel, body, *way)
        for what, body in bodies.items()
        for where, way in ways.items()
    }


@refused
def dead_letters_into_others(a: Attacker) -> Acts:
    """A queue of one's own whose dead letters go where the device itself may not write."""
    t = a.topology
    targets = {
        "": (t.participant(a.victim).name, t.leader.name, t.models_name),
        t.dead_exchange.name: ("dead",),
        t.upload_exchange(a.victim).name: (t.upload(a.victim, "0" * 32).name,),
        DIRECT: ("x",),
        t.leader.name: ("x",),
    }

    def declare(exchange: str, key: str) -> Act:
        return lambda channel: a.has_own(
            channel, **{"x-dead-letter-exchange": exchange, "x-dead-letter-routing-key": key}
        )

    return {f"{exchange!r} {key}": declare(exchange, key) for exchange, keys in targets.items() for key in keys}


@refused
def alternate_exchanges_into_others(a: Attacker) -> Acts:
    t = a.topology

    def declare(alternate: str) -> Act:
        return lambda channel: channel.exchange_declare(
            a.own(), "fanout", auto_delete=True, arguments={"alternate-exchange": alternate}
        )

    targets = (t.dead_exchange.name, t.upload_exchange(a.victim).name, DIRECT)
    return {alternate: declare(alternate) for alternate in targets}


@refused
def names_of_others(a: Attacker) -> Acts:
    """A message that names another user: the broker compares."""
    t = a.topology
    users = (a.victim, "coordinator", "guest", "", a.name.upper())
    return {
        f"{user!r} to {exchange.name}": lambda channel, user=user, exchange=exchange, key=key: a.send(
            channel, b"x", exchange.name, key, user_id=user
        )
        for user in users
        for exchange, key in ((t.updates_exchange, "update"), (t.control_exchange, "control"))
    }


# What a device can do, and must not matter


@harmless
def forged_hellos(a: Attacker) -> int:
    """Hellos in others' names: with a new session, so that their tasks would seem lost, and declining all work."""
    done = 0
    with a.channel() as channel:
        for name in (a.victim, "coordinator", "nobody"):
            for accepting in (True, False):
                hello = Hello(participant_id=name, session_id=uuid.uuid4().hex, num_examples=2**53, accepting=accepting)
                done += a.say(channel, encode(hello))
                done += a.say(channel, encode(hello), user_id=None)
    return done


@harmless
def forged_declines(a: Attacker) -> int:
    """Declines of tasks that may be out now, in the victim's name and in one's own."""
    with a.channel() as channel:
        return sum(
            a.say(channel, encode(Decline(task_id=task, run_id=RUN_ID, participant_id=name, reason="trainer_error")))
            for task in [*a.open_tasks(), "never-issued"]
            for name in (a.victim, a.name)
        )


@harmless
def forged_updates(a: Attacker) -> int:
    """Updates and manifests for tasks that may be out now, in the victim's name and in one's own, whole and broken."""
    done = 0
    with a.channel() as channel:
        for task in [*a.open_tasks(), "never-issued"]:
            for name in (a.victim, a.name):
                update = forged(task, name)
                done += a.upload(channel, encode(update, Parameters({"000/w": np.full(3, 1e30, np.float32)})))
                chunks = ChunkedPayload(
                    payload_id=update.update_id, num_bytes=200_192, chunk_bytes=8192, count=25, digest="0" * 64
                )
                done += a.upload(channel, encode(update.model_copy(update={"chunks": chunks})))
                done += a.upload(channel, b"\x93 not an update", correlation_id=task)
                done += a.upload(channel, b"", correlation_id=task, user_id=None)
    return done


@harmless
def paths_of_ones_own_into_what_is_shared(a: Attacker) -> int:
    """Dead letters, alternate exchanges and bindings that end where a device may write anyway."""
    t, done = a.topology, 0
    shared = {t.updates_exchange.name: "update", t.control_exchange.name: "control"}
    with a.channel() as channel:
        for exchange, key in shared.items():
            letters = {"x-dead-letter-exchange": exchange, "x-dead-letter-routing-key": key}
            queue = a.has_own(channel, **letters, **{"x-message-ttl": 0})
            channel.queue_bind(queue, t.upload_exchange(a.name).name, queue)
            done += a.send(channel, b"dead", t.upload_exchange(a.name).name, queue)
            channel.queue_bind(exchange, t.upload_exchange(a.name).name, "shortcut")
            done += a.send(channel, b"shortcut", t.upload_exchange(a.name).name, "shortcut")
            channel.queue_unbind(exchange, t.upload_exchange(a.name).name, "shortcut")
            front = a.own()
            channel.exchange_declare(front, "fanout", auto_delete=True, arguments={"alternate-exchange": exchange})
            channel.exchange_bind(exchange, front, key)
            done += a.send(channel, b"front", front, key)
            channel.exchange_delete(front)
    return done


@harmless
def copies_by_header(a: Attacker) -> int:
    """CC and BCC headers that name queues and keys of others."""
    t = a.topology
    names = [
        t.leader.name, t.dead.name, t.updates.name, t.participant(a.victim).name, t.upload(a.victim, "0" * 32).name,
        "update", "control", "dead",
    ]  # fmt: skip
    done = 0
    with a.channel() as channel:
        for header in ("CC", "BCC"):
            headers = {header: names}
            done += a.say(channel, b"x", headers=headers)
            done += a.upload(channel, b"x", headers=headers)
            queue = a.has_own(channel)
            channel.queue_bind(queue, t.upload_exchange(a.name).name, queue)
            done += a.send(channel, b"x", t.upload_exchange(a.name).name, queue, headers=headers)
    return done


@harmless
def ones_own_queue_made_otherwise(a: Attacker) -> int:
    """The queue in which the coordinator expects to leave tasks: absent, full, exclusive, quorum, bound to nothing."""
    own, done = a.topology.participant(a.name).name, 0
    with a.channel() as channel:
        for arguments in (
            {"x-max-length": 0, "x-overflow": "reject-publish"}, {"x-message-ttl": 0}, {"x-queue-type": "quorum"},
            {"x-queue-type": "stream"}, {"x-single-active-consumer": True},
        ):  # fmt: skip
            channel.queue_delete(own)
            channel.queue_declare(own, durable=True, arguments=arguments)
            hello = Hello(participant_id=a.name, session_id=uuid.uuid4().hex, num_examples=10)
            done += a.say(channel, encode(hello))
        channel.queue_delete(own)
        channel.queue_declare(own, exclusive=True)
        done += a.say(channel, encode(Hello(participant_id=a.name, session_id=uuid.uuid4().hex, num_examples=10)))
        channel.queue_delete(own)
    return done


@harmless
def floods_of_rubbish(a: Attacker) -> int:
    """Thousands of small bodies, and some large ones, to both shared queues."""
    with a.site.raw(a.name) as channel:  # without confirms, as fast as they go out
        properties = pika.BasicProperties(user_id=a.name, headers={"k" * 200: ["v" * 200] * 50})
        for n in range(2000):
            exchange, key = ((a.topology.updates_exchange, "update"), (a.topology.control_exchange, "control"))[n % 2]
            channel.basic_publish(exchange.name, key, b"\xff" * (n % 300), properties)
        for n in range(6):
            exchange, key = ((a.topology.updates_exchange, "update"), (a.topology.control_exchange, "control"))[n % 2]
            channel.basic_publish(exchange.name, key, b"\x93\x81" * MIB, properties)
        return 2006


@harmless
def strange_properties(a: Attacker) -> int:
    """Properties at the edges of their types."""
    done = 0
    odd: list[dict[str, Any]] = [
        {"expiration": "0"}, {"priority": 255}, {"delivery_mode": 1}, {"timestamp": 2**63}, {"type": "\x00\x1b[2J"},
        {"content_type": "\u202e" * 60}, {"message_id": "m" * 255, "correlation_id": "\n" * 255}, {"reply_to": "x"},
        {"app_id": "../../etc"}, {"cluster_id": "c"}, {"headers": {"x-death": [{"count": 2**62}]}},
        {"headers": {"x-delivery-count": 10**6}}, {"headers": {"deep": nested(60)}}, {"user_id": None},
    ]  # fmt: skip
    with a.channel() as channel:
        for properties in odd:
            done += a.say(channel, b"x", **properties)
            done += a.upload(channel, b"x", **properties)
    return done


@harmless
def many_connections_and_channels(a: Attacker) -> int:
    """Open as many as the broker allows, and some more."""
    taken: list[pika.BlockingConnection] = []
    channels = 0
    try:
        for _ in range(12):
            taken.append(pika.BlockingConnection(pika.URLParameters(a.site.url(a.name))))
            for _ in range(6):
                taken[-1].channel()
                channels += 1
    except AMQPError:
        pass
    finally:
        for connection in taken:
            with contextlib.suppress(AMQPError):
                connection.close()
    return channels


@harmless
def many_queues(a: Attacker) -> int:
    """Payload queues, which a device may make: 200 of them, each with something in it."""
    exchange, done = a.topology.upload_exchange(a.name).name, 0
    with a.channel() as channel:
        names = [a.has_own(channel) for _ in range(200)]
        for name in names:
            channel.queue_bind(name, exchange, name)
            done += a.send(channel, b"x" * 1000, exchange, name)
        for name in names:
            channel.queue_delete(name)
    return done


def nested(depth: int) -> Any:
    """Return lists in lists."""
    value: Any = "x"
    for _ in range(depth):
        value = [value]
    return value


def forged(task_id: str, participant_id: str) -> Update:
    """Return an update for a task, with the id that it must have."""
    return Update(
        update_id=update_id(RUN_ID, task_id, participant_id), task_id=task_id, run_id=RUN_ID,
        participant_id=participant_id, base_version=0, payload="delta", num_examples=2**53, num_steps=2**53,
        metrics={"loss": 1e308}, train_s=1e308,
    )  # fmt: skip
