"""The coordinator's peak RSS with 100 participants, against that with 5.

    python -m bench.memory [--quick]

Both have the same model (4 MB), prefetch and number of updates. Participants are real services: five in a process each,
which suffice to keep the prefetch window full, or 25 in each of four processes.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from bench.federation import Federation, run
from bench.report import Row, print_table
from fedmq.broker_config.node.node import PrivateNode

MODEL_BYTES = 4_000_000
PREFETCH = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="20 participants for 100, fewer updates")
    quick = parser.parse_args().quick
    many, updates = (20, 60) if quick else (100, 400)

    def peak_mb(processes: list[list[float]]) -> float:
        federation = Federation(processes, updates, MODEL_BYTES, memory_budget_bytes=PREFETCH * MODEL_BYTES)
        return run(node, federation, Path(folder)).rss_mb

    with tempfile.TemporaryDirectory(prefix="fedmq-bench-") as folder, PrivateNode(Path(folder) / "node") as node:
        few_mb = peak_mb([[0.0]] * 5)
        many_mb = peak_mb([[0.0] * (many // 4)] * 4)
    what = f"coordinator peak RSS, {many} participants to 5"
    print_table(
        "bench/memory", [Row(what, f"{many_mb:.0f} MB", f"{few_mb:.0f} MB", many_mb / few_mb, 1.1, at_least=False)]
    )


if __name__ == "__main__":
    main()
