"""Leadership: the coordinator that holds the token in the broker's leader queue is the active one.

The queue has a single active consumer. The broker serves one consumer, and serves another one when the connection or
channel of the first is gone. It tells nobody, but only the active consumer gets what is in the queue. Therefore a
token is in it.

1. A coordinator that gets the token is active, and keeps the token unacked.
2. It gives the token back every RENEW_S, and gets it again at once because no other consumer is active. A delivery that
   is held for longer than the broker's consumer_timeout (30 minutes by default) would cost the channel.
3. A coordinator that does not know whether it leads publishes a token. If it leads, the token comes to it; if it does
   not, nothing changes. The queue keeps one token and drops the others.
4. After a lost connection or channel a coordinator does not know whether it leads, until a token comes again.

No network can promise that two coordinators are never active at once. One that was paused or cut off may not know yet
that another one has the token. The ledger's epoch decides what is written (coordinator.state.ledger.epochs).
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from fedmq.broker_config.topology import Queue
from fedmq.broker_config.transport import Delivery, Message, Transport

RENEW_S = 1.0
"""Seconds for which a token is held: well within any consumer_timeout that somebody may set."""
BACK_S = 10.0
"""Seconds within which a token that was given back must be here again."""
ANSWER_S = 1.0
"""Seconds within which a published token must be here, if this coordinator is the active one."""
ASK_AGAIN_S = 10.0
SOON = 4
"""Tokens in vain that are followed by the next after ANSWER_S; the later ones are followed after ASK_AGAIN_S. A
coordinator that has just started wants to know soon."""


class Leadership:
    """One coordinator's share in the leadership, on one transport. It has no thread: its owner calls it."""

    def __init__(
        self, transport: Transport, queue: Queue, put: Callable[[Any], None], clock: Callable[[], float]
    ) -> None:
        """`put` gets the token's deliveries, for `on_token`. `clock` is in seconds and never goes backwards."""
        self._transport = transport
        self._queue = queue
        self._put = put
        self._clock = clock
        self._token: Delivery | None = None
        self._asked: Future[None] | None = None
        self._due_s = float("inf")
        self.active = False
        """True if the token has come, and nothing has happened since that puts it in doubt."""
        self.in_vain = 0
        """Number of published tokens that the broker took and did not give to us: another coordinator is active."""

    def begin(self) -> None:
        """Consume, and publish a token at once: if nobody was ever active there is none yet."""
        self._transport.consume(self._queue.name, self._put, 1)
        self._ask()

    def owns(self, delivery: Delivery) -> bool:
        """True if this is a delivery for `on_token`."""
        return delivery.queue == self._queue.name

    def on_token(self, delivery: Delivery) -> None:
        """Lead, and keep the token."""
        self._token, self._asked = delivery, None
        self.active, self.in_vain = True, 0
        self._due_s = self._clock() + RENEW_S

    def doubt(self) -> None:
        """Lead no more, because the connection is gone and the token with it; ask soon."""
        self._token, self._asked, self.active = None, None, False
        self._due_s = self._clock() + ANSWER_S

    def renew(self) -> None:
        """Give the token back now. It comes again unless our consumer was lost."""
        token, self._token = self._token, None
        if token is not None and self._transport.nack(token):
            self._due_s = self._clock() + BACK_S
        else:
            self.doubt()

    def wait_s(self) -> float:
        """Return the seconds until `pass_time` has something to do."""
        return max(0.0, self._due_s - self._clock())

    def pass_time(self) -> None:
        """Renew the token, or ask for one, if it is time."""
        if self._clock() < self._due_s:
            return
        if self._token is not None:
            self.renew()
            return
        self.active = False
        if self._asked is not None and self._asked.done() and self._asked.exception() is None:
            self.in_vain += 1
        self._ask()

    def _ask(self) -> None:
        token = Message(self._queue.exchange, self._queue.routing_key, b"", message_id="token")
        self._asked = self._transport.publish(token, ASK_AGAIN_S)
        self._due_s = self._clock() + (ANSWER_S if self.in_vain < SOON else ASK_AGAIN_S)
