"""Costs of a growing number of participants: updates a second, time from publish to commit, CPU and RAM.

    python -m bench.sessions [--sessions 10,100,1000] [--fleet] [--quick]

Prints a Markdown table. The sessions are light (bench.light_sessions): each has an AMQP connection and the messages of
a participant, and HOSTS processes with one thread each hold them all. They train nothing, an update has 10 kB, and
FedBuff makes a version of 10. The coordinator is the real one in a process of its own, with every guarantee on. All of
them share this machine with the broker.

With --fleet each session has a TLS connection by certificate and is enrolled, and the coordinator checks senders and
signs tasks.

The measurement begins once every session has had one update accepted. Publish to commit is the time from the
participant's publish to the coordinator's ack, which follows the commit. 100 % CPU is one core.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from bench.connection import FLEET, fleet_node
from bench.ingest import spawn
from fedmq.broker_config.node.node import PrivateNode
from fedmq.fleet.inventory import Inventory

HOSTS = 4
UPDATES = {10: 2000, 100: 4000, 1000: 6000}
"""Number of measured updates, by the number of sessions."""
MOST_S = 600
"""Seconds that a process may take to end."""
HEAD = (
    "| sessions | updates/s | publish to commit, p50 | p99 | coordinator CPU | CPU ms an update "
    "| RSS | broker CPU | RSS |"
)


def measure(node: PrivateNode, sessions: int, updates: int, work_dir: Path) -> str:
    """Return one row of the table."""
    prefix = f"bench-{uuid.uuid4().hex[:8]}"
    folder = work_dir / prefix
    coordinator = spawn(
        "bench.session_coordinator", node.url, prefix, str(folder), str(sessions), str(updates), str(node.pid)
    )
    hosts: list[subprocess.Popen[str]] = []
    for host in range(min(HOSTS, sessions)):
        names = [f"p{number}" for number in range(host, sessions, HOSTS)]
        hosts.append(spawn("bench.light_sessions", node.url, prefix, *names))
    assert coordinator.stdout is not None
    told = json.loads(coordinator.stdout.readline())
    published: dict[str, float] = {}
    for child in hosts:
        assert child.stdout is not None
        published |= json.loads(child.stdout.readline())
    for child in (coordinator, *hosts):
        if child.wait(timeout=MOST_S) != 0:
            raise SystemExit(f"a process of the benchmark failed: {child.args}")
    late_s = [at_s - published[task_id] for task_id, at_s in told["committed"].items()]
    p50, p99 = np.percentile(late_s, [50, 99])
    seconds = told["seconds"]
    share, broker_share = (100 * told[key] / seconds for key in ("cpu_s", "broker_cpu_s"))
    return (
        f"| {sessions:,} | {updates / seconds:,.0f} | {1000 * p50:,.0f} ms | {1000 * p99:,.0f} ms | {share:.0f} % "
        f"| {1000 * told['cpu_s'] / updates:.2f} | {told['rss_mb']:.0f} MB | {broker_share:.0f} % "
        f"| {told['broker_rss_mb']:.0f} MB |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", default="10,100,1000")
    parser.add_argument("--fleet", action="store_true")
    parser.add_argument("--quick", action="store_true", help="10 and 20 sessions, few updates: proves that it runs")
    options = parser.parse_args()
    counts = [10, 20] if options.quick else [int(text) for text in options.sessions.split(",")]
    print(f"{HEAD}\n|{'---|' * (HEAD.count('|') - 1)}", flush=True)
    with tempfile.TemporaryDirectory(prefix="fedmq-bench-") as folder:
        for sessions in counts:  # a node each, so that none pays for what an earlier one left behind
            updates = 100 if options.quick else UPDATES.get(sessions, 4 * sessions + 2000)
            work = Path(folder) / f"node-{sessions}"
            with enrolled(work, sessions) if options.fleet else PrivateNode(work) as node:
                print(measure(node, sessions, updates, Path(folder)), flush=True)


@contextmanager
def enrolled(work: Path, sessions: int) -> Iterator[PrivateNode]:
    """Yield the node of a fleet that has all the sessions' participants."""
    with fleet_node(work) as (node, folder):
        with Inventory(folder.inventory) as inventory:
            for number in range(sessions):
                inventory.begin_enrolment(f"p{number}", time.time())
        os.environ[FLEET] = str(folder.path)
        yield node


if __name__ == "__main__":
    main()
