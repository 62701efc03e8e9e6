"""The samples in README.md and docs/ are as the code is: names, federation files, commands and their options."""

import ast
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import typer.main

import fedmq
from fedmq.cli.cli import COMMANDS, command_line
from fedmq.config.file import FederationConfig

ROOT = Path(__file__).parents[3]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "examples" / "mnist" / "README.md"]


def blocks(page, language):
    """The page's code blocks in that language; "" stands for those that name none."""
    fences = re.findall(r"^ *```(\w*)\n(.*?)^ *```$", page.read_text(), re.MULTILINE | re.DOTALL)
    return [block for name, block in fences if name == language]


SAMPLES = [
    pytest.param(block, id=f"{page.stem}-{n}") for page in PAGES for n, block in enumerate(blocks(page, "python"), 1)
]


@pytest.mark.parametrize("block", SAMPLES)
def test_every_name_of_fedmq_in_a_sample_is_public(block):
    tree = ast.parse(block)
    imported = [
        a.name for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module == "fedmq" for a in n.names
    ]
    used = [n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and getattr(n.value, "id", "") == "fedmq"]
    assert [name for name in imported + used if name not in fedmq.__all__] == []


def test_readmes_federation_file_is_one():
    (whole,) = [block for block in blocks(PAGES[0], "toml") if "[run]" in block]
    config = FederationConfig.model_validate(tomllib.loads(whole))
    assert (config.run.run_id, config.strategy.name, config.strategy.buffer_size) == ("line-1", "fedbuff", 4)


def test_the_guides_trainer_trains():
    (sample,) = [block for block in blocks(ROOT / "docs" / "guide.md", "python") if "LineTrainer" in block]
    scope = {"Result": fedmq.TrainResult}
    exec(sample, scope)
    np = scope["np"]
    trainer = scope["LineTrainer"](np.array([[1.0], [2.0]]), np.array([2.0, 4.0]))
    result = trainer.train({"w": np.array([1.0])}, fedmq.TrainingConfig(epochs=2))
    assert result.parameters["w"].tolist() == [1.4375]
    assert (result.num_examples, result.num_steps) == (2, 2)


def commands():
    """Every `fedmq COMMAND …` in a code block that names no language, or in inline code: (page, words)."""
    for page in PAGES:
        text = page.read_text()
        lines = [line for block in blocks(page, "") for line in block.replace("\\\n", " ").splitlines()]
        lines += [code for code in re.findall(r"`([^`\n]+)`", text) if code not in lines]
        for line in lines:
            if re.match(r"fedmq [a-z]", line.strip()):
                yield pytest.param(shlex.split(line.strip(), comments=True), id=f"{page.stem}: {line.strip()[:60]}")


@pytest.mark.parametrize("words", list(commands()))
def test_every_command_and_option_on_a_page_is_there(words):
    assert words[1] in COMMANDS
    command = typer.main.get_command(command_line(words[1:])).commands[words[1]]
    if hasattr(command, "commands") and len(words) > 2 and not words[2].startswith("-"):  # one with its own commands
        command = command.commands[words[2]]
    options = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words[2:] if word.startswith("--")} - options == set()
