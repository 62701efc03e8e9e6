"""Codecs of updates against one pass over the same floats: `python -m bench.codecs [--mb 40]`.

decode    floats a second that a codec gives back, against a copy of these floats into new memory, and a target
read      an update from its message body to checked floats, coded against plain: what a codec costs the coordinator
encode    floats a second on the device; topk against the partition that finds its border

All in one thread, in MB of floats a second of processor time, on float32 of a normal distribution.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from bench.codec import model_of
from bench.report import Row, best_of, print_table
from fedmq.coordinator.service.incoming.update_reader import Wires, decoded
from fedmq.schemas.codec import Limits, encode, open_envelope
from fedmq.schemas.codecs.codec import Codec
from fedmq.schemas.codecs.known import UplinkCodec, codec_of
from fedmq.schemas.codecs.wire import flat
from fedmq.schemas.messages import Update, Uplink
from fedmq.schemas.parameters import Parameters
from fedmq.schemas.tensors import spec_of

DECODE_MB_S, ENCODE_MB_S = 400.0, 200.0
"""Least rates: int8 on the coordinator, topk on a device."""
CODECS = ("bf16", "int8", "int4", "topk")


def codec(name: str) -> Codec:
    found = codec_of(Uplink(codec=name))
    assert found is not None
    return found


def rows_of(parameters: Parameters, name: str, repeats: int) -> list[Row]:
    """Measure one codec on this model."""
    spec = spec_of(parameters)
    wires = Wires(UplinkCodec(Uplink(codec=name), codec(name)), lambda _version: spec)  # type: ignore[arg-type]
    wire = wires.of(0)
    values = flat(parameters, wire.places)
    parts = wire.codec.encode(values, wire.places, 1, {}).parts
    bodies = [encode(_update(None), parameters), encode(_update(name), wire.encode(parameters, 1, None, {}).tensors)]
    limits = Limits(max_body_bytes=max(map(len, bodies)))
    kept = max(1, values.size // 100)

    def read(body: bytes) -> object:
        envelope = open_envelope(body, limits)
        return decoded(envelope.message, envelope.parameters(check_finite=False), wires)  # type: ignore[arg-type]

    copy, border, decode, plain, coded, encoding = best_of(
        repeats,
        values.copy,
        lambda: np.partition(np.abs(values), values.size - kept),
        lambda: wire.codec.decode(parts, wire.places),
        lambda: read(bodies[0]),
        lambda: read(bodies[1]),
        lambda: wire.codec.encode(values, wire.places, 1, {}),
        clock=time.process_time,
    )
    megabytes = 4 * values.size / 1e6

    def rate(seconds: float) -> str:
        return f"{megabytes / seconds:.0f} MB/s"

    limit = border if name == "topk" else copy
    return [
        Row(f"{name} decode: a copy", rate(decode), rate(copy), copy / decode, 0.2),
        Row(f"{name} decode: target", rate(decode), f"{DECODE_MB_S:g} MB/s", megabytes / decode / DECODE_MB_S, 1.0),
        Row(f"{name} read: passes more than plain", f"{1000 * coded:.2f} ms", f"{1000 * plain:.2f} ms",
            max(coded - plain, 0) / copy, 3.0, at_least=False),
        Row(f"{name} encode: {'its partition' if name == 'topk' else 'a copy'}", rate(encoding), rate(limit),
            limit / encoding, 0.4 if name == "topk" else 0.03),
        Row(f"{name} encode: target", rate(encoding), f"{ENCODE_MB_S:g} MB/s", megabytes / encoding / ENCODE_MB_S, 1.0),
    ]  # fmt: skip


def _update(codec_name: str | None) -> Update:
    return Update(
        update_id="u", task_id="t", run_id="r", participant_id="p", base_version=0, payload="delta",
        num_examples=1, num_steps=1, train_s=0.0, codec=codec_name,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=float, default=40.0, help="size of the model in MB of floats (default 40)")
    parser.add_argument("--repeats", type=int, default=15, help="the best of this many (default 15)")
    parser.add_argument("--quick", action="store_true", help="a smoke run: 4 MB, 3 repeats")
    args = parser.parse_args()
    megabytes, repeats = (4.0, 3) if args.quick else (args.mb, args.repeats)
    parameters = model_of(megabytes)
    for name in CODECS:
        print_table(f"{name}: {megabytes:g} MB of float32, best of {repeats}", rows_of(parameters, name, repeats))


if __name__ == "__main__":
    main()
