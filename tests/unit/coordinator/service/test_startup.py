"""The table [downlink] of a run that goes on: what it keeps for life, and what may change."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedmq.coordinator.service.startup import refuse_changes, settings_of
from fedmq.coordinator.settings import CommitSettings, DownlinkSettings, RunSettings, StopSettings
from fedmq.coordinator.state.run_folder import RunFolder
from fedmq.coordinator.strategies import FedBuff
from fedmq.schemas.errors import ConfigError
from fedmq.schemas.messages import TrainingConfig

RUN = RunSettings(run_id="r", stop=StopSettings(max_versions=1))


def settings(downlink: DownlinkSettings) -> dict[str, object]:
    return settings_of(RUN, FedBuff(), TrainingConfig(), CommitSettings(), None, downlink)


def test_where_the_tensors_of_tasks_are_may_change_in_a_run_and_their_form_may_not(tmp_path: Path) -> None:
    before = settings(DownlinkSettings())
    refuse_changes(before, settings(DownlinkSettings(reference="never", reference_keep=2)), RunFolder(tmp_path))
    with pytest.raises(ConfigError, match=r"downlink\.codec was 'none' and is now 'bf16'"):
        refuse_changes(before, settings(DownlinkSettings(codec="bf16")), RunFolder(tmp_path))


def test_a_run_of_a_fedmq_without_references_goes_on_with_them(tmp_path: Path) -> None:
    before = settings(DownlinkSettings())
    before["downlink"] = {"codec": "none", "step_codec": None, "fraction": None}
    refuse_changes(before, settings(DownlinkSettings()), RunFolder(tmp_path))
