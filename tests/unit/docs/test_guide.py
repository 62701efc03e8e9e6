"""docs/guide.md names every setting, each in the table of its own part of the federation file, and its code runs."""

import dataclasses
import re
from pathlib import Path
from typing import get_args

import pytest

from fedmq.config.file import FederationConfig
from fedmq.coordinator.strategies import BuiltIn

GUIDE = (Path(__file__).parents[3] / "docs" / "guide.md").read_text()
SCHEMA = FederationConfig.model_json_schema()
TABLES = {"run": "RunSettings", "training": "TrainingSettings", "commit": "CommitSettings",
          "archive": "ArchiveSettings", "broker": "BrokerSettings", "security": "SecuritySettings",
          "participant": "ParticipantSettings", "uplink": "UplinkSettings", "downlink": "DownlinkSettings",
          "run.stop": "StopSettings"}  # fmt: skip
DESCRIBED_ELSEWHERE = {"strategy"}  # in the guide's chapter on strategies


def settings_in_the_guide():
    """{"": {"app", ...}, "run": {"run_id", ...}, ...} from the first columns of the guide's tables, one a heading."""
    chapter = GUIDE.split("## The federation file")[1].split("\n## ")[0]
    found, part = {"": set()}, ""
    for heading, cell in re.findall(r"^### `\[(.+)\]`$|^\| (`.+?) \|", chapter, re.MULTILINE):
        if heading:
            part = heading
            found[part] = set()
        else:
            found[part] |= set(re.findall(r"`(\w+)`", cell))
    return found


def keys_of(name):
    return set(SCHEMA["$defs"][name]["properties"])


def strategy_classes():
    """The names of the strategies and of whatever can be nested in them."""
    found, waiting = set(), [SCHEMA["properties"]["strategy"]]
    while waiting:
        for name in re.findall(r"#/\$defs/(\w+)", str(waiting.pop())):
            if name not in found:
                found.add(name)
                waiting.append(SCHEMA["$defs"][name])
    return sorted(found)


def test_the_parts_of_the_federation_file_are_the_guides():
    assert keys_of_the_file() == settings_in_the_guide()[""] | set(TABLES) - {"run.stop"} | DESCRIBED_ELSEWHERE
    assert set(settings_in_the_guide()) == {"", *TABLES} | DESCRIBED_ELSEWHERE


def keys_of_the_file():
    return set(SCHEMA["properties"])


@pytest.mark.parametrize("table", TABLES)
def test_every_key_of_a_table_is_in_the_guide_and_none_that_there_is_not(table):
    assert settings_in_the_guide()[table] == keys_of(TABLES[table]) - {"stop"}


@pytest.mark.parametrize("name", strategy_classes())
def test_every_key_of_a_strategy_is_in_the_guides_chapter_on_strategies(name):
    chapter = GUIDE.split("## Strategies")[1].split("\n## ")[0]
    words = set(re.findall(r"\w+", " ".join(re.findall(r"`([^`]+)`", chapter))))
    assert keys_of(name) - words == set()


def strategies_in_the_guide():
    """name -> the words in code of its row's last column, with those of the strategies that it names there."""
    chapter = GUIDE.split("## Strategies")[1].split("\n## ")[0]
    rows = re.findall(r'^\| `name = "(\w+)"` \| .* \| (.+?) \|$', chapter, re.MULTILINE)
    own = {name: set(re.findall(r"\w+", " ".join(re.findall(r"`([^`]+)`", keys)))) for name, keys in rows}
    (buffers,) = re.findall(r"^Strategies with a `buffer_size` also have (.*)$", chapter, re.MULTILINE)
    own |= {name: words.union(re.findall(r"`(\w+)`", buffers)) for name, words in own.items() if "buffer_size" in words}
    return {name: words.union(*(own[other] for other in words & set(own))) for name, words in own.items()}


@pytest.mark.parametrize("kind", get_args(BuiltIn), ids=lambda kind: kind.__name__)
def test_the_file_takes_a_strategy_by_its_name_and_the_guides_row_of_it_has_its_keys(kind):
    own = {field.name: field for field in dataclasses.fields(kind)}
    name = own.pop("name").default
    assert set(own) - strategies_in_the_guide()[name] == set()
    required = [key for key, field in own.items() if field.default is dataclasses.MISSING]
    assert required in ([], ["num_participants"])
    config = FederationConfig.model_validate(
        {
            "run": {"run_id": "r", "stop": {"max_versions": 1}},
            "strategy": {"name": name} | dict.fromkeys(required, 4),
            "training": {"learning_rate": 0.1},
        }
    )
    assert config.strategy == kind(**dict.fromkeys(required, 4))


PROSE = {"those heard from", "constant", "`max_steps`"}
"""Defaults that are no values."""
VALUES = {"none": None, "required": dataclasses.MISSING, "4 GiB": 4 * 2**30}


@pytest.mark.parametrize("kind", get_args(BuiltIn), ids=lambda kind: kind.__name__)
def test_the_guides_defaults_of_a_strategy_are_its_own(kind):
    (row,) = re.findall(rf'^\| `name = "{kind.name}"` \| .* \| (.+?) \|$', GUIDE, re.MULTILINE)
    said = {key: text for key, text in re.findall(r"`(\w+)`[^`(,;]*\(([^()]+)\)", row) if text not in PROSE}
    own = {field.name: field.default for field in dataclasses.fields(kind)}
    assert said
    assert {key: own[key] for key in said} == {key: value_of(text) for key, text in said.items()}


def value_of(text):
    if text in VALUES:
        return VALUES[text]
    return text.strip("`") if text.startswith("`") else float(text)


def test_the_guide_has_each_strategy_and_no_other():
    assert set(strategies_in_the_guide()) == {kind.name for kind in get_args(BuiltIn)}
