"""The price of signed tasks, in seconds of the processor: `python -m bench.signing [--mb 10] [--tasks 100]`.

sent      what signatures add to tasks of one version (coordinator.service.outgoing.publishing); nothing is sent
received  what the check adds to the decoding of a task

The reference is one pass of SHA-256 over the model: the coordinator makes one for a version, and a device one for a
task.
"""

from __future__ import annotations

import argparse
import time
import tracemalloc
from concurrent.futures import Future
from typing import Any

from bench.codec import model_of
from bench.report import Row, best_of, print_table
from fedmq.broker_config.topology import Topology
from fedmq.coordinator.decisions.commands import IssueTask
from fedmq.coordinator.service.outgoing.publishing import CoordinatorPublisher
from fedmq.fleet import certificates
from fedmq.schemas.codec import Limits, decode, encode
from fedmq.schemas.messages import Task, TrainingConfig
from fedmq.schemas.parameters import Parameters
from fedmq.schemas.signing import Sign, check_signature, signed, tensors_digest

LARGE = 2**30


class Nowhere:
    """A transport that takes everything and keeps nothing."""

    def publish(self, _message: Any, _timeout_s: float) -> Future[None]:
        return _done()

    def declare_exchange(self, _exchange: Any, _timeout_s: float) -> Future[None]:
        return _done()


def _done() -> Future[None]:
    future: Future[None] = Future()
    future.set_result(None)
    return future


def send(parameters: Parameters, tasks: int, sign: Sign | None) -> None:
    """Send tasks of one version, as the coordinator does."""
    publisher = CoordinatorPublisher(
        Nowhere(), Topology(), run_id="r", reply="delta", window_bytes=LARGE * tasks, timeout_s=1.0,  # type: ignore[arg-type]
        put=lambda _news: None, max_message_bytes=LARGE, sign=sign,
    )  # fmt: skip
    for seq in range(tasks):
        publisher.task(IssueTask(f"0a1b2c3d-{seq}", seq, f"p{seq}", 1, TrainingConfig(seed=seq), 60.0), parameters)
        publisher.pump()


def rows(megabytes: float, tasks: int, repeats: int) -> list[Row]:
    """Measure both sides."""
    key = certificates.new_signing_key()
    sign, verify = certificates.signer(key.private), certificates.verifier(key.public)
    parameters = model_of(megabytes)
    task = signed(
        Task(
            task_id="0a1b2c3d-1", run_id="r", participant_id="p", base_version=1, reply="delta", lease_s=60.0,
            training=TrainingConfig(),
        ),
        tensors_digest(parameters),
        sign,
    )  # fmt: skip
    body = encode(task, parameters)
    limits = Limits(max_body_bytes=len(body))

    def receive(*, check: bool) -> None:
        came = decode(body, limits)
        if check:
            assert isinstance(came.message, Task)
            assert came.parameters is not None
            check_signature(came.message, came.parameters, verify)

    plain, with_signature, decoded, checked, hashed = best_of(
        repeats,
        lambda: send(parameters, tasks, None),
        lambda: send(parameters, tasks, sign),
        lambda: receive(check=False),
        lambda: receive(check=True),
        lambda: tensors_digest(parameters),
        clock=time.process_time,
    )

    def ms(seconds: float) -> str:
        return f"{seconds * 1000:.3f} ms"

    each, one = (with_signature - plain) / tasks, checked - decoded
    return [
        Row(f"added to each of {tasks} tasks sent", ms(each), ms(hashed), each / hashed, 0.1, at_least=False),
        Row("added to a task received", ms(one), ms(hashed), one / hashed, 1.5, at_least=False),
    ]


def peak_bytes(parameters: Parameters) -> int:
    """Return the most memory that the digest takes beside the model."""
    tracemalloc.start()
    tensors_digest(parameters)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.signing", description="The price of signed tasks")
    parser.add_argument("--mb", type=float, default=10.0, help="size of the model")
    parser.add_argument("--tasks", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    print_table(f"signatures, a model of {given.mb:g} MB", rows(given.mb, given.tasks, given.repeats))
    print(f"  the digest takes {peak_bytes(model_of(given.mb))} bytes of RAM beside the model")


if __name__ == "__main__":
    main()
