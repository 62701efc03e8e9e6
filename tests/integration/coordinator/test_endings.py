"""The disk refuses the last commit of a run: the run is over for nobody before it is over in the ledger."""

import errno
import threading

import pytest

from fedmq.coordinator.service.commits import commit
from fedmq.coordinator.service.commits.commit import Committer
from tests.integration.coordinator.federation import DEADLINE_S, TOPOLOGY, delta, same_bits, update_for


class Disk:
    """A disk that refuses the run's last commits while it is `full`."""

    def __init__(self, monkeypatch):
        self.full, self.refused = threading.Event(), threading.Semaphore(0)
        self.full.set()
        real = Committer.commit

        def refuse(committer, core, pending, clock):
            if core.finished and self.full.is_set():
                self.refused.release()
                raise OSError(errno.ENOSPC, "No space left on device")
            real(committer, core, pending, clock)

        monkeypatch.setattr(Committer, "commit", refuse)
        monkeypatch.setattr(commit, "RETRY_FIRST_S", 0.1)


@pytest.fixture
def disk(monkeypatch):
    return Disk(monkeypatch)


def test_a_run_that_is_stopped_while_its_last_commit_is_refused_goes_on_another_time(federation, disk):
    p = federation.join("p0")
    service = federation.service()
    running = federation.start(service)
    assert disk.refused.acquire(timeout=DEADLINE_S)
    service.stop()
    assert running.result(DEADLINE_S).finished is None
    assert not [notice for notice in p.notices if notice.event == "run_finished"]
    assert not (federation.run_dir / "final.safetensors").exists()
    disk.full.clear()
    assert federation.run().finished == "max_versions"
    assert same_bits(federation.final(), federation.replayed())
    p.wait_until(lambda: [notice for notice in p.notices if notice.event == "run_finished"])


def test_what_comes_while_the_last_commit_waits_for_room_is_answered_after_it(federation, disk):
    p = federation.join("p0")
    running = federation.start(federation.service())
    assert disk.refused.acquire(timeout=DEADLINE_S)
    again = p.tasks[0]
    p.send_update(update_for(again), delta(again.task_id)).result(DEADLINE_S)
    for _ in range(2):
        assert disk.refused.acquire(timeout=DEADLINE_S)
    disk.full.clear()
    assert running.result(DEADLINE_S).finished == "max_versions"
    assert federation.depth(TOPOLOGY.updates) == 0
    with federation.ledger() as ledger:
        assert ledger.discarded() == {"duplicate": 1}
