"""A participant's own model on its disk, in a way that is safe to repeat.

One file holds the model after the newest task, the model before it, and the task's key. A task that is trained again,
after a crash or because its update was lost, starts from the model before. So it ends where it ended.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from fedmq.participant.spool.records import (
    MOST_HEAD_BYTES,
    WRONG,
    as_spool_error,
    tensor_entries,
    tensors_in,
    unwrap,
    wrap,
    write,
)
from fedmq.schemas.errors import PeerError
from fedmq.schemas.limits import MAX_PAYLOAD_BYTES
from fedmq.schemas.local.event_log import EventLog
from fedmq.schemas.local.files import UnfitFile, content
from fedmq.schemas.parameters import Array, Parameters
from fedmq.schemas.tensors import pack

log = EventLog(__name__)

FILE = "model.fedmq"
_BEFORE, _AFTER = "before:", "after:"
_MOST_BYTES = 2 * MAX_PAYLOAD_BYTES + MOST_HEAD_BYTES


@dataclass(frozen=True, slots=True)
class OwnModel:
    """The model of a participant after its newest task."""

    key: str
    """Name of the task's work: the same for the same task."""
    before: Parameters | None
    """The model from which the task's training began; None if that was a new one."""
    after: Parameters

    def start_of(self, key: str) -> Parameters | None:
        """Return the model that a task with this key starts from; None for a new one."""
        return self.before if key == self.key else self.after


def write_own_model(folder: Path, model: OwnModel) -> None:
    """Write the file in the folder. Raises SpoolError."""
    before = {} if model.before is None else _named(_BEFORE, model.before)
    fixed = _fixed(_BEFORE, model.before) | _fixed(_AFTER, model.after)
    both = Parameters({**before, **_named(_AFTER, model.after)}, fixed)
    write(folder / FILE, wrap({"key": model.key, "tensors": tensor_entries(both)}, *pack(both)))


def read_own_model(folder: Path) -> OwnModel | None:
    """Return what the folder's file holds; None if there is none that can be read. A bad file is moved aside.

    Raises SpoolError if the disk refuses.
    """
    path = folder / FILE
    with as_spool_error("read", path):
        try:
            header, body, _ = unwrap(content(path, _MOST_BYTES))
            both = tensors_in(header, body)
            before, after = (_part(prefix, both) for prefix in (_BEFORE, _AFTER))
            return OwnModel(str(header["key"]), before if len(before) else None, after)
        except FileNotFoundError:
            return None
        except (UnfitFile, PeerError, *WRONG) as error:
            aside = path.with_name(f"{time.time_ns()}-set-aside-{FILE}")
            log.error("own_model_set_aside", file=path, moved_to=aside, why=error, next="a new model begins")
            path.replace(aside)
            return None


def _named(prefix: str, model: Parameters) -> dict[str, Array]:
    return {prefix + name: array for name, array in model.items()}


def _fixed(prefix: str, model: Parameters | None) -> frozenset[str]:
    return frozenset() if model is None else frozenset(prefix + name for name in model.non_trainable)


def _part(prefix: str, both: Parameters) -> Parameters:
    names = {name: name.removeprefix(prefix) for name in both if name.startswith(prefix)}
    return Parameters({short: both[name] for name, short in names.items()},
                      {short for name, short in names.items() if name in both.non_trainable})  # fmt: skip
