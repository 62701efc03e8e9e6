"""The forms of updates and models, as a person says them."""

from __future__ import annotations

from fedmq.coordinator.settings import DownlinkSettings
from fedmq.coordinator.state.ledger.forms import Forms
from fedmq.schemas.messages import Uplink

PLAIN = "plain"


def forms_text(forms: Forms) -> str:
    """Return both forms in a line; empty if everything is plain."""
    up, down = uplink_text(forms.uplink), downlink_text(forms.downlink)
    return "" if up == down == PLAIN else f"updates {up}, models {down}"


def uplink_text(uplink: Uplink | None) -> str:
    """Return the form of updates: in topk (fraction 0.01) with error feedback."""
    if uplink is None:
        return PLAIN
    details = {
        "topk": f" (fraction {uplink.fraction:g}, values in {uplink.values})",
        "powersgd": f" (rank {uplink.rank})",
    }
    behind = ["error feedback"] * uplink.error_feedback + [uplink.lossless] * (uplink.lossless != "none")
    return f"in {uplink.codec}{details.get(uplink.codec, '')}{' with ' * bool(behind)}{' and '.join(behind)}"


def downlink_text(downlink: DownlinkSettings) -> str:
    """Return the form of the model in tasks: in steps of a hidden state (int8)."""
    if downlink.codec == "none":
        return PLAIN
    if downlink.codec != "hidden":
        return f"in {downlink.codec}"
    step = downlink.step
    fraction = f", fraction {step.fraction:g}" if step.codec == "topk" else ""
    every = "" if downlink.step_every == 1 else f", every {downlink.step_every} versions"
    return f"in steps of a hidden state ({step.codec}{fraction}{every})"
