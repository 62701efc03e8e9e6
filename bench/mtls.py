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
import secrets
import tempfile
import time
from pathlib import Path

from bench.connection import FLEET
from bench.ingest import PLANS, PUBLISHERS, REPEATS, Outcome, Plan, Rig, _best
from bench.report import Row, print_table
from fedmq.broker_config.node.node import PrivateNode
from fedmq.broker_config.node.tls import NodeTls
from fedmq.fleet import setup
from fedmq.fleet.folder import FleetFolder

TARGET = 0.9
USER = "coordinator"


def made_fleet(path: Path) -> FleetFolder:
    """Make a fleet's certificates."""
    folder = FleetFolder(path)
    plan = setup.Plan(
        urls=("amqps://127.0.0.1:5671/%2F",), prefix="bench", coordinator_user=USER, server_names=("127.0.0.1",),
        max_message_bytes=2**27, max_payload_bytes=2**30, participant_queues="classic",
    )  # fmt: skip
    setup.make(folder, plan, time.time())
    return folder


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
        folder = made_fleet(work / "fleet")
        tls = NodeTls(folder.ca, folder.server, folder.server)
        with PrivateNode(work / "plain") as plain, PrivateNode(work / "tls", tls=tls) as secure:
            plain.ctl("set_user_tags", "fedmq", "administrator", "impersonator")
            secure.ctl("add_user", USER, secrets.token_hex(16))
            secure.ctl("clear_password", USER)
            secure.ctl("set_user_tags", USER, "impersonator")
            secure.ctl("set_permissions", USER, ".*", ".*", ".*")
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
