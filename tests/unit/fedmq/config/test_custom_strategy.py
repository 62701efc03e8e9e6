"""Strategies from the user's own file."""

import pytest

from fedmq.config.custom_strategy import CustomStrategy, build
from fedmq.config.file import load_config
from fedmq.schemas.errors import AppError

STRATEGY = """
from fedmq import FedBuff

class FewerSteps(FedBuff):
    def accumulate(self, state, update, staleness):
        state.add(update, self.staleness(staleness) / max(1, update.num_steps))
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
