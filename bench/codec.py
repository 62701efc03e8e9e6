"""Encode and decode one model, against a plain msgpack pass over the same bytes: `python -m bench.codec [--mb 50]`.

encode    schemas.codec.encode     against msgpack.packb of the same arrays' bytes
decode    schemas.codec.decode     against msgpack.unpackb of the same body size; with and without the finite check
add       coordinator.strategies.math.arithmetic.scale_add against one numpy `a += w * b`
"""

from __future__ import annotations

import argparse
import tracemalloc
from collections.abc import Callable

import msgpack
import numpy as np

from bench.report import Row, best_of, print_table
from fedmq.coordinator.strategies.math.arithmetic import scale_add
from fedmq.schemas.codec import Limits, decode, encode
from fedmq.schemas.messages import Update
from fedmq.schemas.parameters import Parameters

SHARES = (0.6, 0.25, 0.1, 0.04, 0.01)
"""Shares of the bytes that the model's kernels have, from the largest down. Each kernel has a bias of 256 values."""


def model_of(megabytes: float, dtype: str = "float32") -> Parameters:
    """Return a dense model of about this size: a few large kernels, each with a small bias."""
    rng = np.random.default_rng(0)
    tensors = {}
    for i, share in enumerate(SHARES):
        rows = max(1, int(megabytes * 1e6 * share) // (256 * np.dtype(dtype).itemsize))
        tensors[f"{2 * i:03d}/dense/kernel"] = rng.standard_normal((rows, 256)).astype(dtype)
        tensors[f"{2 * i + 1:03d}/dense/bias"] = rng.standard_normal(256).astype(dtype)
    return Parameters(tensors)


def codec_rows(parameters: Parameters, repeats: int) -> list[Row]:
    """Measure encode and decode of one update against the plain msgpack pass."""
    update = Update(
        update_id="u", task_id="t", run_id="r", participant_id="p", base_version=0, payload="delta",
        num_examples=1, num_steps=1, train_s=0.0,
    )  # fmt: skip
    plain = {name: array.tobytes() for name, array in parameters.items()}
    body, plain_body = encode(update, parameters), msgpack.packb(plain)
    limits = Limits(max_body_bytes=len(body))
    plain_encode, ours_encode, plain_decode, checked, unchecked = best_of(
        repeats,
        lambda: msgpack.packb(plain),
        lambda: encode(update, parameters),
        lambda: msgpack.unpackb(plain_body, max_bin_len=len(plain_body)),
        lambda: decode(body, limits),
        lambda: decode(body, limits, check_finite=False),
    )
    rate = _rate(parameters.num_bytes)
    return [
        Row("encode", rate(ours_encode), rate(plain_encode), plain_encode / ours_encode, 0.5),
        Row("decode, finite check", rate(checked), rate(plain_decode), plain_decode / checked, 0.5),
        Row("decode, no finite check", rate(unchecked), rate(plain_decode), plain_decode / unchecked, 0.5),
    ]


def aggregation_row(parameters: Parameters, repeats: int) -> Row:
    """Measure the addition of one weighted update to an accumulator, tensor by tensor, against numpy's expression."""
    accumulator = {n: np.zeros_like(a) for n, a in parameters.items()}

    def ours() -> None:
        for name, array in parameters.items():
            scale_add(accumulator[name], 0.5, array)

    def plain() -> None:
        for name, array in parameters.items():
            accumulator[name] += 0.5 * array

    plain_s, ours_s = best_of(repeats, plain, ours)
    rate = _rate(parameters.num_bytes)
    return Row("aggregate one update (time)", rate(ours_s), rate(plain_s), ours_s / plain_s, 2.5, at_least=False)


def aggregation_peak_row(parameters: Parameters) -> Row:
    """Measure the memory that the addition of one update allocates, as a share of the model."""
    accumulator = {n: np.zeros_like(a) for n, a in parameters.items()}
    tracemalloc.start()
    for name, array in parameters.items():
        scale_add(accumulator[name], 0.5, array)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    share = peak / parameters.num_bytes
    return Row(
        "aggregate one update (memory)", f"{peak / 1e6:.2f} MB", f"{parameters.num_bytes / 1e6:.0f} MB",
        share, 0.5, at_least=False,
    )  # fmt: skip


def _rate(num_bytes: int) -> Callable[[float], str]:
    return lambda seconds: f"{num_bytes / 1e6 / seconds:.0f} MB/s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=float, default=50.0, help="size of the model in MB (default 50)")
    parser.add_argument("--repeats", type=int, default=15, help="the best of this many (default 15)")
    parser.add_argument("--quick", action="store_true", help="a smoke run: 5 MB, 3 repeats")
    args = parser.parse_args()
    megabytes, repeats = (5.0, 3) if args.quick else (args.mb, args.repeats)
    for dtype in ("float32", "float16", "float64"):
        parameters = model_of(megabytes, dtype)
        print_table(f"{megabytes:g} MB of {dtype}, best of {repeats}", codec_rows(parameters, repeats))
    parameters = model_of(megabytes)
    rows = [aggregation_row(parameters, repeats), aggregation_peak_row(parameters)]
    print_table(f"{megabytes:g} MB of float32, best of {repeats}", rows)


if __name__ == "__main__":
    main()
