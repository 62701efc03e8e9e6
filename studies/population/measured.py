"""Measured values from a file: one column of a CSV, or a text file with a value in each row.

Without a `column` the file has one column, and its first row may be the column's name. Rows that are empty are passed
over. Each value is a number from 0 to LARGEST.
"""

from __future__ import annotations

import csv
import io
import itertools
from array import array
from collections.abc import Iterator
from pathlib import Path

from fedmq.schemas.errors import InputError, shown
from fedmq.schemas.local.files import read_text

MOST_BYTES = 256 * 1024**2
MOST_VALUES = 1_000_000
"""Largest number of values of one law. Each process of a study keeps them."""

LARGEST = 1e30
"""Largest number in a law. Means of such laws, and products of their draws, are finite numbers too."""


def read_values(path: Path, column: str | None = None) -> array[float]:
    """Return the values of a file in rising order. Raises InputError with the first mistake and its line."""
    try:
        text = read_text(path, MOST_BYTES, named_by_user=True)
        numbers = _numbers(csv.reader(io.StringIO(text, newline="")), path, column)
        found = array("d", sorted(itertools.islice(numbers, MOST_VALUES + 1)))
    except FileNotFoundError:
        raise InputError(f"there is no file {path}: name one with a measured value in each row") from None
    except (OSError, UnicodeDecodeError, csv.Error) as e:
        raise InputError(f"{path} cannot be read: {e}") from e
    if not found:
        raise InputError(f"{path} has no values, expected a number in each row")
    if len(found) > MOST_VALUES:
        raise InputError(f"{path} has more than {MOST_VALUES:,} values, the most for one law: take a sample of them")
    return found


def _numbers(lines: Iterator[list[str]], path: Path, column: str | None) -> Iterator[float]:
    at: int | None = None
    for line, cells in enumerate(lines, 1):
        row = [cell.strip() for cell in cells]
        if not any(row):
            continue
        if at is None:
            at = _place(row, path, column)
            if column is not None or _number(row[at]) is None:  # the row has the columns' names
                continue
        if at >= len(row):
            raise InputError(f"{path}, line {line}: there are {len(row)} cells, expected {at + 1} or more")
        value = _number(row[at])
        if value is None or not 0 <= value <= LARGEST:
            raise InputError(f"{path}, line {line}: got {shown(row[at])}, expected a number from 0 to {LARGEST:g}")
        yield value


def _place(first: list[str], path: Path, column: str | None) -> int:
    """Return the index of the column, by the file's first row."""
    if column is None:
        if len(first) > 1:
            raise InputError(f"{path} has {len(first)} columns: name one of them with column = ...")
        return 0
    if column not in first:
        raise InputError(f"{path} has no column {column!r}, its first row has: {', '.join(first)}")
    return first.index(column)


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None
