"""The wire contract as JSON Schema, for people and for peers in other languages.

`python -m fedmq.schemas.jsonschema` writes `schemas/json/`. With `--check` it writes nothing, and exits with 1 if the
files there are not current. `<kind>.json` describes the "body" of a header of that kind, `tensor.json` one entry of
"tensors", and `envelope.json` the header as a whole. (A schema cannot say that metrics must be finite.)
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from fedmq.schemas.limits import DEFAULT_LIMITS
from fedmq.schemas.messages import MESSAGE_TYPES, SCHEMA_VERSION
from fedmq.schemas.tensors import TensorEntry

FOLDER = Path(__file__).parent / "json"
_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def files() -> dict[str, str]:
    """Return the text of each file that `schemas/json/` must hold, by the file's name."""
    schemas = {kind: _body_schema(kind) for kind in MESSAGE_TYPES}
    schemas["tensor"] = TensorEntry.model_json_schema()
    schemas["tensor"]["properties"]["shape"]["maxItems"] = DEFAULT_LIMITS.max_rank
    schemas["envelope"] = _envelope_schema()
    return {f"{name}.json": _text(schema) for name, schema in schemas.items()}


def differences(folder: Path = FOLDER) -> list[str]:
    """Return the names of files that are missing, outdated, or there without a message of that kind."""
    want = files()
    have = {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.json")}
    return sorted(name for name in want.keys() | have.keys() if want.get(name) != have.get(name))


def write(folder: Path = FOLDER) -> None:
    """Make `folder` hold exactly the current schemas."""
    folder.mkdir(exist_ok=True)
    want = files()
    for path in folder.glob("*.json"):
        if path.name not in want:
            path.unlink()
    for name, text in want.items():
        (folder / name).write_text(text, encoding="utf-8")


def _body_schema(kind: str) -> dict[str, Any]:
    schema = MESSAGE_TYPES[kind].model_json_schema()
    del schema["properties"]["kind"]  # it is beside the body, in the header
    return schema


def _envelope_schema() -> dict[str, Any]:
    bodies = [
        {
            "if": {"properties": {"kind": {"const": kind}}},
            "then": {"properties": {"body": {"$ref": f"{kind}.json"}}},
        }
        for kind in MESSAGE_TYPES
    ]
    return {
        "title": "Header of an envelope",
        "description": "The first of the envelope's three parts; padding and blob follow. The key fedmq is first.",
        "type": "object",
        "properties": {
            "fedmq": {"const": SCHEMA_VERSION},
            "kind": {"enum": list(MESSAGE_TYPES)},
            "body": {"type": "object"},
            "tensors": {
                "type": "array",
                "maxItems": DEFAULT_LIMITS.max_tensors,
                "items": {"$ref": "tensor.json"},
            },
        },
        "required": ["fedmq", "kind", "body"],
        "additionalProperties": False,
        "allOf": bodies,
    }


def _text(schema: dict[str, Any]) -> str:
    return json.dumps({"$schema": _DIALECT, **schema}, indent=2, ensure_ascii=False) + "\n"


def main() -> int:
    """Run the command: write the files, or check them."""
    parser = argparse.ArgumentParser(prog="python -m fedmq.schemas.jsonschema", description="Write schemas/json/")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a file is not current")
    if not parser.parse_args().check:
        write()
        return 0
    outdated = differences()
    if outdated:
        print(f"not current: {', '.join(outdated)}; run: python -m fedmq.schemas.jsonschema")
    return 1 if outdated else 0


if __name__ == "__main__":
    raise SystemExit(main())
