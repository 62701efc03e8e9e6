"""kill -9 of a participant around its receipt, with a method whose memory is on the participants (AREA)."""

from collections import defaultdict

import numpy as np
import pytest

from fedmq.coordinator.decisions.task_desk import task_seed
from fedmq.coordinator.decisions.tasks.names import parsed
from fedmq.coordinator.state import checkpoint
from fedmq.coordinator.strategies import Area
from fedmq.coordinator.strategies.protocol import ClientUpdate
from fedmq.schemas.parameters import Parameters
from tests.chaos import app
from tests.chaos.harness import died_at
from tests.support.full import FULL

pytestmark = pytest.mark.broker

STRATEGY = Area(num_participants=2, buffer_size=3, memory="participant")
POINTS = ("before-memory-moved", "memory-moved", *(("next-memory-on-disk", "update-confirmed:2") if FULL else ()))
"""Fault points to kill at. tests/integration/front/test_memory.py has all of them, in one process."""


def test_a_participant_killed_around_its_receipts_sends_on_from_what_was_accepted(federation):
    toml = federation.folder / "federation.toml"
    text = toml.read_text()
    start, end = text.index("[strategy]"), text.index("[commit]")
    area = '[strategy]\nname = "area"\nnum_participants = 2\nbuffer_size = 3\nmemory = "participant"\n'
    toml.write_text(text[:start] + area + text[end:])
    coordinator = federation.coordinator()
    for point in POINTS:
        process = federation.participant("p0", fault=point)
        assert died_at(process, point.partition(":")[0]), process.text + coordinator.text
    people = [federation.participant(name) for name in ("p0", "p1")]
    assert [one.ended() for one in (coordinator, *people)] == [0, 0, 0]
    with federation.ledger() as ledger:
        rows, discarded = ledger.updates(), ledger.discarded()
    assert set(discarded) <= {"duplicate", "run_finished", "task_closed"}
    federation.witness.wait_until(lambda: {row.update_id for row in rows} <= set(federation.witness.updates))
    versions, sent, last = replayed(rows, federation.witness.updates)
    final = checkpoint.read(federation.run_dir / "final.safetensors").arrays
    assert final["w"].tobytes() == versions[-1]["w"].tobytes()
    assert sum(row.participant_id == "p0" for row in rows) > len(POINTS)
    for who, row in last.items():
        seed = task_seed(0, parsed(row.task_id).seq)
        made = app.trained(versions[row.base_version], seed)["w"]
        # The sum of its accepted updates is its last result: nothing was lost, and nothing was counted twice.
        np.testing.assert_allclose(sent[who], made, atol=1e-6)


def replayed(rows, updates):
    """Return the versions, and for each participant the sum of its accepted updates and its last row."""
    parameters = Parameters({name: np.asarray(array) for name, array in app.initial_parameters().items()})
    state, versions, sent, last = STRATEGY.init(parameters), [parameters], defaultdict(float), {}
    for row in rows:
        payload = updates[row.update_id][1]
        first = row.participant_id not in last
        one = ClientUpdate(row.update_id, row.participant_id, row.base_version, payload, row.num_examples, first=first)
        sent[row.participant_id] = sent[row.participant_id] + payload["w"].astype(np.float64)
        last[row.participant_id] = row
        state = STRATEGY.accumulate(state, one, row.staleness)
        if STRATEGY.ready(state, 0.0):
            state, parameters = STRATEGY.aggregate(state, parameters)
            versions.append(parameters)
    return versions, sent, last
