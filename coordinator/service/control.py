"""The control queue's messages: hellos and declines, as events of the core."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

from fedmq.broker_config.transport import Delivery, Transport
from fedmq.coordinator.decisions.core import Core
from fedmq.coordinator.decisions.events import ParticipantSeen, TaskDeclined
from fedmq.coordinator.service.effects import Commands
from fedmq.schemas.codec import Limits, decode
from fedmq.schemas.errors import PeerError
from fedmq.schemas.messages import Decline, Hello

log = logging.getLogger("fedmq.coordinator")


class Control:
    """Used from the loop's thread. `step` takes an event to the core."""

    def __init__(
        self,
        core: Core,
        commands: Commands,
        transport: Transport,
        *,
        dead_exchange: str,
        limits: Limits,
        step: Callable[[ParticipantSeen | TaskDeclined], None],
    ) -> None:
        self._core = core
        self._commands = commands
        self._transport = transport
        self._dead_exchange = dead_exchange
        self._limits = limits
        self._step = step
        self._left_out: set[tuple[str, str]] = set()

    def take(self, delivery: Delivery) -> None:
        """One message to its step, or to the dead letters. It is settled with the next commit."""
        try:
            message = decode(delivery.body, self._limits).message
        except PeerError as error:
            self._poison(delivery, error.reason, str(error))
            return
        stranger = None
        if isinstance(message, Hello | Decline):
            stranger = self._core.stranger(message.participant_id, delivery.user_id)
        if stranger is not None:
            self._poison(delivery, "unknown_participant", stranger)
            return
        if isinstance(message, Hello):
            self._step(ParticipantSeen(message, delivery.user_id))
            self._tell_of_no_room(message)
        elif isinstance(message, Decline):
            m = message
            log.info(
                "task declined participant=%s task=%s reason=%s %s", m.participant_id, m.task_id, m.reason, m.detail
            )
            self._step(TaskDeclined(m.participant_id, m.task_id, m.run_id, m.reason, m.detail, m.retry_after_s))
        else:
            self._poison(delivery, "malformed", f"a message of kind {message.kind} on the control queue")
            return
        self._commands.pending.settle.append(replace(delivery, body=b""))
        self._commands.pending.num_control += 1

    def _tell_of_no_room(self, hello: Hello) -> None:
        """Once a session: nothing else would say why somebody never gets a task."""
        who = (hello.participant_id, hello.session_id)
        if who not in self._left_out and not self._core.has_room_for(hello.participant_id):
            self._left_out.add(who)
            log.warning(
                "participant %s gets no tasks: the strategy has room for num_participants, and these came before it",
                hello.participant_id,
            )

    def _poison(self, delivery: Delivery, reason: str, detail: str) -> None:
        log.warning("control message discarded reason=%s detail=%s", reason, detail)
        self._transport.dead_letter(delivery, self._dead_exchange, reason, detail)
