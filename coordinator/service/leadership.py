"""Who is the active coordinator: whoever holds the token in the broker's leader queue.

The queue has a single active consumer: the broker serves one of those who consume it, and another one when that one's
connection or channel is gone. It tells nobody, but only the active consumer gets what is in the queue. So there is a
token in it.

1. Who gets the token is active, and keeps it unacked.
2. It gives the token back every RENEW_S and gets it again at once, because no other consumer is active: a delivery that
   is held for longer than the broker's consumer_timeout (30 minutes by default) would cost the channel.
3. Who does not know puts a token there: it comes to itself, or it changes nothing. Of more than one the queue drops all
   but one.
4. A lost connection or channel leaves it open who is active, until a token comes again.

That two are never active at once cannot be promised over a network: a coordinator may be paused, or cut off, and not
know yet that another one has the token. The ledger's epoch decides what is written (coordinator.state.ledger.epochs).
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from fedmq.broker_config.topology import Queue
from fedmq.broker_config.transport import Delivery, Message, Transport

RENEW_S = 1.0
"""Well within any consumer_timeout that somebody may set."""
BACK_S = 10.0
"""How soon a token that was given back must be here again."""
ANSWER_S = 1.0
"""How soon a token that was put there must be here, where this coordinator is the active one."""
ASK_AGAIN_S = 10.0
SOON = 4
"""Tokens in vain that are asked after ANSWER_S, not ASK_AGAIN_S: whoever has just started wants to know."""


class Leadership:
    """One coordinator's part in it, on one transport. No thread: the owner hands over what arrives in its inbox."""

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
        """Whether the broker has told us so, and nothing has happened since that leaves it open."""
        self.in_vain = 0
        """How many tokens that we put there and that the broker took did not come to us: somebody else is active."""

    def begin(self) -> None:
        """Consume, and ask at once: where nobody was ever active there is no token yet."""
        self._transport.consume(self._queue.name, self._put, 1)
        self._ask()

    def owns(self, delivery: Delivery) -> bool:
        """Whether this is a delivery for `on_token`."""
        return delivery.queue == self._queue.name

    def on_token(self, delivery: Delivery) -> None:
        """A token has come."""
        self._token, self._asked = delivery, None
        self.active, self.in_vain = True, 0
        self._due_s = self._clock() + RENEW_S

    def doubt(self) -> None:
        """The connection is gone, and the token with it."""
        self._token, self._asked, self.active = None, None, False
        self._due_s = self._clock() + ANSWER_S

    def renew(self) -> None:
        """Give the token back, now: it comes again, unless our consumer was lost."""
        token, self._token = self._token, None
        if token is not None and self._transport.nack(token):
            self._due_s = self._clock() + BACK_S
        else:
            self.doubt()

    def wait_s(self) -> float:
        """How long until `pass_time` has something to do."""
        return max(0.0, self._due_s - self._clock())

    def pass_time(self) -> None:
        """Do what is due."""
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
