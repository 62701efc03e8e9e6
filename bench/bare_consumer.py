"""The limit that bench.ingest measures against: a plain pika consumer that only acks.

    python -m bench.bare_consumer URL QUEUE COUNT PREFETCH RECV_BYTES

Prints "ready", then one JSON line: the time of the last ack (monotonic clock), and CPU seconds.
RECV_BYTES 4096 is stock pika; 262144 is what fedmq's transport sets.
"""

from __future__ import annotations

import json
import sys
import time

import pika
from pika.adapters.utils import io_services_utils


def main() -> None:
    url, queue, count, prefetch, recv_bytes = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6])
    io_services_utils._AsyncTransportBase._MAX_RECV_BYTES = recv_bytes
    connection = pika.BlockingConnection(pika.URLParameters(url))
    channel = connection.channel()
    channel.basic_qos(prefetch_count=prefetch)
    print("ready", flush=True)
    cpu = time.process_time()
    for seen, (method, _, _) in enumerate(channel.consume(queue, inactivity_timeout=120), start=1):
        if method is None:
            sys.exit(f"no delivery within 120 s after {seen - 1} of {count}")
        channel.basic_ack(method.delivery_tag)
        if seen == count:
            break
    told = {"done_s": time.monotonic(), "cpu_s": time.process_time() - cpu}
    channel.cancel()
    connection.close()
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
