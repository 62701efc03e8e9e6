"""Runs every benchmark once, small, to prove that it runs: `make bench-smoke`, a part of CI.

Without a rabbitmq-server, the benchmarks that need a broker are left out with a loud line. In CI that is an error.
"""

from __future__ import annotations

import os
import subprocess
import sys

from fedmq.broker_config.node.node import find_server

WITHOUT_BROKER = ("bench.codec", "bench.codecs", "bench.studies")
WITH_BROKER = (
    "bench.ingest",
    "bench.chunked_ingest",
    "bench.large_model",
    "bench.references",
    "bench.end_to_end",
    "bench.whole",
    "bench.memory",
    "bench.recovery",
    "bench.sessions",
)


def main() -> None:
    chosen = WITHOUT_BROKER
    if find_server() is not None:
        chosen += WITH_BROKER
    elif os.environ.get("CI"):
        sys.exit(f"no rabbitmq-server here: {', '.join(WITH_BROKER)} cannot run")
    else:
        print(f"SKIPPED, no rabbitmq-server here: {', '.join(WITH_BROKER)}")
    for module in chosen:
        subprocess.run([sys.executable, "-m", module, "--quick"], check=True)


if __name__ == "__main__":
    main()
