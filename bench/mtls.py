"""The price of certificates and checks: the coordinator's speed with updates, over mTLS and by a plain password.

    python -m bench.mtls [--sizes 1,10] [--quick]

Two private RabbitMQ nodes run beside each other. On the first one all processes log in by password, and the coordinator
believes everybody. On the second one all have certificates (EXTERNAL, TLS 1.3), and the coordinator checks each sender.
The third measurement has certificates and no checks. They take turns, and the best of five rounds counts. The
publishers, the broker and the coordinator share this machine's cores, so the publishers' TLS is in the figures too.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

from bench.connection import FLEET, fleet_node
from bench.ingest import PLANS, PUBLISHERS, REPEATS, Outcome, Plan, Rig, _best
from bench.report import Row, print_table
from fedmq.broker_config.node.node import PrivateNode
from fedmq.fleet.folder import FleetFolder

TARGET = 0.9


class Certified:
    """A rig whose processes have certificates."""

    def __init__(self, rig: Rig, folder: FleetFolder) -> None:
        self._rig = rig
        self._folder = folder

    def ours(self) -> Outcome:
        os.environ[FLEET] = str(self._folder.path)
        try:
            return self._rig.ours()
        finally:
            del os.environ[FLEET]


def rows_of(label: str, mega: float, plain: Outcome, bare: Outcome, checked: Outcome) -> list[Row]:
    def rate(outcome: Outcome) -> str:
        return f"{mega / outcome.seconds:.0f} MB/s, CPU {outcome.cpu_s:.2f} s"

    return [
        Row(
            f"{label}: mTLS and checks / password", rate(checked), rate(plain), plain.seconds / checked.seconds, TARGET
        ),
        Row(f"{label}: mTLS and checks / mTLS", rate(checked), rate(bare), bare.seconds / checked.seconds, TARGET),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="1,10")
    parser.add_argument("--quick", action="store_true", help="a tenth of the updates: proves that it runs")
    options = parser.parse_args()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="fedmq-bench-") as text:
        work = Path(text)
        with PrivateNode(work / "plain") as plain, fleet_node(work) as (secure, folder):
            plain.ctl("set_user_tags", "fedmq", "administrator", "impersonator")
            for size in map(float, options.sizes.split(",")):
                plan = PLANS[size]
                if options.quick:
                    plan = Plan(**{**vars(plan), "count": max(PUBLISHERS, plan.count // 10)})
                rigs = (
                    Rig(plain, plan, work),
                    Certified(Rig(secure, plan, work), folder),
                    Certified(Rig(secure, plan, work, "user"), folder),
                )
                repeats = 1 if options.quick else REPEATS
                rounds = [tuple(rig.ours() for rig in rigs) for _ in range(repeats)]
                best = [_best(outcomes) for outcomes in zip(*rounds, strict=True)]
                count = plan.count // PUBLISHERS * PUBLISHERS
                rows += rows_of(f"{count} × {size:g} MB", count * size, *best)
    print_table("bench/mtls", rows)


if __name__ == "__main__":
    main()
