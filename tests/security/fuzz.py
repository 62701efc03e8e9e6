"""Bad messages by the million, to both sides: `python -m tests.security.fuzz [--messages N] [--seed S] [--seconds T]`.

Each episode is a run of a real coordinator or a real participant. Between honest messages come mutated ones of every
kind, chunks and AMQP properties included. The command fails, and says how to repeat it, if a process ends, an error is
not a typed one, a message costs more than `--limit-ms` of CPU time for a body under 1 MiB or much more memory than its
size, an honest update is not accepted exactly once, or a stranger's noise changes the model by a bit.

The same seed gives the same messages. A failure prints the seed, the episode, and the smallest message found that
repeats it. Nothing is written but a temporary folder, in RAM if the machine has /dev/shm.
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import psutil

from tests.security.fuzzing import coordinator_side, participant_side, reader_side
from tests.security.fuzzing.plan import EPISODE_KINDS, Plan
from tests.security.fuzzing.watch import Failed, Figures, LogCheck

EPISODE_MESSAGES = 2000
LIMIT_MS = 50.0
MOST_GROWTH_BYTES = 300 * 1024**2
"""Growth of the process over all episodes after the first ones. What a message leaves behind must not add up."""
WARM_EPISODES = 8
SHRINKS = 150
"""Tries to find a smaller message that fails."""


def folder_in_ram() -> str | None:
    """Return a folder whose syncs cost nothing, if there is one."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def episode(
    seed: int, number: int, messages: int, limit_s: float, log: LogCheck, which: str = "all", only: object = None
) -> Figures:
    """Run one episode: in turn a stranger's noise, a participant, a hostile participant's noise, and its chunks; then
    the last two in a codec. With "reader" every episode is of the decoding alone."""
    with tempfile.TemporaryDirectory(dir=folder_in_ram()) as folder:
        kind = number % EPISODE_KINDS
        if which == "reader":
            mine = Plan(seed, number, messages, limit_s, coded=True, only=only)  # type: ignore[arg-type]
            return reader_side.run(mine, Path(folder), log)
        if kind == 1:
            plan = participant_side.Plan(seed, number, messages, limit_s, only=only)  # type: ignore[arg-type]
            return participant_side.run(plan, Path(folder), log)
        inside, chunked, coded = kind >= 2, kind in {3, 5}, kind >= 4
        mine = Plan(seed, number, messages, limit_s, inside, chunked, coded, only)  # type: ignore[arg-type]
        return coordinator_side.run(mine, Path(folder), log)


def is_coded(number: int) -> bool:
    """Return True if most of this episode's messages are in a codec: updates, or tasks."""
    kind, turn = number % EPISODE_KINDS, number // EPISODE_KINDS
    return kind >= 4 or (kind == 1 and turn % 2 == 1)


def smallest(failure: Failed, seed: int, number: int, limit_s: float, log: LogCheck, which: str) -> bytes | None:
    """Return the smallest message found that fails alone in its episode; None if it does not fail alone."""

    def fails(body: bytes) -> bool:
        log.wrong.clear()
        try:
            episode(seed, number, 1, limit_s, log, which, only=((failure.queue, failure.properties, body),))
        except Failed:
            return True
        return False

    body, tries = failure.body, 0
    if not failure.queue or not fails(body):
        return None
    width = max(1, len(body) // 2)
    while width and tries < SHRINKS:
        at, shorter = 0, False
        while at < len(body) and tries < SHRINKS:
            tries += 1
            shrunk = body[:at] + body[at + width :]
            if fails(shrunk):
                body, shorter = shrunk, True
            else:
                at += width
        width = width if shorter and width < len(body) else width // 2
    return body


def fuzz(
    messages: int, seed: int, seconds: float, limit_s: float, first: int = 0, show: bool = True, which: str = "all"
) -> Figures:  # fmt: skip
    """Run episodes until there were so many messages, or the time is over. Raises Failed with all that is needed.

    `which`: "coded" leaves out the episodes without a codec, and counts the messages in a codec alone. "reader" gives
    coded messages to the functions that read them, and to nothing else.
    """
    root, log = logging.getLogger("fedmq"), LogCheck()
    level, propagates = root.level, root.propagate
    root.addHandler(log)
    root.setLevel(logging.INFO)
    root.propagate = False
    total, number, began_s = Figures(), first, time.monotonic()
    rss_bytes = episodes = 0
    try:
        while (left := messages - (total.messages if which == "all" else total.coded)) > 0:
            if time.monotonic() - began_s >= seconds:
                break
            if which == "coded" and not is_coded(number):
                number += 1
                continue
            log.wrong.clear()
            count = min(EPISODE_MESSAGES, left)
            try:
                total.add(episode(seed, number, count, limit_s, log, which))
            except Failed as failure:
                small = smallest(failure, seed, number, limit_s, log, which)
                found = (
                    "it does not fail alone"
                    if small is None
                    else f"smallest body ({len(small)} bytes): {small[:400].hex()}"
                )
                raise Failed(
                    f"{failure.what}\n  repeat: python -m tests.security.fuzz --seed {seed} --episode {number} "
                    f"--messages {count} --which {which}\n"
                    f"  queue {failure.queue!r}, properties {failure.properties[:200].hex()}\n"
                    f"  {found}"
                ) from failure
            number += 1
            gc.collect()
            grown = psutil.Process().memory_info().rss
            episodes += 1
            if episodes <= WARM_EPISODES:
                rss_bytes = grown
            elif grown - rss_bytes > MOST_GROWTH_BYTES:
                raise Failed(
                    f"the process has grown by {(grown - rss_bytes) / 1e6:.0f} MB since episode {WARM_EPISODES}"
                )
            if show and episodes % 50 == 0:
                print(line(total, time.monotonic() - began_s), flush=True)
    finally:
        root.removeHandler(log)
        root.setLevel(level)
        root.propagate = propagates
    return replace(total)


def line(total: Figures, seconds: float) -> str:
    """Return the figures in one line."""
    return (
        f"{total.messages:,} messages, {total.coded:,} of them in a codec, in {seconds:.0f} s, "
        f"slowest {total.slowest_s * 1e3:.1f} ms of CPU time ({total.slowest_bytes:,} bytes: {total.slowest_names}), "
        f"most memory {total.peak_bytes / 1e6:.1f} MB, RSS {psutil.Process().memory_info().rss / 1e6:.0f} MB, "
        f"{total.honest:,} honest updates, each accepted once"
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.security.fuzz", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--messages", type=int, default=20_000, help="bad messages in all (default 20,000)")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other messages")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after this time")
    parser.add_argument("--limit-ms", type=float, default=LIMIT_MS, help="CPU time for a body under 1 MiB (default 50)")
    parser.add_argument(
        "--which", choices=("all", "coded", "reader"), default="all",
        help="coded: only episodes in a codec; reader: coded messages to the decoding alone, a million in minutes",
    )  # fmt: skip
    parser.add_argument("--episode", type=int, default=0, help="begin with this episode, to repeat a failure")
    args = parser.parse_args()
    began_s = time.monotonic()
    try:
        total = fuzz(args.messages, args.seed, args.seconds, args.limit_ms / 1e3, args.episode, which=args.which)
    except Failed as failure:
        print(f"FAILED: {failure}", file=sys.stderr)
        return 1
    print(line(total, time.monotonic() - began_s))
    for outcome, count in sorted(total.outcomes.items(), key=lambda item: -item[1]):
        print(f"  {count:>9,}  {outcome}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
