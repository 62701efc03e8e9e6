"""The doctor's findings that need neither app nor broker."""

from fedmq.config.file import load_config
from fedmq.views.doctor import examine
from tests.unit.fedmq.config.test_custom_strategy import WEIGHTED_MEAN


def test_a_mistake_in_the_options_of_a_custom_strategy_is_the_strategys_and_not_the_apps(tmp_path):
    (tmp_path / "mine.py").write_text(WEIGHTED_MEAN)
    (tmp_path / "federation.toml").write_text(
        '[run]\nrun_id = "r"\nstop = { max_versions = 1 }\n'
        '[strategy]\nname = "custom"\nfile = "mine.py"\noptions = { bufer_size = 7 }\n'
    )
    findings = examine(load_config(tmp_path / "federation.toml", environ={}), "sensor-1")
    found = next(finding for finding in findings if finding.level == "wrong")
    assert found.what.startswith("strategy: build_strategy in ")
    assert (
        "allowed: buffer_size, buffer_timeout_s, min_updates, power, server_learning_rate; did you mean buffer_size?"
        in found.what
    )
    assert "strategy.options" in found.advice
    assert "app" not in found.advice
