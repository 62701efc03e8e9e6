"""The strategies of a user's own in README.md and docs/guide.md are run as they stand there."""

import re
import tomllib
from pathlib import Path

import pytest

from fedmq.config.custom_strategy import CustomStrategy, build
from tests.unit.coordinator.strategies.twins import Sent, play

ROOT = Path(__file__).parents[3]


def samples(page):
    """The page's Python samples that build a strategy."""
    blocks = re.findall(r"^```python\n(.*?)^```$", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
    return [block for block in blocks if "build_strategy" in block]


def built(page, folder, options):
    (sample,) = samples(page)
    file = folder / "strategy.py"
    file.write_text(sample)
    return build(CustomStrategy(str(file), options))


def test_readmes_strategy_is_what_its_federation_file_names(tmp_path):
    tables = re.findall(r"^```toml\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    (table,) = [t for block in tables if (t := tomllib.loads(block).get("strategy", {})).get("name") == "custom"]
    strategy = built("README.md", tmp_path, table["options"])
    assert (strategy.name, strategy.buffer_size, strategy.patience) == ("Impatient", 4, 3)
    story = [Sent(who, [8.0], tau) for who, tau in (("a", 0), ("b", 2), ("c", 3), ("d", 9))]
    played = play(strategy, [0.0], story)
    assert played.weights == [(0.25, 0.25, 0.0, 0.0)]
    assert played.versions[0].tolist() == [4.0]


def test_the_guides_strategy_does_what_it_says(tmp_path):
    strategy = built("docs/guide.md", tmp_path, {"buffer_size": 2, "power": 2})
    played = play(strategy, [0.0], [Sent("a", [10.0], num_steps=1), Sent("b", [0.0], num_steps=2)])
    assert played.weights == [(0.8, 0.2)]
    assert played.versions[0].tolist() == [8.0]


@pytest.mark.parametrize("page", ["README.md", "docs/guide.md"])
def test_a_strategy_of_the_users_own_imports_fedmq_alone(page):
    imports = [line for sample in samples(page) for line in sample.splitlines() if "import" in line]
    assert {re.match(r"(from|import) (\S+)", line)[2] for line in imports} == {"dataclasses", "fedmq"}
