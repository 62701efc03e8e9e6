"""When a transport connects again, and to which node: the waits between tries, which only grow while nothing works."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

from fedmq.broker_config.amqp.address import Addresses
from fedmq.broker_config.timers import Timers
from fedmq.schemas.errors import BrokerError
from fedmq.schemas.local.backoff import Backoff
from fedmq.schemas.local.event_log import EventLog

STEADY_S = 10.0
"""A session that lasted this long starts the backoff afresh. A shorter one halves its steps: on a link that breaks
every few seconds the waits stay short, and a broker that drops everybody at once is not overrun."""

log = EventLog(__name__)


class Retries:
    """Everything here runs on the I/O thread. `connect` is called when the time has come."""

    def __init__(
        self, timers: Timers, addresses: Addresses, backoff: Backoff, rng: random.Random, connect: Callable[[], None]
    ) -> None:
        self._timers = timers
        self._addresses = addresses
        self._backoff = backoff
        self._rng = rng
        self._connect = connect
        self._attempt = 0
        self._ready_since_s: float | None = None
        self._timer: Any = None

    def ready(self) -> None:
        """A session is up."""
        self._ready_since_s = time.monotonic()

    def lost(self, why: BrokerError) -> None:
        """A session is over, or never came up: the next node's turn, after a while."""
        if self._ready_since_s is not None:
            steady = time.monotonic() - self._ready_since_s > STEADY_S
            self._attempt = 0 if steady else self._attempt // 2
            self._ready_since_s = None
        self._addresses.next()
        delay_s = self._backoff.delay_s(self._attempt // len(self._addresses), self._rng)
        self._attempt += 1
        where = "again" if len(self._addresses) == 1 else str(self._addresses.current)
        log.warning("not_connected", detail=f"{why}; trying {where} in {delay_s:.1f} s")
        self._timer = self._timers.call_later(delay_s, self._try)

    def hurry(self) -> None:
        """There is little time left: waits begin afresh, with the one that is under way."""
        self._attempt = 0
        if self._timer is not None:
            self._timers.remove_timeout(self._timer)
            self._timer = self._timers.call_later(self._backoff.delay_s(0, self._rng), self._try)

    def _try(self) -> None:
        self._timer = None
        self._connect()
