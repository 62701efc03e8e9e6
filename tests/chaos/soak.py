"""A soak test: a federation whose processes, and whose broker, are killed again and again for as long as you like.

    python -m tests.chaos.soak [--seconds 600] [--seed 1] [--participants 12]

There are two coordinators; one of them stands by. Every few seconds a process, drawn by the seed, gets SIGKILL and
comes back after a pause. The schedule is printed, and follows from the seed alone. At the end all processes come back
and the run finishes. Then these promises are checked:

- every update that the broker confirmed is in exactly one version, or discarded with a reason;
- the model is the replay of the ledger's order, bit for bit;
- no queue has grown, and RAM and file handles are flat.

The exit status is 1 if any of them is broken.
"""

from __future__ import annotations

import argparse
import heapq
import logging
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from fedmq.broker_config.amqp.transport import AmqpTransport
from fedmq.broker_config.node.node import PrivateNode, find_server
from fedmq.schemas.errors import BrokerError
from fedmq.schemas.local.backoff import Backoff
from tests.chaos.harness import Federation
from tests.chaos.vitals import Life, table
from tests.integration.front.terminal import Terminal
from tests.support.rabbitmq import NO_SERVER

BETWEEN_KILLS_S = (1.0, 4.0)
PAUSE_S = (0.2, 4.0)
TRAINING_S = 0.5
"""Longest duration of a training. It gives about 20 updates a second with 12 participants."""
SAMPLE_S = 2.0
LAST_VERSIONS = 20
"""Number of versions made after the last coordinator was told when to stop."""
NEVER = 10**9
BROKER, COORDINATOR, STANDBY = "broker", "coordinator", "standby"
COORDINATORS = (COORDINATOR, STANDBY)
"""Names of the two coordinators of the run. The one that is not active stands by."""


@dataclass(frozen=True, order=True)
class Kill:
    at_s: float
    victim: str
    pause_s: float


def schedule(seconds: float, seed: int, participants: list[str]) -> list[Kill]:
    """Draw the victims, the moments of the kills and the pauses. The kill in the middle is always of the broker."""
    rng = random.Random(seed)
    victims = [BROKER, *COORDINATORS, *COORDINATORS, *participants]
    kills, at_s = [], 5.0
    while at_s < seconds:
        kills.append(Kill(round(at_s, 2), rng.choice(victims), round(rng.uniform(*PAUSE_S), 2)))
        at_s += rng.uniform(*BETWEEN_KILLS_S)
    middle = len(kills) // 2
    kills[middle : middle + 1] = [replace(kill, victim=BROKER) for kill in kills[middle : middle + 1]]
    return kills


class Soak:
    """The processes by name, and all lives that they had."""

    def __init__(self, folder: Path, participants: list[str]) -> None:
        self.node = PrivateNode(folder / "broker")
        self.node.start()
        self.federation = Federation(folder, self.node.url, "soak", max_versions=NEVER, pause_s=TRAINING_S)
        self.node.flush_new_queues()
        self.depths: dict[str, list[int]] = defaultdict(list)
        self.lives: list[Life] = []
        self.skipped = 0
        self._environ = {"FEDMQ_RUN__CONCURRENCY": str(len(participants))}
        self._participants = participants
        self._running: dict[str, Terminal] = {}
        self._now: dict[str, Life] = {}
        self._restarting: threading.Thread | None = None
        self._onlooker = AmqpTransport(self.node.url, name="onlooker", heartbeat_s=2, backoff=Backoff(0.1, 0.5))
        self._onlooker.open((), (), timeout_s=30)
        self._began_s = time.monotonic()
        self._born(BROKER, self.node.pid)
        for name in (*COORDINATORS, *participants):
            self._start(name)

    @property
    def now_s(self) -> float:
        return time.monotonic() - self._began_s

    def run(self, kills: list[Kill], until_s: float) -> None:
        """Carry out the schedule, then leave all processes alone until `until_s`."""
        due: list[tuple[float, str, str, float]] = [(kill.at_s, "kill", kill.victim, kill.pause_s) for kill in kills]
        due += [(at * SAMPLE_S, "sample", "", 0.0) for at in range(1, int(until_s / SAMPLE_S))]
        due.append((until_s, "end", "", 0.0))
        heapq.heapify(due)
        while due:
            at_s, what, name, pause_s = heapq.heappop(due)
            time.sleep(max(0.0, at_s - self.now_s))
            if what == "kill" and self._kill(name, pause_s):
                heapq.heappush(due, (self.now_s + pause_s, "start", name, 0.0))
            elif what == "start":
                self._start(name)
            elif what == "sample":
                self._sample()
        if self._restarting is not None:
            self._restarting.join()

    def finish(self) -> int:
        """End the run, wait until all processes have left, and return the number of the last version."""
        for name in COORDINATORS:
            coordinator = self._running.pop(name)
            self._now.pop(name)
            coordinator.send(signal.SIGINT)
            if (status := coordinator.ended()) != 0:
                raise AssertionError(f"the {name} left with {status}:\n{coordinator.text[-3000:]}")
        with self.federation.ledger() as ledger:
            last = len(ledger.versions()) + LAST_VERSIONS
        stop = {"FEDMQ_RUN__STOP__MAX_VERSIONS": str(last)}
        self._running[COORDINATOR] = self.federation.coordinator(**self._environ, **stop)
        for name, process in self._running.items():
            if (status := process.ended()) != 0:
                raise AssertionError(f"{name} ended with {status}:\n{process.text[-3000:]}")
        return last

    def close(self) -> None:
        self.federation.close()
        self._onlooker.close()
        self.node.kill()

    def _born(self, name: str, pid: int | None) -> None:
        assert pid is not None
        kind = COORDINATOR if name in COORDINATORS else name if name == BROKER else "participant"
        self._now[name] = Life(kind, name, pid, self.now_s)
        self.lives.append(self._now[name])

    def _start(self, name: str) -> None:
        if name == BROKER:
            self._restarting = threading.Thread(target=self._start_broker)
            self._restarting.start()
            return
        make = (
            self.federation.coordinator if name in COORDINATORS else lambda **e: self.federation.participant(name, **e)
        )
        self._running[name] = make(**self._environ)
        self._born(name, self._running[name].pid)

    def _start_broker(self) -> None:
        self.node.start()
        self._born(BROKER, self.node.pid)

    def _kill(self, name: str, pause_s: float) -> bool:
        """Kill a process; return False if it is away already."""
        if name not in self._now:
            self.skipped += 1
            return False
        life = self._now.pop(name)
        print(f"[{self.now_s:6.1f} s] kill {name} (pid {life.pid}), back after {pause_s} s", flush=True)
        if name == BROKER:
            self.node.kill()
            return True
        self._alive(name)
        if (status := self._running[name].kill()) >= 0:
            raise AssertionError(f"{name} was not killed but ended with {status}")
        return True

    def _alive(self, name: str) -> None:
        process = self._running[name]
        if process.status is not None:
            raise AssertionError(f"{name} ended by itself with {process.status}:\n{process.text[-3000:]}")

    def _sample(self) -> None:
        for name, life in list(self._now.items()):
            life.sample(self.now_s)
            if name != BROKER:
                self._alive(name)
        topology = self.federation.topology
        for queue in (*topology.shared_queues, *map(topology.participant, self._participants)):
            with suppress(BrokerError):
                self.depths[queue.name].append(self._onlooker.depth(queue.name))


