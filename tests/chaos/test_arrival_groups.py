"""kill -9 of the coordinator at every step of the commit protocol, in a run with arrival groups."""

import pytest

from fedmq.coordinator.audit import audit
from fedmq.coordinator.state import checkpoint
from fedmq.coordinator.state.run_folder import RunFolder
from fedmq.studies.engine.replay import replay
from tests.chaos.harness import died_at
from tests.chaos.test_coordinator import POINTS
from tests.support.full import in_full

pytestmark = [
    pytest.mark.broker,
    in_full("tests/integration covers it in one process"),
]
COMPASS = """[strategy]
name = "fedcompass"
num_participants = 3
min_steps = 1
max_steps = 4
latest_factor = 2.0
"""


def test_a_coordinator_killed_at_every_point_in_turn_loses_nothing_of_any_group(federation):
    toml = federation.folder / "federation.toml"
    text = toml.read_text()
    start, end = text.index("[strategy]"), text.index("[commit]")
    toml.write_text(text[:start] + COMPASS + text[end:])
    participants = [federation.participant(name) for name in ("p0", "p1", "p2")]
    for point in POINTS:
        assert died_at(federation.coordinator(fault=f"{point}:2"), point)
    assert federation.coordinator().ended() == 0
    assert [one.ended() for one in participants] == [0, 0, 0]
    checks = audit.verify(RunFolder(federation.run_dir))
    assert [one for one in checks if not one.holds or one.left_out] == []
    with federation.ledger() as ledger:
        rows, discarded = ledger.updates(), ledger.discarded()
    assert set(discarded) <= {"duplicate", "run_finished", "task_closed"}
    accepted = {row.update_id for row in rows}
    assert len(accepted) == len(rows)
    federation.witness.wait_until(lambda: accepted <= set(federation.witness.updates))
    final = checkpoint.read(federation.run_dir / "final.safetensors").arrays
    again = replay(federation.run_dir).parameters
    assert {name: a.tobytes() for name, a in final.items()} == {name: a.tobytes() for name, a in again.items()}
