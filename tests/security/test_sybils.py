"""A flood of hellos with invented ids beside honest participants that train: raw pika, with a user that may publish.

All share one user of the broker, which is the worst case: nothing tells the flood's user from the honest ones.
"""

from __future__ import annotations

import itertools
import re
import threading
import time
from pathlib import Path

import pika
import pytest

from fedmq.schemas.codec import encode
from fedmq.schemas.messages import Decline, Hello
from tests.chaos.harness import Federation
from tests.support.asking import ask_until
from tests.support.full import FULL

NUMBER = 100_000 if FULL else 4_000
VERSIONS = 300 if FULL else 25
PER_S = 100 if FULL else 20
"""run.hellos_per_s: 100 is the default."""
MB = 1024**2


def rss_bytes(pid: int) -> int:
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) * 1024  # type: ignore[index]


def ledger_bytes(federation: Federation) -> int:
    return sum(path.stat().st_size for path in federation.run_dir.glob("ledger.sqlite*"))


class Flood(threading.Thread):
    """Publishes hellos with fresh ids, as fast as the broker takes them, and a forged decline after each hundredth."""

    def __init__(self, url: str, federation: Federation, number: int) -> None:
        super().__init__()
        self._url, self._number = url, number
        self._queue = federation.topology.control
        self.published = 0
        self.took_s = 0.0

    def run(self) -> None:
        connection = pika.BlockingConnection(pika.URLParameters(self._url))
        channel = connection.channel()
        began_s = time.monotonic()
        properties = pika.BasicProperties(delivery_mode=2, user_id=pika.URLParameters(self._url).credentials.username)
        for n in range(self._number):
            message: Hello | Decline = Hello(participant_id=f"sybil-{n}", session_id="s", num_examples=10)
            if n % 100 == 99:
                message = Decline(task_id=f"x-{n}", run_id="r1", participant_id=f"sybil-{n}", reason="busy")
            channel.basic_publish(self._queue.exchange, self._queue.routing_key, encode(message), properties)
            self.published += 1
            if n % 500 == 499:
                connection.process_data_events(0)
        connection.close()
        self.took_s = time.monotonic() - began_s


@pytest.mark.timeout(600)
def test_a_flood_of_hellos_with_fresh_ids_costs_bounded_memory_and_honest_updates_go_on(
    tmp_path, rabbitmq_node, prefix, record_property
):
    federation = Federation(tmp_path, rabbitmq_node.url, prefix, max_versions=VERSIONS, pause_s=0.3)
    try:
        coordinator = federation.coordinator(FEDMQ_RUN__HELLOS_PER_S=str(PER_S))
        for name in ("a", "b"):
            federation.participant(name)
        coordinator.wait_for("event=version_made version=5 ")
        before, rows_before = rss_bytes(coordinator.pid), ledger_bytes(federation)
        flood = Flood(rabbitmq_node.url, federation, NUMBER)
        flood.start()
        sizes = [before]

        def over() -> bool:
            sizes.append(rss_bytes(coordinator.pid))
            return not flood.is_alive() and not federation.witness.depth(federation.topology.control)

        ask_until(over, within_s=300.0, what="the end of the flood")
        most = max(sizes)
        assert flood.published == NUMBER, "the attack was not made"
        with federation.ledger() as ledger:
            assert ledger.version() < VERSIONS, "the run was over before the flood was"
            known, elapsed_s = len(ledger.participants()), ledger.run().elapsed_s
        grown = ledger_bytes(federation) - rows_before
        dropped = coordinator.wait_for("event=control_messages_dropped")
        assert dropped is not None
        for version in range(20, VERSIONS, 20):  # each has a deadline of its own
            coordinator.wait_for(f"event=version_made version={version} ")
        assert coordinator.ended() == 0
        rows = federation.check(VERSIONS)
    finally:
        federation.close()
    assert {row.participant_id for row in rows} == {"a", "b"}
    gap_s = max(later.run_s - earlier.run_s for earlier, later in itertools.pairwise(rows))
    record_property("flood", f"{NUMBER} hellos in {flood.took_s:.1f} s, longest gap {gap_s:.2f} s, {known} rows, "
                    f"RSS +{(most - before) / MB:.1f} MB, ledger +{grown / MB:.2f} MB")  # fmt: skip
    assert gap_s < 5.0
    assert 2 + 20 * PER_S <= known <= 2 + 20 * PER_S + (PER_S + 10) * elapsed_s
    assert most - before < 64 * MB
    assert grown < 16 * MB
