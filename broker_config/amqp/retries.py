"""The tries to connect again: their waits, which only grow while nothing works, and their nodes."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

from fedmq.broker_config.amqp.address import Addresses
from fedmq.broker_config.timers import Timers
from fedmq.schemas.errors import BrokerError, BrokerRefused
from fedmq.schemas.local.backoff import Backoff
from fedmq.schemas.local.event_log import EventLog

STEADY_S = 10.0
"""Length of a session that starts the backoff afresh. A shorter session halves the backoff's steps. So the waits stay
short on a link that breaks every few seconds, and a broker that drops everybody at once is not overrun."""

REFUSED_S = 600.0
"""Time for which a broker refuses us before the log says that it means it. A broker that starts refuses too: it listens
before its users are there."""
REFUSALS = 5
"""Fewest refusals in that time."""

log = EventLog(__name__)


class Retries:
    """The waits of one transport. Everything here runs on the I/O thread; `connect` is called after each wait."""

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
        self._refusals = 0
        self._refused_since_s = 0.0
        self._timer: Any = None

    def ready(self) -> None:
        """Note that a session is up."""
        self._ready_since_s = time.monotonic()
        self._refusals = 0

    def lost(self, why: BrokerError) -> None:
        """Try the next node after a while, because a session is over or never came up."""
        if self._ready_since_s is not None:
            steady = time.monotonic() - self._ready_since_s > STEADY_S
            self._attempt = 0 if steady else self._attempt // 2
            self._ready_since_s = None
        self._addresses.next()
        delay_s = self._backoff.delay_s(self._attempt // len(self._addresses), self._rng)
        self._attempt += 1
        where = "again" if len(self._addresses) == 1 else str(self._addresses.current)
        goes_on = f"trying {where} in {delay_s:.1f} s"
        if refused_s := self._refused_s(why):
            often = f"refused {self._refusals} times in {refused_s / 60:.0f} min"
            log.error(
                "refused",
                detail=f"{why}; {often}: a person has to mend it, and nothing on this disk is lost; {goes_on}",
            )
        else:
            log.warning("not_connected", detail=f"{why}; {goes_on}")
        self._timer = self._timers.call_later(delay_s, self._try)

    def hurry(self) -> None:
        """Begin the waits afresh, with the present one, because little time is left."""
        self._attempt = 0
        if self._timer is not None:
            self._timers.remove_timeout(self._timer)
            self._timer = self._timers.call_later(self._backoff.delay_s(0, self._rng), self._try)

    def _refused_s(self, why: BrokerError) -> float | None:
        """Return the time for which the broker has refused us; None unless this refusal is one of many over a long
        time. A broker that is away in between takes none of them back."""
        if not isinstance(why, BrokerRefused):
            return None
        now = time.monotonic()
        if self._refusals == 0:
            self._refused_since_s = now
        self._refusals += 1
        refused_s = now - self._refused_since_s
        return refused_s if self._refusals >= REFUSALS and refused_s >= REFUSED_S else None

    def _try(self) -> None:
        self._timer = None
        self._connect()
