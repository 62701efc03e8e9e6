"""Reads the messages of the updates queue into events of the core. The sender is judged before a tensor is decoded."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

from fedmq.broker_config.transport import Delivery
from fedmq.coordinator.decisions.core import Core
from fedmq.coordinator.decisions.events import Carried, DeliveryHandle, PoisonArrived, UpdateArrived
from fedmq.coordinator.service.incoming.senders import Senders
from fedmq.coordinator.service.outgoing.frozen import FrozenTasks
from fedmq.schemas.codec import Limits, open_envelope
from fedmq.schemas.codecs.known import UplinkCodec
from fedmq.schemas.codecs.names import BUILT_IN
from fedmq.schemas.codecs.wire import Wire
from fedmq.schemas.errors import PeerError, WrongCodec
from fedmq.schemas.local.event_log import EventLog
from fedmq.schemas.messages import Model, Update
from fedmq.schemas.parameters import Parameters
from fedmq.schemas.tensors import ModelSpec, check_magnitudes

log = EventLog(__name__)

NO_PAYLOAD = Parameters({})
SLOW_S = 10.0
"""Time after which the log names a codec of the user's own that does not come back."""


class Wires:
    """The run's codec on the updates of each version."""

    def __init__(self, codec: UplinkCodec, spec_of: Callable[[int], ModelSpec]) -> None:
        """`spec_of` returns the tensors of an update of a version, and the same object for versions that have the
        same."""
        self.name = codec.codec.name
        self._codec, self._spec_of = codec, spec_of
        self._made: dict[int, Wire] = {}

    def of(self, base_version: int) -> Wire:
        """Return the codec on the tensors of an update of this version."""
        spec = self._spec_of(base_version)
        if id(spec) not in self._made:
            self._made[id(spec)] = self._codec.wire(spec)
        return self._made[id(spec)]


def decoded(
    update: Update, parameters: Parameters | None, wires: Wires | None, frozen: FrozenTasks | None = None
) -> Parameters | None:
    """Return an update's tensors as they were before its codec, and checked. They are not checked before.

    `frozen` cuts what an older fedmq sends of the model's frozen part.

    Raises WrongCodec if the update is in another codec than the run's, and another PeerError if they cannot be decoded.
    """
    if frozen is not None and parameters is not None:
        parameters = frozen.cut(update, parameters)
    if update.codec is not None and parameters is not None:
        if wires is None or update.codec != wires.name:
            asked = "plain tensors" if wires is None else f"{wires.name!r} or plain tensors"
            raise WrongCodec(f"got an update in the codec {update.codec!r}, the run asks for {asked}")
        with _watched(wires.name, update):
            parameters = wires.of(update.base_version).decode(parameters)
    if parameters is not None:
        check_magnitudes(parameters)
    return parameters


@contextlib.contextmanager
def _watched(codec: str, update: Update) -> Iterator[None]:
    """Let the log say who keeps the run waiting, if a codec of the user's own hangs. Nothing can end it."""
    if codec in BUILT_IN:
        yield
        return
    fields = {"codec": codec, "participant": update.participant_id, "task": update.task_id}
    detail = f"its decode() has run for {SLOW_S:g} s, and the run waits for it: put the codec's file right"
    timer = threading.Timer(SLOW_S, log.error, ("codec_hangs",), {**fields, "detail": detail})
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def read_update(  # noqa: PLR0917
    core: Core,
    senders: Senders,
    limits: Limits,
    handle: DeliveryHandle,
    delivery: Delivery,
    wires: Wires | None = None,
    frozen: FrozenTasks | None = None,
) -> UpdateArrived | PoisonArrived:
    """Return the event of one message. An update in chunks comes without its payload. So does one that the core
    discards whatever its tensors are: that of a revoked participant, and a coded one that no open task awaits. A
    compressed update of 200 bytes may decode to a whole model, so each may cost that once for each task."""
    fault = senders.unnamed(delivery.user_id)
    if fault is not None:
        return PoisonArrived(handle, fault.reason, fault.detail)
    try:
        envelope = open_envelope(delivery.body, limits)
    except PeerError as error:
        fault = senders.fault_of_unreadable(delivery.user_id)
        if fault is not None:
            return PoisonArrived(handle, fault.reason, fault.detail)
        return _unreadable(core, handle, delivery, error.reason, str(error))
    update = envelope.message
    if isinstance(update, Model):  # nobody's: it names no participant
        return _unreadable(core, handle, delivery, "malformed", "a message of kind model on the updates queue")
    fault = senders.fault(update.participant_id, delivery.user_id)
    if fault is not None:
        if fault.reason == "revoked" and isinstance(update, Update) and core.knows(update.participant_id):
            return UpdateArrived(handle, update, NO_PAYLOAD)
        return PoisonArrived(handle, fault.reason, fault.detail)
    if not isinstance(update, Update):
        detail = f"a message of kind {update.kind} on the updates queue"
        return _unreadable(core, handle, delivery, "malformed", detail)
    if update.codec is not None and not core.awaits(update):
        return UpdateArrived(handle, update, NO_PAYLOAD)
    try:
        parameters = decoded(update, envelope.parameters(check_finite=False), wires, frozen)
    except PeerError as error:
        return _unreadable(core, handle, delivery, error.reason, str(error))
    payload = parameters or NO_PAYLOAD
    return UpdateArrived(handle, update, payload, carried=Carried(len(delivery.body), payload.num_bytes))


def _unreadable(core: Core, handle: DeliveryHandle, delivery: Delivery, reason: str, detail: str) -> PoisonArrived:
    """Return the event, which closes the task that the message names if its sender is shown to be the participant."""
    task_id = delivery.correlation_id
    if task_id is not None and core.holds(task_id) and not core.is_from_owner(task_id, delivery.user_id):
        detail = f"{detail}; task {task_id} stays open: user {delivery.user_id!r} is not its participant's"
        task_id = None
    return PoisonArrived(handle, reason, detail, task_id)  # type: ignore[arg-type]
