"""Strategies from the user's own file."""

import pytest

from fedmq.config.custom_strategy import CustomStrategy, build
from fedmq.config.file import load_config
from fedmq.schemas.errors import AppError

WEIGHTED_MEAN = """
from __future__ import annotations

from dataclasses import dataclass

import fedmq

@dataclass(frozen=True)
class Mine(fedmq.WeightedMean):
    power: float = 1.0

    def weight(self, update: fedmq.ClientUpdate, staleness: int) -> float:
        return update.client_weight / (1 + staleness) ** self.power

build_strategy = Mine
"""
STRATEGY = """
from fedmq import FedBuff

class FewerSteps(FedBuff):
    def accumulate(self, state, update, staleness):
        state.accumulate(update, self.staleness(staleness) / max(1, update.num_steps))
        return state

def build_strategy(**options):
    return FewerSteps(**options)
"""


def test_a_federation_file_names_a_strategy_file_and_its_options(tmp_path):
    (tmp_path / "mine.py").write_text(STRATEGY)
    (tmp_path / "federation.toml").write_text(
        '[run]\nrun_id = "r"\nstop = { max_versions = 1 }\n'
        '[strategy]\nname = "custom"\nfile = "mine.py"\noptions = { buffer_size = 7 }\n'
    )
    config = load_config(tmp_path / "federation.toml", environ={})
    strategy = build(config.strategy)
    assert (type(strategy).__name__, strategy.buffer_size, strategy.reply) == ("FewerSteps", 7, "delta")


def test_a_plain_dataclass_with_a_weight_takes_the_options_of_its_own_and_the_inherited_ones(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(WEIGHTED_MEAN)
    strategy = build(CustomStrategy(str(file), {"buffer_size": 7, "power": 2.0}))
    assert (strategy.name, strategy.reply, strategy.cohort) == ("Mine", "delta", None)
    assert (strategy.buffer_size, strategy.server_learning_rate, strategy.power) == (7, 1.0, 2.0)


def test_strategies_of_two_files_do_not_meet(tmp_path):
    for name, power in (("a.py", "1.0"), ("b.py", "3.0")):
        (tmp_path / name).write_text(WEIGHTED_MEAN.replace("power: float = 1.0", f"power: float = {power}"))
    a, b = (build(CustomStrategy(str(tmp_path / name))) for name in ("a.py", "b.py"))
    assert (a.power, b.power) == (1.0, 3.0)
    assert type(a).__module__ != type(b).__module__


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"buffer_size": 0}, "ConfigError: strategy Mine: got buffer_size = 0"),
        ({"bufer_size": 2}, "unexpected keyword argument 'bufer_size'"),
    ],
)
def test_options_that_cannot_be_are_refused_when_it_is_built(tmp_path, options, told):
    file = tmp_path / "mine.py"
    file.write_text(WEIGHTED_MEAN)
    with pytest.raises(AppError, match=told):
        build(CustomStrategy(str(file), options))


def test_an_unknown_option_is_told_with_the_allowed_ones(tmp_path):
    file = tmp_path / "mine.py"
    for text, allowed in (
        (WEIGHTED_MEAN, "buffer_size, buffer_timeout_s, min_updates, power, server_learning_rate"),
        (STRATEGY, "buffer_size, buffer_timeout_s, min_updates, name, normalize, server_learning_rate, "
         "server_optimizer, staleness"),
    ):  # fmt: skip
        file.write_text(text)
        with pytest.raises(AppError) as caught:
            build(CustomStrategy(str(file), {"bufer_size": 2}))
        said = f"strategy.options has an unknown key bufer_size, allowed: {allowed}; did you mean buffer_size?"
        assert str(caught.value).endswith(said)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "There is no strategy file"),
        ("1/0", "fails when it is loaded: ZeroDivisionError"),
        ("def build(): ...", "no function build_strategy"),
        ("def build_strategy(**o): raise ValueError('seven')", "failed with {'k': 1}: ValueError: seven"),
        ("def build_strategy(**o): return 3", "gave int, which lacks"),
    ],
)
def test_what_is_no_strategy_is_refused_with_what_it_is(tmp_path, text, told):
    file = tmp_path / "s.py"
    if text is not None:
        file.write_text(text)
    with pytest.raises(AppError, match=told.replace("{", r"\{")):
        build(CustomStrategy(str(file), {"k": 1}))
