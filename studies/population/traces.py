"""Measured devices from a file, one row each.

There are two forms. The names of the columns (CSV) or fields (JSON: an object of client -> fields, or a list) tell them
apart:

fedmq's own         example_s, down_bytes_per_s, up_bytes_per_s, examples, on_intervals, period_s
FedScale's          computation (ms to infer one sample; training costs three times that, as FedScale counts it) and
                    communication (kbit/s, down and up alike) of its client_device_capacity; active, inactive (lists of
                    seconds at which the device turns on and off) and finish_time of its client_behave_trace
                    (Lai et al. 2022, "FedScale"; docs of SymbioticLab/FedScale): two files, which `joined` merges

Any column may be missing. An empty cell leaves the population's law in place. `on_intervals` is "0-3600 7200-9000",
repeated every `period_s`. FedScale ships these files as pickles. A pickle can run code while it is read, so none is
read here. One line turns one into JSON: `json.dump(pickle.load(open(a, "rb")), open(b, "w"))`.
"""

from __future__ import annotations

import csv
import io
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from fedmq.schemas.errors import InputError, shown
from fedmq.schemas.local.files import read_json, read_text

MOST_BYTES = 1024**3
"""Largest trace. FedScale's has some hundred MB."""
TRAINING_COSTS_OF_INFERENCE = 3.0
"""FedScale's factor from a forward pass to a training step (forward, and backward at twice its cost)."""
PICKLES = 'Turn FedScale\'s pickles into JSON: json.dump(pickle.load(open(a, "rb")), open(b, "w"))'
_BYTES_PER_KBIT = 1024 / 8
OWN = ("example_s", "down_bytes_per_s", "up_bytes_per_s", "examples", "on_intervals", "period_s")
FEDSCALE = ("computation", "communication", "active", "inactive", "finish_time")
_IGNORED = ("participant_id", "client", "client_id", "duration", "model")


@dataclass(frozen=True, slots=True)
class Device:
    """The measurements of one device. The population's laws decide what is None."""

    example_s: float | None = None
    down_bytes_per_s: float | None = None
    up_bytes_per_s: float | None = None
    examples: float | None = None
    on_intervals: tuple[tuple[float, float], ...] = ()
    """Times of being on (begin, end) in s, disjoint and rising, within one period. Without any it is always on."""
    period_s: float = math.inf

    def turns(self) -> Iterator[tuple[bool, float]]:
        """Yield (on, end in s) for each turn from 0 s on. Some turns have no length.

        Each time is computed from the numbers of the period and the interval. Sums of sums would miss the ends by their
        last bits, and stand still there.
        """
        for cycle in itertools.count():
            start = cycle * self.period_s if cycle else 0.0
            for begin, end in self.on_intervals:
                yield False, start + begin
                yield True, start + end if end < self.period_s else (cycle + 1) * self.period_s
            if math.isinf(self.period_s):
                yield False, math.inf
                return


def joined(parts: Sequence[Device]) -> Device:
    """Merge the parts of one device that several files have. The first file that has a value decides it."""
    if len(parts) == 1:
        return parts[0]
    found: dict[str, Any] = {}
    for part in parts:
        own = {f.name: getattr(part, f.name) for f in fields(part)}
        if not part.on_intervals and math.isinf(part.period_s):  # a period alone means that it is on for all of it
            del own["on_intervals"], own["period_s"]
        found |= {name: value for name, value in own.items() if value is not None and name not in found}
    return Device(**found)


def read_traces(path: Path) -> tuple[Device, ...]:
    """Read the devices of a .csv or .json file, in its order. Raises InputError with the first mistake and its row."""
    try:
        if path.suffix == ".csv":
            text = read_text(path, MOST_BYTES, named_by_user=True)
            rows: list[Mapping[str, Any]] = list(csv.DictReader(io.StringIO(text, newline="")))
        elif path.suffix == ".json":
            content = read_json(path, MOST_BYTES, named_by_user=True)
            rows = list(content.values()) if isinstance(content, dict) else content
        else:
            raise InputError(f"{path}: a trace is a .csv or a .json file. {PICKLES}")
    except FileNotFoundError:
        raise InputError(f"There is no trace file {path}") from None
    except (OSError, ValueError, csv.Error) as e:
        raise InputError(f"The trace file {path} cannot be read: {e}") from e
    if not isinstance(rows, list) or not rows:
        raise InputError(f"{path} holds no devices, expected one in each row")
    return tuple(_device(row, f"{path}, device {i}") for i, row in enumerate(rows, 1))


def _device(row: Any, place: str) -> Device:
    if not isinstance(row, Mapping):
        raise InputError(f"{place} is {shown(row)}, expected an object of fields")
    if None in row:  # csv puts cells beyond the columns there
        raise InputError(f"{place} has more cells than there are columns")
    unknown = sorted(str(name) for name in row if name not in {*OWN, *FEDSCALE, *_IGNORED})
    if unknown:
        raise InputError(f"{place}: unknown field {unknown[0]!r}, expected some of {', '.join((*OWN, *FEDSCALE))}")
    computation, communication = (_positive(row, name, place) for name in ("computation", "communication"))
    bytes_per_s = None if communication is None else communication * _BYTES_PER_KBIT
    own_s, down, up, examples, period, finish = (
        _positive(row, name, place)
        for name in ("example_s", "down_bytes_per_s", "up_bytes_per_s", "examples", "period_s", "finish_time")
    )
    fedscale_s = None if computation is None else computation * TRAINING_COSTS_OF_INFERENCE / 1000
    period_s = period or finish or math.inf
    intervals = _intervals(row, place)
    if intervals and intervals[-1][1] > period_s:
        raise InputError(f"{place}: the device is on until {intervals[-1][1]} s, beyond its period of {period_s} s")
    if intervals == ((0.0, period_s),):
        intervals = ()  # always on
    return Device(own_s or fedscale_s, down or bytes_per_s, up or bytes_per_s, examples, intervals, period_s)


def _positive(row: Mapping[str, Any], name: str, place: str) -> float | None:
    value = row.get(name)
    if value is None or value == "":
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not (math.isfinite(number) and number > 0):
        raise InputError(f"{place}: {name} is {shown(value)}, expected a number above 0")
    return number


def _intervals(row: Mapping[str, Any], place: str) -> tuple[tuple[float, float], ...]:
    try:
        if row.get("active"):
            begins, ends = (_seconds(row.get(name)) for name in ("active", "inactive"))
            found = list(zip(begins, ends, strict=True))
        else:
            found = [_span(word) for word in str(row.get("on_intervals") or "").split()]
    except (TypeError, ValueError, OverflowError):
        raise InputError(
            f'{place}: the times of being on cannot be read; expected on_intervals like "0-3600 7200-9000", or lists '
            "active and inactive of the same length"
        ) from None
    edges = [edge for span in found for edge in span]
    if not edges and isinstance(row.get("active"), list):
        raise InputError(f"{place}: the device is never active: leave it out")
    if edges != sorted(edges) or any(a == b for a, b in found) or any(edge < 0 for edge in edges):
        raise InputError(f"{place}: the times of being on overlap or run backwards: {shown(str(found))}")
    return tuple(found)


def _span(word: str) -> tuple[float, float]:
    begin, end = word.split("-")
    return float(begin), float(end)


def _seconds(value: Any) -> list[float]:
    """Return a list of numbers. Spaces separate them in a CSV cell."""
    return [float(v) for v in (value.split() if isinstance(value, str) else value)]
