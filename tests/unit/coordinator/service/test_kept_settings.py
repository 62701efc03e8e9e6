"""Settings that a run keeps for life, and those that may be switched on later."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from fedmq.coordinator.service.startup import refuse_changes, settings_of
from fedmq.coordinator.settings import CommitSettings, DownlinkSettings, RunSettings
from fedmq.coordinator.strategies import FedBuff
from fedmq.schemas.errors import ConfigError
from fedmq.schemas.messages import TrainingConfig

FOLDER = SimpleNamespace(path=Path("runs/r"))


def settings(downlink=None, **strategy):
    run = RunSettings(run_id="r", stop={"max_versions": 1})
    return settings_of(run, FedBuff(**strategy), TrainingConfig(), CommitSettings(), None, downlink)


def test_a_buffer_may_be_given_a_timeout():
    refuse_changes(settings(), settings(buffer_timeout_s=60.0, min_updates=3), FOLDER)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ({"buffer_timeout_s": 60.0}, {}, "strategy.buffer_timeout_s was 60.0 and is now None"),
        ({"buffer_timeout_s": 60.0}, {"buffer_timeout_s": 9.0}, "strategy.buffer_timeout_s was 60.0 and is now 9.0"),
        ({"buffer_timeout_s": 60.0}, {"buffer_timeout_s": 60.0, "min_updates": 2}, "min_updates was None and is now 2"),
        ({}, {"buffer_timeout_s": 60.0, "buffer_size": 9}, "buffer_size was 10 and is now 9"),
        ({}, {"downlink": DownlinkSettings(codec="bf16")}, "downlink.codec was 'none' and is now 'bf16'"),
    ],
)
def test_any_other_change_is_refused_with_both_values(old, new, said):
    with pytest.raises(ConfigError, match=said):
        refuse_changes(settings(**old), settings(**new), FOLDER)


def test_the_ledger_of_an_older_fedmq_lacks_what_is_new_and_the_run_goes_on():
    old = settings()
    for name in ("buffer_timeout_s", "min_updates"):
        del old["strategy"][name]
    del old["downlink"]
    refuse_changes(old, settings(), FOLDER)
    refuse_changes(old, settings(buffer_timeout_s=60.0), FOLDER)
