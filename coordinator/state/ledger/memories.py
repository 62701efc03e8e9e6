"""The strategy's memories of participants (strategies.protocol) as rows of the ledger: one row a tensor."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from fedmq.schemas.errors import LedgerError, shown
from fedmq.schemas.local.files import parse_json
from fedmq.schemas.parameters import Array
from fedmq.schemas.tensors import DTYPES

Memories = Mapping[str, Mapping[str, Array]]
"""Memories by participant and tensor: participant -> tensor -> array."""
Row = tuple[str, str, str, str, int, Any]
"""A row of the table `memories`: participant_id, tensor, dtype, shape, crc32, bytes."""


def to_rows(memories: Memories) -> Iterator[Row]:
    """Yield rows for the table `memories`. Contiguous little-endian arrays are not copied."""
    for participant_id, arrays in memories.items():
        for name, array in arrays.items():
            plain = np.ascontiguousarray(array, dtype=DTYPES[array.dtype.name])
            data = plain.reshape(-1).view(np.uint8).data
            yield participant_id, name, array.dtype.name, json.dumps(array.shape), zlib.crc32(data), data


def from_rows(rows: Iterable[Row]) -> dict[str, dict[str, Array]]:
    """Return the memories of these rows, read-only. Raises LedgerError for a row that was altered."""
    memories: dict[str, dict[str, Array]] = {}
    for participant_id, name, dtype, shape, crc, data in rows:
        if zlib.crc32(data) != crc:
            raise LedgerError(
                f"the ledger's memory of participant {participant_id!r}, tensor {name!r}, is damaged. Restore the run "
                "folder from a backup, or start a new run_id."
            )
        try:
            array = np.frombuffer(data, DTYPES[dtype]).reshape(parse_json(shape))
        except (KeyError, TypeError, ValueError) as error:
            raise LedgerError(
                f"the ledger's memory of participant {shown(participant_id)}, tensor {shown(name)}, is not as fedmq "
                f"writes it: {shown(str(error))}"
            ) from error
        memories.setdefault(participant_id, {})[name] = array
    return memories
