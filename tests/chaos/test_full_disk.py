"""A coordinator whose disk is full at a commit: nothing is acked, and it goes on when there is room."""

import pytest

pytestmark = pytest.mark.broker
KB = 16 * 1024


def test_a_coordinator_with_a_full_disk_acks_nothing_says_so_and_goes_on_when_there_is_room(federation, disk):
    disk.resize(KB)
    federation.run_dir = disk.folder / "runs" / "r1"
    runs = {"FEDMQ_RUNS_DIR": str(disk.folder / "runs")}
    coordinator = federation.coordinator(**runs)
    participants = [federation.participant(name) for name in ("p0", "p1")]
    for times in (1, 2):
        coordinator.wait_for(rf"event=version_made version={2 * times} ")
        disk.fill()
        coordinator.wait_for(
            'event=commit_failed retry_s=.* detail="nothing was acked: .*No space left on device', 2 * times
        )
        with federation.ledger() as ledger:
            accepted = {row.update_id for row in ledger.updates()}
        federation.witness.wait_until(lambda known=accepted: set(federation.witness.updates) - known)
        if times == 1:
            disk.make_room()
    # If it is killed now, the broker still has every update that it could not write, because it acked none of them.
    coordinator.kill()
    federation.witness.wait_for_depth(federation.topology.updates, 1)
    with federation.ledger() as ledger:
        assert {row.update_id for row in ledger.updates()} == accepted
    early = federation.coordinator(**runs)
    assert early.ended() == 1, "there is no room to take over the run"
    assert "No space left on device" in early.text or "full" in early.text
    assert "Traceback" not in early.text
    disk.make_room()
    assert federation.coordinator(**runs).ended() == 0
    assert [one.ended() for one in participants] == [0, 0]
    federation.check()
