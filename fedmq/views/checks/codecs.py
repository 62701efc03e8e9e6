"""The doctor's findings on the codec of updates: is it here, and what does it make of one update?"""

from __future__ import annotations

from collections.abc import Iterator

from fedmq.config.device import DeviceConfig
from fedmq.config.file import FederationConfig
from fedmq.coordinator.uplink import codec_here, uplink_codec
from fedmq.schemas.codec import encode
from fedmq.schemas.codecs.known import capabilities
from fedmq.schemas.errors import AppError
from fedmq.schemas.messages import Reply, Update
from fedmq.schemas.methods import update_spec
from fedmq.schemas.parameters import Parameters
from fedmq.schemas.signing import tensors_digest
from fedmq.schemas.tensors import check_magnitudes, spec_of
from fedmq.views.finding import Finding, Role

ADVICE_PARTICIPANT = "do what it says, or let this participant send plain updates: the run goes on without it"


def look(config: FederationConfig | DeviceConfig, role: Role | None) -> Iterator[Finding]:
    """Yield whether this machine has the codec that the file asks for. A device of a fleet without a federation file
    does not know its run's."""
    if config.uplink.codec == "none":
        if isinstance(config, DeviceConfig):
            yield Finding("ok", f"codecs: this device has {', '.join(capabilities())}; a run may ask for one of them")
        return
    own, lacking = codec_here(config.uplink)
    if lacking is None:
        name = config.uplink.codec if own is None else f"{own.name} from {config.uplink.file}"
        behind = "" if config.uplink.lossless == "none" else f", with {config.uplink.lossless}"
        yield Finding("ok", f"codec: {name}{behind}")
    elif role == "participant" or isinstance(config, DeviceConfig):
        yield Finding("warning", f"codec: {lacking}", ADVICE_PARTICIPANT)
    else:
        yield Finding("wrong", f"codec: {lacking}", "do what it says: no coordinator starts without it", lacking)


def trial(config: FederationConfig, reply: Reply, model: Parameters, update: Update, payload: Parameters) -> str | None:
    """Send one update through the codec and back, and return what came of it; None if the file asks for none.

    Raises AppError if the codec cannot do it, or does something else each time, and another FedmqError if it fails.
    """
    uplink = uplink_codec(config.uplink, reply)
    if uplink is None:
        return None
    wire = uplink.wire(update_spec(reply, spec_of(model)))
    sent = wire.encode(payload, update.num_steps, None, {})
    received = wire.decode(sent.tensors)
    check_magnitudes(received)
    if not _same(sent.tensors, wire.encode(payload, update.num_steps, None, {}).tensors):
        raise AppError(
            f"the codec {uplink.codec.name!r}: encode() makes something else of the same update, seed and memory each "
            "time: draw from numpy.random.default_rng(seed) alone"
        )
    if not _same(received, wire.decode(sent.tensors)):
        raise AppError(
            f"the codec {uplink.codec.name!r}: decode() makes something else of the same parts each time: the "
            "participant and the coordinator would not have the same update"
        )
    plain, coded = len(encode(update, payload)), len(encode(update, sent.tensors))
    return f"this update takes {coded:,} bytes, {plain / coded:.1f} times less than the {plain:,} of a plain one"


def _same(one: Parameters, other: Parameters) -> bool:
    return tensors_digest(one) == tensors_digest(other)
