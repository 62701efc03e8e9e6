"""The shared exchanges and queues are declared again and again while a session lasts, so they stay there.

RabbitMQ tells nobody that an exchange or a binding was deleted. Those who publish hear of it, and have no right to make
the exchange. A queue without a consumer, that of the dead letters, goes just as silently. The same look counts the
consumers of each queue: a queue that is deleted and at once declared again loses them without a word.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from fedmq.broker_config.amqp.address import BrokerAddress, declaration_refusal
from fedmq.broker_config.amqp.session import Session
from fedmq.broker_config.topology import Exchange, Queue
from fedmq.broker_config.transport import KEEP_S
from fedmq.schemas.local.event_log import EventLog

MOST_KEEP_S = 60.0
"""Longest time between two, after refusals: a person has to put something right first."""

log = EventLog(__name__)


class Keeper:
    """The keeper of one transport. Everything here runs on the I/O thread."""

    def __init__(
        self,
        exchanges: Iterable[Exchange],
        queues: Iterable[Queue],
        counted: Callable[[str, int], None] = lambda _queue, _consumers: None,
    ) -> None:
        """The passive ones are somebody else's to keep. `counted` gets a queue's name and its number of consumers."""
        self._exchanges = tuple(exchange for exchange in exchanges if not exchange.passive)
        self._queues = tuple(queue for queue in queues if not queue.passive)
        self._counted = counted
        self._session: Session | None = None
        self._wait_s = KEEP_S

    def attach(self, session: Session, address: BrokerAddress) -> None:
        """Keep everything on this session until it is over. A process that makes no exchange keeps nothing: it hears
        of the loss of its own queue, because it consumes it."""
        if self._exchanges:
            self._session, self._wait_s = session, KEEP_S
            self._later(session, address)

    def _later(self, session: Session, address: BrokerAddress) -> None:
        session.call_later(self._wait_s, lambda: self._declare(session, address))

    def _declare(self, session: Session, address: BrokerAddress) -> None:
        if session is not self._session or session.over:
            return

        def kept() -> None:
            self._wait_s = KEEP_S
            self._later(session, address)

        def refused(what: str, code: int, text: str) -> None:
            self._wait_s = min(2 * self._wait_s, MOST_KEEP_S)
            error = declaration_refusal(address, what, code, text)
            log.warning("not_kept", detail=f"{error}; trying again in {self._wait_s:g} s")
            self._later(session, address)

        session.keep(self._exchanges, self._queues, kept, refused, self._counted)
