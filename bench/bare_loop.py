"""The limit that bench.whole measures against: one plain pika loop over messages of an update's size.

    python -m bench.bare_loop URL QUEUE NUM_BYTES SECONDS RECV_BYTES

Each turn publishes one persistent message to a quorum queue, waits for its confirmation, consumes it and acks it.
RECV_BYTES 4096 is stock pika; 262144 is what fedmq's transport sets. Prints messages a second.
"""

from __future__ import annotations

import sys
import time

import pika
from pika.adapters.utils import io_services_utils

WARM_UP_S = 1.0


def main() -> None:
    url, queue, num_bytes, seconds, recv_bytes = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6])
    io_services_utils._AsyncTransportBase._MAX_RECV_BYTES = recv_bytes
    connection = pika.BlockingConnection(pika.URLParameters(url))
    channel = connection.channel()
    channel.confirm_delivery()
    channel.queue_declare(queue, durable=True, arguments={"x-queue-type": "quorum"})
    channel.basic_qos(prefetch_count=1)
    deliveries = channel.consume(queue)
    body, persistent = bytes(num_bytes), pika.BasicProperties(delivery_mode=2)

    def turns_until(end_s: float) -> int:
        count = 0
        while time.monotonic() < end_s:
            channel.basic_publish("", queue, body, persistent)
            method, _, _ = next(deliveries)
            channel.basic_ack(method.delivery_tag)
            count += 1
        return count

    turns_until(time.monotonic() + WARM_UP_S)
    began_s = time.monotonic()
    count = turns_until(began_s + seconds)
    rate = count / (time.monotonic() - began_s)
    channel.cancel()
    channel.queue_delete(queue)
    connection.close()
    print(rate, flush=True)


if __name__ == "__main__":
    main()
