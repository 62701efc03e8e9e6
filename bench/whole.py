"""Updates a second of a whole federation of real processes, against a bare pika loop of the same run.

    python -m bench.whole [--sizes 1,10,50] [--participants 4] [--strategies fedbuff,fedasync] [--one-message] [--quick]

`fedmq coordinator` and so many `fedmq participant`s, by the command line, with every guarantee on. Their training
returns at once. The broker is a private RabbitMQ node on the same machine. The clock runs over the arrivals in the
ledger, without the first ones. Beside each figure: a loop of one pika process that publishes a persistent message of
the same size, waits for its confirmation, consumes it and acks it (bench.bare_loop), with stock reads and with reads of
256 KiB. It runs before and after, and the mean of both counts.

Also printed: bytes written to disks for each byte of update, by process, and each process's share of a core. The
kernel counts them (/proc/PID/io), so they are those of Linux alone.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from bench.report import Row, print_table
from fedmq.broker_config.node.node import PrivateNode
from fedmq.coordinator.state.ledger.reader import LedgerReader
from fedmq.coordinator.state.run_folder import RunFolder

MB = 1_000_000
STOCK_READ_BYTES, FAST_READ_BYTES = 4096, 262_144
LOOP_S = 5
WARM_SHARE = 0.2
"""Share of the updates that come before the clock runs: processes start, and the first tasks go out."""
LOOK_S = 0.2
MOST_S = 300.0
"""Longest time of one run."""
TARGETS = {1.0: 0.6, 10.0: 0.75, 50.0: 0.75}
COUNTS = {1.0: 400, 10.0: 100, 50.0: 30}
WRITTEN_TARGET = 2.5

APP = """
import fedmq
import numpy as np

class Trainer:
    num_examples = 10

    def train(self, parameters, config):
        return fedmq.TrainResult(parameters, self.num_examples, num_steps=1)

def build_trainer(participant_id):
    return Trainer()

