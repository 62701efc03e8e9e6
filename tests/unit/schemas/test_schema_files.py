"""The files of `schemas/json/` are those that the code makes."""

from __future__ import annotations

import json

from fedmq.schemas import jsonschema
from fedmq.schemas.messages import MESSAGE_TYPES


def test_the_schema_files_are_current():
    assert jsonschema.differences() == [], "run: python -m fedmq.schemas.jsonschema"


def test_there_is_one_schema_for_each_kind_and_for_the_envelope():
    assert set(jsonschema.files()) == {f"{kind}.json" for kind in MESSAGE_TYPES} | {"tensor.json", "envelope.json"}


def test_a_missing_an_outdated_and_a_left_over_file_are_found_and_written_right(tmp_path):
    jsonschema.write(tmp_path)
    (tmp_path / "hello.json").unlink()
    (tmp_path / "task.json").write_text("{}")
    (tmp_path / "weights.json").write_text("{}")
    assert jsonschema.differences(tmp_path) == ["hello.json", "task.json", "weights.json"]
    jsonschema.write(tmp_path)
    assert jsonschema.differences(tmp_path) == []


def test_a_schema_refuses_unknown_fields_and_leaves_the_kind_to_the_header():
    for kind in MESSAGE_TYPES:
        schema = json.loads(jsonschema.files()[f"{kind}.json"])
        assert schema["additionalProperties"] is False
        assert "kind" not in schema["properties"]
