"""docs/guide.md names every setting, each in the table of its own part of the federation file."""

import re
from pathlib import Path

import pytest

from fedmq.config import FederationConfig

GUIDE = (Path(__file__).parents[3] / "docs" / "guide.md").read_text()
SCHEMA = FederationConfig.model_json_schema()
TABLES = {"run": "RunSettings", "training": "TrainingConfig", "commit": "CommitSettings", "archive": "ArchiveSettings",
          "broker": "BrokerSettings",
          "participant": "ParticipantSettings", "run.stop": "StopSettings"}  # fmt: skip
DESCRIBED_ELSEWHERE = {"strategy"}  # in the guide's chapter on strategies


def settings_in_the_guide():
    """{"": {"app", ...}, "run": {"run_id", ...}, ...} from the first column of the guide's table."""
    chapter = GUIDE.split("## The federation file")[1].split("\n## ")[0]
    found, part = {"": set()}, ""
    for cell in re.findall(r"^\| (.+?) \|", chapter, re.MULTILINE):
        if heading := re.fullmatch(r"\*\*`\[(.+)\]`\*\*", cell):
            part = heading[1]
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
