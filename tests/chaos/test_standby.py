"""Two coordinators of one run: kill -9 of the active one, again and again, and one that is paused and wakes up."""

import signal
import time
from itertools import pairwise

import psutil
import pytest

from tests.chaos.harness import Federation
from tests.support.asking import ask_until
from tests.support.full import FULL

pytestmark = pytest.mark.broker
POINTS = ("before-ledger", "before-checkpoint", "after-ledger", "between-acks", "before-task-publish")


@pytest.fixture
def federation(tmp_path, rabbitmq_node, prefix):
    one = Federation(tmp_path, rabbitmq_node.url, prefix, max_versions=20)
    yield one
    one.close()


class Acks:
    """Counts the acks that reach the broker through a proxy."""

    GREETING_BYTES, BEFORE_PAYLOAD_BYTES, METHOD, BASIC_ACK = 8, 7, 1, bytes((0, 60, 0, 80))

    def __init__(self, proxy):
        self.count = 0
        self._streams = {}
        proxy.on_up = self._on_data

    def _on_data(self, connection, data):
        if connection not in self._streams:
            self._streams[connection] = bytearray()
            data = data[self.GREETING_BYTES :]
        stream = self._streams[connection]
        stream += data
        while len(stream) >= self.BEFORE_PAYLOAD_BYTES:
            size = int.from_bytes(stream[3:7], "big") + self.BEFORE_PAYLOAD_BYTES + 1
            if len(stream) < size:
                return
            assert stream[size - 1] == 0xCE, "not the end of a frame"
            self.count += stream[0] == self.METHOD and stream[7:11] == self.BASIC_ACK
            del stream[:size]


def epochs_of(federation):
    with federation.ledger() as ledger:
        return ledger._rows("SELECT epoch, pid FROM epochs ORDER BY epoch")


def test_standbys_take_over_from_coordinators_that_are_killed_one_after_the_other(federation):
    """All coordinators start before the work begins. Otherwise it would be done before the last one has started."""
    coordinators = [federation.coordinator()]
    coordinators[0].wait_for("event=active run=r1 epoch=1")
    for _ in range(3 if FULL else 2):
        coordinators.append(federation.coordinator())
        coordinators[-1].wait_for(f'event=standby waits_for="the coordinator with pid {coordinators[0].pid} ')
    participants = [federation.participant(name) for name in ("p0", "p1")]
    for epoch, (active, standby) in enumerate(pairwise(coordinators), start=2):
        active.wait_for("event=version_made", times=2)
        began_s = time.monotonic()
        assert active.kill() == -signal.SIGKILL
        standby.wait_for(f'event=active run=r1 epoch={epoch} after="the coordinator with pid {active.pid} ')
        leads_s = time.monotonic() - began_s
        standby.wait_for("event=update_accepted")
        print(f"takeover: active after {leads_s:.2f} s, first update after {time.monotonic() - began_s:.2f} s")
    assert [one.ended() for one in (coordinators[-1], *participants)] == [0, 0, 0]
    assert [pid for _, pid in epochs_of(federation)] == [one.pid for one in coordinators]
    federation.check(versions=20)


@pytest.mark.parametrize("point", POINTS if FULL else POINTS[:1])
def test_a_coordinator_that_was_paused_in_a_commit_while_another_took_over_commits_and_acks_nothing_and_stands_by(
    federation, proxies, point
):
    proxy, through = proxies()
    acks = Acks(proxy)
    participants = [federation.participant(name) for name in ("p0", "p1")]
    nth = 12 if point == "between-acks" else 4  # one for each ack: the fourth may come before any ack has left
    old = federation.coordinator(fault=f"{point}:{nth}:stop", **through)
    old.wait_for("event=active run=r1 epoch=1")
    new = federation.coordinator()
    old.wait_for(f"fault point {point}")
    ask_until(psutil.Process(old.pid).status, lambda status: status == psutil.STATUS_STOPPED)
    new.wait_for(f'event=active run=r1 epoch=2 after="the coordinator with pid {old.pid} ')
    new.wait_for("event=version_made", times=2)
    assert psutil.Process(old.pid).status() == psutil.STATUS_STOPPED
    assert (before := acks.count) > 0, "it acked what it committed"
    old.send(signal.SIGCONT)
    old.wait_for(f"taken over by the coordinator with pid {new.pid} .* this coordinator had epoch 1")
    old.wait_for("event=standing_by_again")
    assert [one.ended() for one in (new, old, *participants)] == [0, 0, 0, 0]
    assert old.text.count("event=active run=") == 1
    assert acks.count == before
    assert epochs_of(federation) == [(1, old.pid), (2, new.pid)]
    federation.check(versions=20)