def grown(depths: dict[str, list[int]], participants: int) -> list[str]:
    """Return the queues that hold more at the end than two messages for each participant."""
    return [name for name, found in depths.items() if found and found[-1] > 2 * participants]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0, help="duration of the killing")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--participants", type=int, default=12)
    options = parser.parse_args()
    if find_server() is None:
        print(f"SKIPPED: {NO_SERVER}")
        sys.exit(1 if os.environ.get("CI") else 0)
    names = [f"p{number}" for number in range(options.participants)]
    kills = schedule(options.seconds, options.seed, names)
    logging.getLogger("fedmq.broker_config").setLevel(logging.ERROR)  # our own connections are lost on purpose
    print(f"soak: {options.seconds:g} s, seed {options.seed}, {len(names)} participants, {len(kills)} kills planned")
    with tempfile.TemporaryDirectory(prefix="fedmq-soak-") as folder:
        soak = Soak(Path(folder), names)
        try:
            soak.run(kills, options.seconds + max(16.0, options.seconds / 10))
            problems = report(soak, soak.finish())
        finally:
            soak.close()
    sys.exit(1 if problems else 0)


def report(soak: Soak, versions: int) -> list[str]:
    """Check everything, print the results and return the problems."""
    federation = soak.federation
    rows = federation.check(versions=versions)
    with federation.ledger() as ledger:
        discards = Counter(reason for _, reason in ledger.discarded_updates())
        ((epochs, pids),) = ledger._rows("SELECT count(*), count(DISTINCT pid) FROM epochs")
    deaths = Counter(life.kind for life in soak.lives)
    copies = sum(count - 1 for count in federation.witness.copies.values())
    long = [life for life in soak.lives if life.long]
    problems = [f"{queue} has grown: {soak.depths[queue][-10:]}" for queue in grown(soak.depths, len(soak.depths))]
    problems += [f"{life.name} (pid {life.pid}) is not flat" for life in long if not life.flat]
    if dead := max(soak.depths[federation.topology.dead.name]):
        problems.append(f"{dead} messages were dead-lettered, though none was bad")
    print("\nlives:     " + ", ".join(f"{count} of the {kind}" for kind, count in deaths.items()))
    print(f"           {epochs} times one of {pids} coordinators became the active one")
    print(f"           {soak.skipped} planned kills met a process that was away already")
    print(f"confirmed: {len(federation.witness.updates)} updates, {copies} copies of them after a resend")
    print(f"ledger:    {len(rows)} accepted, each once, in {versions} versions; discarded: {dict(discards) or 'none'}")
    print("replay:    the ledger's order gives the final parameters, bit for bit")
    print("queues:    ready messages: the most during the run, and the last count before its end")
    for queue, found in soak.depths.items():
        if found:
            print(f"  {queue:<28}{max(found):>6}{found[-1]:>6}")
    print("processes: the longest lives, with growth and handles after each one's warm-up")
    print("\n".join(table(long)))
    print("\n".join(f"PROBLEM: {problem}" for problem in problems) or "all promises hold")
    return problems


if __name__ == "__main__":
    main()
