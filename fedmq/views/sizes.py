"""Sizes in bytes, as a person says them."""

from __future__ import annotations

from fedmq.coordinator.state.ledger.traffic import ModelBytes, Traffic

_UNITS = ("bytes", "kB", "MB", "GB", "TB", "PB")


def size(num_bytes: float) -> str:
    """Return a size with three significant digits: 812 bytes, 3.76 MB, 12.4 GB. 1 kB is 1,000 bytes."""
    value, unit = float(num_bytes), 0
    while value >= 999.5 and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.0f} {_UNITS[unit]}" if unit == 0 or value >= 99.95 else f"{value:.3g} {_UNITS[unit]}"


def traffic_text(traffic: Traffic) -> str:
    """Return what travelled, and how much larger it is decoded: 3.76 MB (decoded 14.9 MB, 3.96 times as much)."""
    told = f"{size(traffic.wire_bytes)} (decoded {size(traffic.decoded_bytes)}"
    return f"{told}, {traffic.ratio:.3g} times as much)" if traffic.ratio is not None else f"{told})"


def models_text(models: ModelBytes) -> str:
    """Return what tasks refer to; an empty text if none does."""
    if not models.tasks:
        return ""
    return (
        f"{models.tasks} tasks refer to models: the participants read {size(models.read_bytes)} of them, "
        f"and the coordinator sent {size(models.sent_bytes)}"
    )
