"""Single questions to a broker: may our user do this? Each answer is the broker's own.

RabbitMQ looks at the rights before it looks for the object. So a question about a name that nobody uses shows the right
and changes nothing. `read` asks for a consumer with an argument that is no number: the broker refuses it after it has
looked at the right, and no message leaves the queue.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple

import pika
from pika.exceptions import AMQPError, ChannelClosedByBroker, NackError, UnroutableError

from fedmq.broker_config.amqp.address import ACCESS_REFUSED, NOT_FOUND, BrokerAddress, declaration_refusal
from fedmq.broker_config.amqp.driver import PikaDriver
from fedmq.broker_config.amqp.tls import NO_FILES, TlsFiles
from fedmq.broker_config.amqp.transport import Auth, addresses_for
from fedmq.broker_config.topology import Exchange, Queue
from fedmq.schemas.errors import BrokerError

Ask = Callable[[Any], object]


@dataclass(frozen=True, slots=True)
class Refusal:
    """The broker's answer to a question: an AMQP reply code, and its words."""

    code: int
    text: str

    @property
    def by_rights(self) -> bool:
        """True if the user lacks a right."""
        return self.code == ACCESS_REFUSED

    @property
    def missing(self) -> bool:
        """True if the object is not there."""
        return self.code == NOT_FOUND


class Depth(NamedTuple):
    """A queue's content, as the broker tells it."""

    ready: int
    """Messages that wait, without those that a consumer has taken and not acked."""
    consumers: int


class Probe:
    """A connection for questions. Every method returns None if the broker agrees, else its refusal.

    Raises BrokerError if the connection cannot be made or is lost, and ConfigError for settings that do not fit.
    """

    def __init__(self, url: str, auth: Auth = "password", tls: TlsFiles = NO_FILES) -> None:
        self._addresses = addresses_for(url, auth, tls)
        self._driver = PikaDriver(self._addresses, "doctor", 30, tls)
        self._connection: Any = None

    @property
    def address(self) -> BrokerAddress:
        """The address in use, with our user."""
        return self._addresses.current

    def __enter__(self) -> Probe:
        errors = []
        for _ in range(len(self._addresses)):
            try:
                self._connection = pika.BlockingConnection(self._driver.parameters("probe", self.address))
                return self
            except (AMQPError, OSError) as error:
                errors.append(self._driver.explain(error))
                self._addresses.next()
        self._driver.loop.close()
        raise errors[0]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(AMQPError, OSError):
            self._connection.close()
        self._driver.loop.close()

    def look(self, item: Queue | Exchange) -> Refusal | None:
        """Look if a queue or an exchange is there, which takes no right."""
        if isinstance(item, Exchange):
            return self._ask(lambda channel: channel.exchange_declare(item.name, passive=True))
        return self._ask(lambda channel: channel.queue_declare(item.name, passive=True))

    def depth(self, name: str) -> Depth | None:
        """Return what waits in a queue; None if it is not there."""
        found: list[Depth] = []

        def ask(channel: Any) -> None:
            method = channel.queue_declare(name, passive=True).method
            found.append(Depth(int(method.message_count), int(method.consumer_count)))

        self._ask(ask)
        return found[0] if found else None

    def declare(self, item: Queue | Exchange) -> Refusal | None:
        """Declare a queue or an exchange, without a binding."""
        if isinstance(item, Exchange):
            return self._ask(lambda channel: channel.exchange_declare(item.name, "direct", durable=True))
        return self._ask(lambda channel: channel.queue_declare(item.name, durable=True, arguments=item.arguments()))

    def bind(self, queue: Queue) -> Refusal | None:
        """Bind a queue as it says. It takes the right to write to the queue, and then to read from the exchange."""
        return self._ask(lambda channel: channel.queue_bind(queue.name, queue.exchange, queue.routing_key))

    def publish(self, exchange: str, routing_key: str) -> Refusal | None:
        """Publish an empty message that goes to nobody: the routing key must be one without a queue."""

        def ask(channel: Any) -> None:
            channel.confirm_delivery()
            with contextlib.suppress(UnroutableError, NackError):
                channel.basic_publish(exchange, routing_key, b"", mandatory=True)

        return self._ask(ask)

    def read(self, queue: str) -> Refusal | None:
        """Ask for the right to read a queue, and take nothing from it. The queue need not be there."""

        def ask(channel: Any) -> None:
            tag = channel.basic_consume(queue, lambda *_: None, arguments={"x-priority": "no number"})
            channel.basic_cancel(tag)  # a broker that takes such an argument gets everything back

        refused = self._ask(ask)
        return refused if refused is not None and refused.by_rights else None

    def delete_queue(self, name: str) -> Refusal | None:
        """Delete a queue if nobody uses it and nothing is in it. One that is not there is no error."""
        return self._ask(lambda channel: channel.queue_delete(name, if_unused=True, if_empty=True))

    def delete_exchange(self, name: str) -> Refusal | None:
        """Delete an exchange that nothing is bound to. One that is not there is no error."""
        return self._ask(lambda channel: channel.exchange_delete(name, if_unused=True))

    def meaning(self, what: str, refused: Refusal) -> BrokerError:
        """Return the meaning of a refused declaration, with advice."""
        return declaration_refusal(self.address, what, refused.code, refused.text)

    def _ask(self, ask: Ask) -> Refusal | None:
        try:
            channel = self._connection.channel()
            try:
                ask(channel)
            except ChannelClosedByBroker as closed:
                return Refusal(int(closed.reply_code), str(closed.reply_text))
            channel.close()
        except (AMQPError, OSError) as error:
            raise self._driver.explain(error) from error
        return None
