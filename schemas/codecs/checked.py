"""A codec's functions, called with care, because a codec may be of the user's own.

An error names the codec, its function and the line, and has one of three types:

    AppError           the codec makes something else than it says: nothing can be sent with it
    TrainerError       `encode` raised on this update
    MalformedMessage   `decode` raised on these parts, or made no values of the model's of them

Arrays go in read-only. A codec that changed the values would change what error feedback carries to the next update.
One that changed the parts would change what is sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from operator import index

import numpy as np

from fedmq.schemas.codecs.codec import Array, Codec, Encoded, Part, Places, Values
from fedmq.schemas.errors import (
    AppError,
    LimitExceeded,
    MalformedMessage,
    SpecMismatch,
    TrainerError,
    shown,
)
from fedmq.schemas.local.blame import line_of
from fedmq.schemas.messages import is_identifier
from fedmq.schemas.tensors import DTYPES

RESIDUAL, PLACES = "residual", "residual places"
"""Names of what error feedback carries, flat, and of the list of its tensors, among the arrays that a codec keeps
(participant.training.uplink)."""


def parts_of(codec: Codec, places: Places) -> tuple[Part, ...]:
    """Return the parts that an encoding has. Raises AppError if they cannot travel."""
    try:
        given = [Part(*part) for part in codec.parts(places)]
        parts = tuple(
            Part(p.name, p.dtype, index(p.least), index(p.most), None if p.usual is None else index(p.usual))
            for p in given
        )
    except (Exception, SystemExit) as error:
        raise AppError(f"{_function(codec, 'parts')} raised, or gave no fedmq.Part: {line_of(error)}") from error
    names = [part.name for part in parts]
    for part in parts:
        if not is_identifier(part.name) or names.count(part.name) > 1:
            wrong = "is no name of its own, expected letters, digits, . _ -"
        elif part.dtype not in DTYPES:
            wrong = f"has the dtype {shown(part.dtype)}, expected one of {', '.join(DTYPES)}"
        elif not 0 <= part.least <= part.most:
            wrong = f"has {part.least} to {part.most} elements, expected 0 or more, the fewest first"
        elif part.usual is not None and not part.least <= part.usual <= part.most:
            wrong = f"usually has {part.usual} elements, expected {part.least} to {part.most}"
        elif part.least < part.most and part is not parts[-1]:
            wrong = f"has {part.least} to {part.most} elements, and only the last part may have any number"
        else:
            continue
        raise AppError(f"{_function(codec, 'parts')} says that the part {shown(part.name)} {wrong}")
    return parts


def encoded(codec: Codec, values: Array, places: Places, seed: int, warm: Mapping[str, Array]) -> Encoded:
    """Return what the codec makes of an update's values, its parts as contiguous arrays.

    Raises TrainerError if it fails, and AppError if the result is not what its `parts` say.
    """
    expected = parts_of(codec, places)
    try:
        made = codec.encode(_read_only(values), places, seed, {name: _read_only(array) for name, array in warm.items()})
    except (AppError, TrainerError):
        raise
    except (Exception, SystemExit) as error:
        raise TrainerError(f"{_function(codec, 'encode')} raised: {line_of(error)}") from error
    if not isinstance(made, Encoded) or not isinstance(made.parts, Mapping) or not isinstance(made.warm, Mapping):
        raise AppError(f"{_function(codec, 'encode')} returned {type(made).__name__}, expected fedmq.Encoded(parts)")
    for name, array in made.warm.items():
        travels = isinstance(array, np.ndarray) and array.dtype in DTYPES.values()
        if not isinstance(name, str) or name in (RESIDUAL, PLACES) or not travels:
            raise AppError(
                f"{_function(codec, 'encode')} keeps {shown(name)} for the next encoding, a {type(array).__name__}: "
                f"expected numpy arrays of a dtype that travels, under other names than {RESIDUAL!r} and "
                f"{PLACES!r}"
            )
    try:
        parts = {name: np.ascontiguousarray(array) for name, array in made.parts.items()}
        check_parts(expected, parts)
    except (SpecMismatch, LimitExceeded, ValueError) as error:
        raise AppError(f"{_function(codec, 'encode')} breaks the promise of its parts(): {error}") from None
    return Encoded(parts, made.warm)


def decoded(codec: Codec, parts: Mapping[str, Array], places: Places) -> Values:
    """Return the values of parts that were checked. Raises MalformedMessage, whatever the codec does."""
    try:
        values = np.asarray(codec.decode({name: _read_only(array) for name, array in parts.items()}, places))
    except MalformedMessage:
        raise
    except (Exception, SystemExit) as error:
        raise MalformedMessage(f"{_function(codec, 'decode')} raised: {line_of(error)}") from error
    if values.shape != (places.size,) or values.dtype != np.float32:
        raise MalformedMessage(
            f"{_function(codec, 'decode')} gave {values.dtype}{list(values.shape)}, expected float32[{places.size}]"
        )
    return values


def check_parts(expected: tuple[Part, ...], parts: Mapping[str, Array]) -> None:
    """Raise SpecMismatch or LimitExceeded unless these are the parts that a codec makes of the model."""
    if list(parts) != [p.name for p in expected]:
        raise SpecMismatch(f"the parts {list(parts)[:8]}, expected {[p.name for p in expected]}")
    for part in expected:
        array = parts[part.name]
        if array.dtype != DTYPES[part.dtype] or array.ndim != 1:
            raise SpecMismatch(f"part {part.name} is {array.dtype}{list(array.shape)}, expected {part.dtype} and flat")
        if not part.least <= array.size <= part.most:
            raise LimitExceeded(f"part {part.name} has {array.size} elements, expected {part.least} to {part.most}")


def _read_only(array: Array) -> Array:
    view = array.view()
    view.flags.writeable = False
    return view


def _function(codec: Codec, name: str) -> str:
    return f"the codec {codec.name!r}: {name}()"
