"""Speed of the coordinator with updates, against plain pika consumers on the same queue.

    python -m bench.ingest [--sizes 0.1,1,10] [--quick] [--identity user] [--codec int8]

For each size, four publisher processes without training publish the same updates to the same quorum queue of a private
RabbitMQ node, three times. The first reader is a stock pika consumer that only acks (4 KiB socket reads). The second is
the same consumer with 256 KiB reads. The third is the real coordinator, which accepts, validates, aggregates (FedBuff)
and commits each update before it acks. The clock runs from the start of publishing to the last ack. The best of five
rounds counts.

With `--identity user` the coordinator checks the sender of each update, as `[security] identity = "user"` asks.

With `--codec int8` the coordinator is also measured with updates of as many floats in this codec, and compared by
updates a second with itself on plain ones.

The run is prepared in the state of a run before a restart: all tasks are out, and in the ledger.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.connection import removal_options
from bench.report import Row, print_table
from fedmq.broker_config.amqp.transport import remove
from fedmq.broker_config.node.node import PrivateNode
from fedmq.broker_config.topology import Topology

PUBLISHERS = 4
REPEATS = 5
STOCK_READ_BYTES, FAST_READ_BYTES = 4096, 262_144
MB = 1_000_000
CODED_TARGET = 2.5
"""Times as many updates a second with int8 as with float32, at 10 MB of floats."""
MOST_BYTES = str(2**27)


@dataclass(frozen=True)
class Plan:
    """One size: its number of updates and its targets."""

    megabytes: float
    count: int
    stock_target: float
    fast_target: float | None
    cpu_target_s: float | None = None
    rss_target_mb: float | None = None
    """Most peak RSS of the coordinator. A size with this target alone is measured for RAM."""


PLANS = {
    0.1: Plan(0.1, 3000, stock_target=0.5, fast_target=None),
    1.0: Plan(1.0, 600, stock_target=1.0, fast_target=0.6),
    10.0: Plan(10.0, 60, stock_target=1.0, fast_target=0.6, cpu_target_s=0.06),
    50.0: Plan(50.0, 16, stock_target=0.0, fast_target=None, rss_target_mb=400),
}


@dataclass(frozen=True)
class Outcome:
    seconds: float
    cpu_s: float
    rss_mb: float = 0.0
    commits: tuple[tuple[int, float], ...] = ()
    """(updates, seconds) of each commit that held any."""


def commits_text(outcome: Outcome) -> str:
    """Sum up the commits of all these updates in a few words."""
    took_ms = sorted(1000 * seconds for _, seconds in outcome.commits)
    if not took_ms:
        return "no commits"
    updates = sum(count for count, _ in outcome.commits)
    return (
        f"{len(took_ms)} commits of {updates / len(took_ms):.1f} updates on average, median "
        f"{took_ms[len(took_ms) // 2]:.0f} ms, slowest {took_ms[-1]:.0f} ms"
    )


def cost_text(outcome: Outcome, count: int) -> str:
    """Say what these updates cost the coordinator."""
    return f"{1000 * outcome.cpu_s / count:.1f} ms of CPU an update; {commits_text(outcome)}"


def spawn(*args: str) -> subprocess.Popen[str]:
    """Start a child of this interpreter with pipes, and wait until it has said "ready"."""
    child = subprocess.Popen(
        [sys.executable, "-m", *args], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    assert child.stdout is not None
    line = child.stdout.readline().strip()
    if line != "ready":
        child.kill()
        raise SystemExit(f"{args[0]} did not start: got {line!r}")
    return child


def measure(consumer: list[str], publishers: list[list[str]]) -> Outcome:
    """Start the consumer, then let all publishers go at once. The line that the consumer prints is the outcome."""
    reader = spawn(*consumer)
    writers = [spawn(*args) for args in publishers]
    began_s = time.monotonic()
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    assert reader.stdout is not None
    line = reader.stdout.readline()
    for child in (reader, *writers):
        if child.wait(timeout=120) != 0:
            raise SystemExit(f"a process of the benchmark failed: {child.args}")
    told = json.loads(line)
    return outcome_of(told, began_s)


def outcome_of(told: dict[str, Any], began_s: float) -> Outcome:
    """Return the outcome in the line that a consumer printed at its end."""
    commits = tuple((count, took_s) for count, took_s in told.get("commits", ()) if count)
    return Outcome(told["done_s"] - began_s, told["cpu_s"], told.get("rss_mb", 0.0), commits)


class Rig:
    """One size on one node. Each measurement has queues and a run of its own, which are gone afterwards."""

    def __init__(self, node: PrivateNode, plan: Plan, work_dir: Path, identity: str = "open") -> None:
        self._identity = identity
        self._node = node
        self._num_bytes = str(int(plan.megabytes * MB))
        self._share = plan.count // PUBLISHERS
        self._count = str(self._share * PUBLISHERS)
        self._prefetch = str(max(1, min(64, 192 * 1024**2 // int(self._num_bytes))))
        self._work_dir = work_dir

    def bare(self, read_bytes: int) -> Outcome:
        """Measure a pika consumer that only acks."""
        prefix = f"bench-{uuid.uuid4().hex[:8]}"
        _coordinator("declare", self._node.url, prefix)
        queue = Topology(prefix).updates.name
        consumer = ["bench.bare_consumer", self._node.url, queue, self._count, self._prefetch, str(read_bytes)]
        return self._measure(prefix, consumer, run_uid="00000000")

    def ours(self, codec: str = "none") -> Outcome:
        """Measure the coordinator, on updates in this codec."""
        prefix = f"bench-{uuid.uuid4().hex[:8]}"
        with tempfile.TemporaryDirectory(dir=self._work_dir) as run_dir:
            run_uid = _coordinator("prepare", run_dir, self._num_bytes, self._count)
            serve = ["serve", self._node.url, prefix, run_dir, self._num_bytes, self._count, MOST_BYTES, self._identity]
            return self._measure(prefix, ["bench.ingest_coordinator", *serve, codec], run_uid, codec)

    def _measure(self, prefix: str, consumer: list[str], run_uid: str, codec: str = "none") -> Outcome:
        common = ["bench.publisher", self._node.url, prefix, "ingest", run_uid, self._num_bytes]
        firsts = range(1, PUBLISHERS + 1)
        publishers = [
            [*common, str(first), str(self._share), str(PUBLISHERS), self._identity, codec] for first in firsts
        ]
        try:
            return measure(consumer, publishers)
        finally:
            queues = [queue.name for queue in Topology(prefix).coordinator_queues]
            exchanges = [exchange.name for exchange in Topology(prefix).exchanges]
            remove(self._node.url, exchanges=exchanges, queues=queues, **removal_options())


def _coordinator(*args: str) -> str:
    command = [sys.executable, "-m", "bench.ingest_coordinator", *args]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def run_size(rig: Rig, repeats: int) -> tuple[Outcome, Outcome, Outcome]:
    """Return the best of each: (stock, fast, fedmq). They take turns: a slow spell of the machine hits all."""
    rounds = [(rig.bare(STOCK_READ_BYTES), rig.bare(FAST_READ_BYTES), rig.ours()) for _ in range(repeats)]
    stock, fast, ours = (_best(outcomes) for outcomes in zip(*rounds, strict=True))
    return stock, fast, ours


def run_coded(rig: Rig, codec: str, repeats: int) -> tuple[Outcome, Outcome]:
    """Return the best of the coordinator on plain and on coded updates. They take turns."""
    plain, coded = zip(*[(rig.ours(), rig.ours(codec)) for _ in range(repeats)], strict=True)
    return _best(plain), _best(coded)


def _best(outcomes: tuple[Outcome, ...]) -> Outcome:
    fastest = min(outcomes, key=lambda o: o.seconds)
    cpu_s, rss_mb = min(o.cpu_s for o in outcomes), max(o.rss_mb for o in outcomes)
    return Outcome(fastest.seconds, cpu_s, rss_mb, fastest.commits)


def rows_of(plan: Plan, count: int, stock: Outcome, fast: Outcome, ours: Outcome) -> list[Row]:
    label = f"{count} × {plan.megabytes:g} MB"

    def rate(outcome: Outcome) -> str:
        return f"{count * plan.megabytes / outcome.seconds:.0f} MB/s {count / outcome.seconds:.0f}/s"

    rows = []
    if plan.stock_target:
        rows.append(
            Row(f"{label}: stock pika", rate(ours), rate(stock), stock.seconds / ours.seconds, plan.stock_target)
        )
    if plan.fast_target:
        rows.append(
            Row(f"{label}: 256 KiB reads", rate(ours), rate(fast), fast.seconds / ours.seconds, plan.fast_target)
        )
    if plan.cpu_target_s:
        cpu_s = ours.cpu_s / count
        rows.append(Row(f"{label}: CPU s an update", f"{cpu_s:.4f}", f"{plan.cpu_target_s:.4f}",
                        cpu_s / plan.cpu_target_s, 1.0, at_least=False))  # fmt: skip
    if plan.rss_target_mb:
        rows.append(Row(f"{label}: peak RSS", f"{ours.rss_mb:.0f} MB", f"{plan.rss_target_mb:.0f} MB",
                        ours.rss_mb / plan.rss_target_mb, 1.0, at_least=False))  # fmt: skip
    return rows


def coded_row(plan: Plan, count: int, codec: str, plain: Outcome, coded: Outcome) -> Row:
    told = [f"{count / outcome.seconds:.1f}/s" for outcome in (coded, plain)]
    return Row(
        f"{count} × {plan.megabytes:g} MB of floats: {codec}", *told, plain.seconds / coded.seconds, CODED_TARGET
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="0.1,1,10,50")
    parser.add_argument(
        "--quick", action="store_true", help="a tenth of the updates, and no 50 MB: proves that it runs"
    )
    parser.add_argument("--identity", choices=("open", "user"), default="open")
    parser.add_argument("--codec", choices=("none", "bf16", "int8", "int4", "topk"), default="none")
    options = parser.parse_args()
    sizes = [float(text) for text in options.sizes.split(",") if not (options.quick and float(text) > 10)]
    rows: list[Row] = []
    commits: list[str] = []
    with tempfile.TemporaryDirectory(prefix="fedmq-bench-") as folder, PrivateNode(Path(folder) / "node") as node:
        node.ctl("set_user_tags", "fedmq", "administrator", "impersonator")
        for size in sizes:
            plan = PLANS[size]
            if options.quick:
                plan = Plan(**{**vars(plan), "count": max(PUBLISHERS, plan.count // 10)})
            count = plan.count // PUBLISHERS * PUBLISHERS
            rig, repeats = Rig(node, plan, Path(folder), options.identity), 1 if options.quick else REPEATS
            if options.codec != "none":
                both = run_coded(rig, options.codec, repeats)
                rows.append(coded_row(plan, count, options.codec, *both))
                for label, outcome in zip(("plain", options.codec), both, strict=True):
                    commits.append(f"  {count} × {plan.megabytes:g} MB, {label}: {cost_text(outcome, count)}")
                continue
            outcomes = run_size(rig, repeats)
            rows += rows_of(plan, count, *outcomes)
            commits.append(f"  {count} × {plan.megabytes:g} MB: {commits_text(outcomes[-1])}")
    print_table("bench/ingest", rows)
    print("\n".join(commits))


if __name__ == "__main__":
    main()