def initial_parameters():
    count = {count}
    shares = {{"000/kernel": count - count // 8 - count // 64, "001/kernel": count // 8, "002/bias": count // 64}}
    return {{name: np.zeros(size, np.float32) for name, size in shares.items()}}
"""
FEDERATION = """
app = "app.py"
[run]
run_id = "whole"
concurrency = {participants}
min_participants = {participants}
evaluate_interval_s = 0
[run.stop]
max_updates = {max_updates}
[strategy]
{strategy}
[broker]
prefix = "{prefix}"
max_message_bytes = {max_message_bytes}
"""
STRATEGIES = {"fedbuff": 'name = "fedbuff"\nbuffer_size = 4', "fedasync": 'name = "fedasync"'}
WHOLE_BYTES, CHUNKED_BYTES = 128 * 1024**2, 16 * 1024**2


@dataclass
class Use:
    """Resources that a process and its children had used at the last look."""

    cpu_s: float = 0.0
    written_bytes: int = 0
    rss_bytes: int = 0


@dataclass
class Watch:
    """Looks at processes and their children every LOOK_S."""

    roots: dict[str, list[int]]
    _seen: dict[str, dict[int, Use]] = field(default_factory=dict)

    def look(self) -> None:
        for name, pids in self.roots.items():
            seen = self._seen.setdefault(name, {})
            for pid in pids:
                try:
                    family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
                except psutil.NoSuchProcess:
                    continue
                for one in family:
                    try:
                        times, written, rss = one.cpu_times(), one.io_counters().write_bytes, one.memory_info().rss
                    except psutil.Error:
                        continue
                    most = max(rss, seen[one.pid].rss_bytes if one.pid in seen else 0)
                    seen[one.pid] = Use(times.user + times.system, written, most)

    def used(self, name: str) -> Use:
        """Return what all processes of this name have used; of RAM the most that one had."""
        uses = list(self._seen.get(name, {}).values())
        return Use(
            sum(one.cpu_s for one in uses),
            sum(one.written_bytes for one in uses),
            max((one.rss_bytes for one in uses), default=0),
        )

    @contextmanager
    def watching(self) -> Iterator[None]:
        over = threading.Event()

        def act() -> None:
            while not over.wait(LOOK_S):
                self.look()

        thread = threading.Thread(target=act)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


@dataclass(frozen=True)
class Outcome:
    rate: float
    """Updates a second."""
    seconds: float
    """Seconds from the start of the processes to their end."""
    updates: int
    used: dict[str, Use]


def command(folder: Path, *arguments: str, **environ: str) -> subprocess.Popen[bytes]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("FEDMQ_")}
    log = (folder / f"{arguments[0]}-{arguments[-1].replace('/', '-')}.log").open("wb")
    with log:
        return subprocess.Popen(
            [sys.executable, "-m", "fedmq", *arguments], cwd=folder, env={**clean, **environ}, stdout=log, stderr=log
        )


def run(node: PrivateNode, work_dir: Path, megabytes: float, participants: int, strategy: str, updates: int,
        *, one_message: bool) -> Outcome:  # fmt: skip
    """Run one federation to its end, and return what it made of its time."""
    prefix = f"bench-{uuid.uuid4().hex[:8]}"
    folder = work_dir / prefix
    folder.mkdir()
    (folder / "app.py").write_text(APP.format(count=int(megabytes * MB) // 4))
    (folder / "federation.toml").write_text(
        FEDERATION.format(
            participants=participants,
            max_updates=updates,
            strategy=STRATEGIES[strategy],
            prefix=prefix,
            max_message_bytes=WHOLE_BYTES if one_message else CHUNKED_BYTES,
        )
    )
    url = {"FEDMQ_BROKER_URL": node.url}
    began_s = time.monotonic()
    coordinator = command(folder, "coordinator", "--config", "federation.toml", **url)
    devices = [
        command(folder, "participant", "--config", "federation.toml", "--id", f"p{i}", **url)
        for i in range(participants)
    ]
    assert node.pid is not None
    watch = Watch({"coordinator": [coordinator.pid], "participants": [one.pid for one in devices]})
    broker = psutil.Process(node.pid)
    before = (sum(broker.cpu_times()[:2]), broker.io_counters().write_bytes)
    children = (coordinator, *devices)
    try:
        with watch.watching():
            for child in children:
                if child.wait(timeout=MOST_S) != 0:
                    raise SystemExit(f"a process of the benchmark failed: {child.args}")
    finally:
        for child in children:
            child.kill()
    ended_s = time.monotonic()
    used = {name: watch.used(name) for name in watch.roots}
    after = (sum(broker.cpu_times()[:2]), broker.io_counters().write_bytes)
    used["broker"] = Use(after[0] - before[0], after[1] - before[1], broker.memory_info().rss)
    with LedgerReader(RunFolder(folder / "runs" / "whole").ledger) as ledger:
        arrivals_s = sorted(row.run_s for row in ledger.updates())
    first = int(WARM_SHARE * len(arrivals_s))
    rate = (len(arrivals_s) - 1 - first) / (arrivals_s[-1] - arrivals_s[first])
    return Outcome(rate, ended_s - began_s, len(arrivals_s), used)


def bare(node: PrivateNode, megabytes: float, seconds: int, read_bytes: int) -> float:
    """Return the messages a second of the bare loop."""
    command = [
        sys.executable, "-m", "bench.bare_loop", node.url, f"bare-{uuid.uuid4().hex[:8]}", str(int(megabytes * MB)),
        str(seconds), str(read_bytes),
    ]  # fmt: skip
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def lines_of(outcome: Outcome, megabytes: float) -> list[str]:
    """Say what each kind of process used."""
    received = outcome.updates * megabytes * MB
    return [
        f"    {name:<12}  {use.cpu_s / outcome.seconds:5.2f} of a core  "
        f"{use.written_bytes / received:5.2f} bytes written a byte of update  peak RSS {use.rss_bytes / MB:.0f} MB"
        for name, use in outcome.used.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="1,10,50")
    parser.add_argument("--participants", type=int, default=4)
    parser.add_argument("--strategies", default="fedbuff,fedasync")
    parser.add_argument("--one-message", action="store_true", help="messages of up to 128 MiB: no chunks at 50 MB")
    parser.add_argument("--quick", action="store_true", help="a tenth of the updates of 1 MB: proves that it runs")
    options = parser.parse_args()
    sizes = [1.0] if options.quick else [float(text) for text in options.sizes.split(",")]
    seconds = 1 if options.quick else LOOP_S
    rows: list[Row] = []
    told: list[str] = []
    with tempfile.TemporaryDirectory(prefix="fedmq-bench-") as folder, PrivateNode(Path(folder) / "node") as node:
        time.sleep(2.0)  # a young quorum queue is slower
        for size in sizes:
            updates = COUNTS[size] // 10 if options.quick else COUNTS[size]
            loops = [(bare(node, size, seconds, STOCK_READ_BYTES), bare(node, size, seconds, FAST_READ_BYTES))]
            outcomes = [
                (strategy, run(node, Path(folder), size, options.participants, strategy, updates,
                               one_message=options.one_message))
                for strategy in options.strategies.split(",")
            ]  # fmt: skip
            loops.append((bare(node, size, seconds, STOCK_READ_BYTES), bare(node, size, seconds, FAST_READ_BYTES)))
            stock, fast = (sum(rates) / len(rates) for rates in zip(*loops, strict=True))
            for strategy, outcome in outcomes:
                label = f"{strategy}, {options.participants} participants, {size:g} MB"
                rate = f"{outcome.rate:.2f}/s"
                rows.append(Row(label, rate, f"{stock:.2f}/s", outcome.rate / stock, TARGETS.get(size, 0.0)))
                told.append(f"  {label}: {outcome.rate / fast:.2f} of the loop with 256 KiB reads ({fast:.2f}/s)")
                told += lines_of(outcome, size)
                written = sum(use.written_bytes for use in outcome.used.values()) / (outcome.updates * size * MB)
                rows.append(
                    Row(f"{label}: bytes written", f"{written:.2f}", "1 byte", written, WRITTEN_TARGET, at_least=False)
                )
    print_table("bench/whole", rows)
    print("\n".join(told))


if __name__ == "__main__":
    main()
