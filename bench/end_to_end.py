"""Updates a second of a whole federation, against the sum of what its participants could do alone.

    python -m bench.end_to_end [--quick]

Eight participant processes whose training sleeps 0.5, 0.5, 0.5, 0.5, 1, 1, 2 and 4 s; FedBuff; a private RabbitMQ.
The ideal is Σ 1/T_i: the rate if network, broker, commits and aggregation took no time.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from bench.federation import Federation, run
from bench.report import Row, print_table
from fedmq.broker_config.node.node import PrivateNode

DURATIONS_S = (0.5, 0.5, 0.5, 0.5, 1.0, 1.0, 2.0, 4.0)
WARM_UP_S = 4.0
"""Seconds within which the slowest participant has delivered once."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the time: proves that it runs")
    quick = parser.parse_args().quick
    ideal = sum(1 / duration_s for duration_s in DURATIONS_S)
    scale = 0.1 if quick else 1.0
    durations = [[scale * duration_s] for duration_s in DURATIONS_S]
    with tempfile.TemporaryDirectory(prefix="fedmq-bench-") as folder, PrivateNode(Path(folder) / "node") as node:
        outcome = run(node, Federation(durations, max_updates=100 if quick else 400), Path(folder))
    settled = [s for s in outcome.arrivals_s if s >= outcome.arrivals_s[0] + scale * WARM_UP_S]
    rate = (len(settled) - 1) / (settled[-1] - settled[0])
    ideal /= scale
    print_table(
        "bench/end_to_end", [Row("updates/s, 8 participants", f"{rate:.2f}/s", f"{ideal:.2f}/s", rate / ideal, 0.9)]
    )


if __name__ == "__main__":
    main()
