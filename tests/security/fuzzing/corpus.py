"""Valid messages of every kind in MESSAGE_TYPES, made from the types themselves: a new kind is fuzzed without a change
here."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
from pydantic import ValidationError

from fedmq.schemas.codec import encode
from fedmq.schemas.messages import MESSAGE_TYPES, AnyMessage
from fedmq.schemas.parameters import Parameters
from tests.security.fuzzing.mutations import Sample

TEXTS = ("a-1", "0" * 64, "0" * 32, "x")
"""One of these fits every pattern of a text."""


def model(num_values: int = 40) -> Parameters:
    """Return the model that everybody trains."""
    return Parameters(
        {
            "000/kernel": np.linspace(-1, 1, num_values, dtype=np.float32).reshape(4, -1),
            "001/bias": np.zeros(4, np.float32),
        }
    )


def mixed_model(num_values: int) -> Parameters:
    """Return a model with tensors that no codec codes, of other dtypes, without elements, and without a dimension."""
    more = {
        "002/mean": np.zeros(5, np.float32), "003/half": np.linspace(-1, 1, 12, dtype=np.float16).reshape(3, 4),
        "004/scalar": np.float32(0.5), "005/empty": np.zeros((0, 3), np.float32), "006/count": np.int64(7),
    }  # fmt: skip
    return Parameters({**model(num_values), **{n: np.asarray(a) for n, a in more.items()}}, {"002/mean", "006/count"})


@cache
def samples() -> list[Sample]:
    """Return a sample of every kind: one with the optional fields, one without, each with tensors if it may have
    them."""
    parameters = model()
    found = []
    for kind in MESSAGE_TYPES:
        messages = [message for whole in (True, False) if (message := _example(kind, whole)) is not None]
        bodies = [body for m in messages for beside in (parameters, None) if (body := _encoded(m, beside)) is not None]
        assert bodies, f"no example for a {kind}: teach tests/security/fuzzing/corpus.py this kind"
        found += [Sample.of(body) for body in bodies]
    return found


def _example(kind: str, whole: bool) -> AnyMessage | None:
    """Return a valid message of a kind, with all fields or with the required ones; None if they do not go together."""
    schema = MESSAGE_TYPES[kind].model_json_schema()
    chosen = {
        name: _value(inside, schema.get("$defs", {}))
        for name, inside in schema["properties"].items()
        if name not in {"kind", "chunks", "reference"} and (whole or name in schema.get("required", ()))
    }
    try:
        return MESSAGE_TYPES[kind](**_as_python(chosen))
    except ValidationError:
        return None


def _encoded(message: AnyMessage, parameters: Parameters | None) -> bytes | None:
    try:
        return encode(message, parameters)
    except ValueError:
        return None


def _value(schema: Mapping[str, Any], defs: Mapping[str, Any]) -> Any:
    if "$ref" in schema:
        return _value(defs[schema["$ref"].rsplit("/", 1)[1]], defs)
    if "const" in schema or "enum" in schema:
        return schema.get("const", schema.get("enum", [None])[0])
    if "anyOf" in schema:
        return _value(next(one for one in schema["anyOf"] if one.get("type") != "null"), defs)
    match schema.get("type"):
        case "string":
            return _text(schema)
        case "integer":
            return max(1, schema.get("minimum", 1))
        case "number":
            return 1.5
        case "boolean":
            return True
        case "array":
            return [_value(schema["items"], defs)] * max(1, schema.get("minItems", 1)) if "items" in schema else []
        case "object" if "properties" in schema:
            return {name: _value(inside, defs) for name, inside in schema["properties"].items()}
        case "object":
            inside = schema.get("additionalProperties")
            return {"loss": _value(inside, defs)} if isinstance(inside, dict) else {}
    raise AssertionError(f"no example for {schema}: teach tests/security/fuzzing/corpus.py this type")


def _text(schema: Mapping[str, Any]) -> Any:
    import re

    if schema.get("format") in {"binary", "base64url"}:
        return b"\0" * max(32, schema.get("minLength", 0))
    for text in TEXTS:
        fits = re.search(schema["pattern"], text) if "pattern" in schema else True
        if fits and schema.get("minLength", 0) <= len(text) <= schema.get("maxLength", 10**9):
            return text
    return "x" * schema.get("minLength", 1)


def _as_python(value: Any) -> Any:
    """Return lists as tuples: the messages are strict."""
    if isinstance(value, list):
        return tuple(_as_python(inside) for inside in value)
    return {key: _as_python(inside) for key, inside in value.items()} if isinstance(value, dict) else value
