"""The checks for tests without a witness, whose queue would accept updates that no other queue can accept.

The app's training follows from the task's seed, so every payload can be made again.
"""

from __future__ import annotations

from collections import Counter

from fedmq.coordinator.decisions.task_desk import task_seed
from fedmq.coordinator.decisions.tasks.names import parsed
from fedmq.coordinator.state import checkpoint
from fedmq.coordinator.state.ledger.rows import UpdateRow
from fedmq.schemas.parameters import Parameters
from tests.chaos import app
from tests.chaos.harness import Federation, replay


def check(federation: Federation, participants: list[str], versions: int, may_be_lost: int) -> list[UpdateRow]:
    """Check the promises of `Federation.check` with the participants' diaries instead of a witness.

    Each training that was done is in exactly one version, or was discarded with a reason, or came after the end. Up to
    `may_be_lost` trainings may be missing.
    """
    with federation.ledger() as ledger:
        rows, points = ledger.updates(), ledger.versions()
        discarded = {uid for uid, reason in ledger.discarded_updates() if reason != "duplicate"}
        run_uid = ledger.run().run_uid
    assert [row.accepted_order for row in rows] == list(range(1, len(rows) + 1))
    assert len({row.task_id for row in rows}) == len(rows)
    assert [point.version for point in points] == list(range(1, versions + 1))
    assert Counter(row.version for row in rows) == {point.version: point.num_updates for point in points}
    final = checkpoint.read(federation.run_dir / "final.safetensors").arrays
    made_again = replay(rows, retrained)
    assert [final[name].tobytes() for name in final] == [made_again[name].tobytes() for name in made_again]
    done = Counter(line for name in participants for line in federation.trainings(name) if line.startswith("done"))
    accepted = {f"done {seed_of(row.task_id)}" for row in rows}
    assert accepted <= set(done)
    assert all(row.task_id.startswith(run_uid) for row in rows)
    after_the_end = len(participants)  # each may have finished one more training while the last version was made
    assert len(set(done) - accepted) <= may_be_lost + len(discarded) + after_the_end
    return rows


def seed_of(task_id: str) -> int:
    return task_seed(0, parsed(task_id).seq)


def retrained(row: UpdateRow, versions: list[Parameters]) -> Parameters:
    base = versions[row.base_version]
    local = app.trained(base, seed_of(row.task_id))
    return Parameters({"w": local["w"] - base["w"]})
