"""Coded updates on the wire: names, sizes, ratios, and what a peer may not claim."""

from __future__ import annotations

import numpy as np
import pytest

from fedmq.schemas.codec import Limits, encode, open_envelope
from fedmq.schemas.codecs import zstd
from fedmq.schemas.codecs.bf16 import Bf16
from fedmq.schemas.codecs.blocks import Int4, Int8
from fedmq.schemas.codecs.codec import Codec, Encoded, Part
from fedmq.schemas.codecs.known import UplinkCodec
from fedmq.schemas.codecs.powersgd import PowerSgd
from fedmq.schemas.codecs.topk import TopK
from fedmq.schemas.codecs.wire import Wire
from fedmq.schemas.errors import AppError, LimitExceeded, MalformedMessage, PeerError, SpecMismatch
from fedmq.schemas.messages import Uplink
from fedmq.schemas.parameters import Parameters
from fedmq.schemas.tensors import packed_bytes, spec_of
from tests.security.fuzzing.coded import zstd_frame
from tests.unit.schemas.samples import UPDATE

MLP = {"w1": (784, 64), "b1": (64,), "w2": (64, 10), "b2": (10,)}
DEMO = {"w1": (784, 128), "b1": (128,), "w2": (128, 10), "b2": (10,)}
LARGE = {"w1": (784, 1024), "b1": (1024,), "w2": (1024, 200), "b2": (200,)}


def model(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> Parameters:
    rng = np.random.default_rng(seed)
    return Parameters({n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}).packed()


def mixed() -> Parameters:
    rng = np.random.default_rng(1)
    return Parameters(
        {
            "kernel": rng.standard_normal((40, 8)).astype(np.float16),
            "mean": rng.standard_normal(8).astype(np.float32),
            "scale": rng.standard_normal(8).astype(np.float64),
        },
        {"mean"},
    )


def wire(codec: Codec, tensors: Parameters, compressed: bool = False) -> Wire:
    return Wire(codec, compressed, spec_of(tensors))


def sent(codec: Codec, tensors: Parameters, compressed: bool = False) -> Parameters:
    return wire(codec, tensors, compressed).encode(tensors, 3, None, {}).tensors


def body(tensors: Parameters, codec: Codec | None = None) -> int:
    return len(encode(UPDATE.model_copy(update={"codec": None if codec is None else codec.name}), tensors))


@pytest.mark.parametrize("shapes", [DEMO, LARGE], ids=["demo", "1e6"])
@pytest.mark.parametrize(
    ("codec", "compressed", "ratio"),
    [
        (Bf16(), False, 1.99),
        (Int8(), False, 3.92),
        (Int8(), True, 4.2),
        (Int4(), False, 7.07),  # 7.11 without headers: a scale of 4 bytes for 64 elements
        (Int4(), True, 7.85),
        (TopK(0.01), False, 70),
    ],
)
def test_messages_shrink_as_the_docs_say_with_their_headers(shapes, codec, compressed, ratio) -> None:
    if compressed:
        pytest.importorskip("zstandard")
    tensors = model(shapes)
    assert body(tensors) / body(sent(codec, tensors, compressed), codec) >= ratio


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("codec", [Bf16(), Int8(), Int4(), TopK(0.1), TopK(0.1, "int8"), PowerSgd(1)], ids=repr)
@pytest.mark.parametrize("tensors", [model(MLP), mixed()], ids=["block", "mixed"])
def test_what_comes_back_has_the_models_tensors_within_the_announced_bounds(tensors, codec, compressed) -> None:
    one = wire(codec, tensors, compressed)
    done = one.encode(tensors, 3, None, {})
    decoded = one.decode(done.tensors)
    assert spec_of(decoded) == spec_of(tensors)
    assert all(np.array_equal(decoded[n], done.received[n]) for n in tensors)
    assert all(np.array_equal(decoded[n], tensors[n]) for n in tensors.non_trainable)
    assert (decoded.layout is None) == (tensors.layout is None)
    least, most = one.bounds()
    size = len(encode(UPDATE, done.tensors)) - 4096
    assert size <= most
    assert least <= most
    assert sum(a.nbytes for a in done.tensors.values()) >= least - 16 * len(done.tensors)


@pytest.mark.parametrize("codec", [TopK(1.0), Int4()], ids=repr)
def test_a_plain_update_is_within_the_bounds_whether_the_codec_makes_less_or_more_of_it(codec) -> None:
    plain = model(MLP)
    least, most = wire(codec, plain).bounds()
    assert least <= sum(a.nbytes for a in plain.values()) <= most


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("codec", [Int8("nearest"), Int4("nearest"), PowerSgd(1)], ids=repr)
def test_claims_that_overflow_are_left_to_the_check_of_finiteness_without_a_warning(codec) -> None:
    tensors = model(MLP)
    coded = sent(codec, tensors)
    large = coded.replace({n: np.full_like(a, 3e38) if a.dtype == np.float32 else a for n, a in coded.items()})
    assert not all(np.isfinite(a).all() for a in wire(codec, tensors).decode(large).values())


def test_a_frame_that_wants_a_large_window_gets_none() -> None:
    pytest.importorskip("zstandard")
    cut_off = zstd_frame(40_000, window=0x88, blocks=1)[:-2]  # 128 MiB
    with pytest.raises(PeerError, match="too much memory"):
        zstd.decompress(memoryview(cut_off), 0, 10**9)


def test_a_value_that_the_models_dtype_cannot_hold_is_left_to_the_check_of_finiteness() -> None:
    tensors = Parameters({"w": np.float16([65504, 1])})
    coded = sent(Int8("nearest"), tensors)
    large = coded.replace({n: a if "scale" not in n else a * np.float32(2) for n, a in coded.items()})
    assert np.isinf(wire(Int8("nearest"), tensors).decode(large)["w"][0])


def changed(coded: Parameters, **arrays: object) -> Parameters:
    named = {f"coded:{n}" if n in ("q", "scale", "gap", "value", "zstd") else n: a for n, a in arrays.items()}
    return Parameters({n: a for n, a in ({**coded, **named}).items() if a is not None})  # type: ignore[misc]


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"q": None}, SpecMismatch),
        ({"more": np.zeros(2, np.float32)}, SpecMismatch),
        ({"gap": np.zeros(2, np.uint8)}, SpecMismatch),
        ({"q": np.zeros(50_890, np.uint8)}, SpecMismatch),
        ({"q": np.zeros((50_890, 1), np.int8)}, SpecMismatch),
        ({"q": np.zeros(50_889, np.int8)}, LimitExceeded),
        ({"q": np.zeros(50_891, np.int8)}, LimitExceeded),
        ({"scale": np.zeros(3, np.float32)}, LimitExceeded),
    ],
)
def test_parts_of_another_model_are_refused_before_anything_is_decoded(change, error) -> None:
    tensors = model(MLP)
    with pytest.raises(error):
        wire(Int8(), tensors).decode(changed(sent(Int8(), tensors), **change))


def test_tensors_that_are_not_coded_must_be_there_as_they_are() -> None:
    tensors = mixed()
    coded = sent(Int8(), tensors)
    for mean in (None, np.zeros(8, np.float64), np.zeros(9, np.float32)):
        with pytest.raises(SpecMismatch, match="mean"):
            wire(Int8(), tensors).decode(changed(coded, mean=mean))


def test_a_frame_that_announces_too_much_or_too_little_is_refused_before_it_is_unpacked() -> None:
    zstandard = pytest.importorskip("zstandard")
    tensors = model(MLP)
    one = wire(Int8(), tensors, compressed=True)
    for content in (b"\0" * 10, b"\0" * 2**24):
        frame = np.frombuffer(zstandard.ZstdCompressor().compress(content), np.uint8)
        with pytest.raises(LimitExceeded, match="announces"):
            one.decode(Parameters({"coded:zstd": frame}))
    unknown = zstandard.ZstdCompressor(write_content_size=False).compress(b"\0" * 50_000)
    whole = sent(Int8(), tensors, compressed=True)["coded:zstd"]
    for broken in (unknown, bytes(whole[:-5]), bytes(whole) + b"more", b"", b"\xff" * 100):
        with pytest.raises(PeerError):
            one.decode(Parameters({"coded:zstd": np.frombuffer(broken, np.uint8)}))


def test_a_frame_is_flat_bytes_and_alone() -> None:
    pytest.importorskip("zstandard")
    tensors = model(MLP)
    one = wire(Int8(), tensors, compressed=True)
    whole = sent(Int8(), tensors, compressed=True)["coded:zstd"]
    for frame in (whole.view(np.int8), whole[: whole.size // 4 * 4].view(np.float32), whole.reshape(1, -1)):
        with pytest.raises(SpecMismatch, match="uint8 and flat"):
            one.decode(Parameters({"coded:zstd": frame}))
    for beside in ("coded:q", "coded:"):
        with pytest.raises(SpecMismatch, match="uint8 and flat"):
            one.decode(Parameters({"coded:zstd": whole, beside: np.zeros(2, np.uint8)}))


def test_a_model_whose_names_would_be_read_as_parts_is_refused() -> None:
    with pytest.raises(AppError, match="coded:q"):
        UplinkCodec(Uplink(codec="int8"), Int8()).wire(spec_of(model({"coded:q": (2,)})))


class Halves:
    """A codec of somebody's own."""

    name = "halves"

    def __init__(self, wrong: str = "") -> None:
        self.wrong = wrong

    def parts(self, places):
        return (Part("half", "float16", places.size, places.size),)

    def encode(self, values, places, seed, warm):
        return Encoded({"half": values.astype(np.float32 if self.wrong == "dtype" else np.float16)})

    def decode(self, parts, places):
        if self.wrong == "raises":
            raise RuntimeError("no")
        return parts["half"].astype(np.float64 if self.wrong == "decoded" else np.float32)


def test_a_codec_of_ones_own_is_a_codec_like_any_other() -> None:
    tensors = model(MLP)
    decoded = wire(Halves(), tensors).decode(sent(Halves(), tensors))
    assert np.array_equal(decoded["w1"], tensors["w1"].astype(np.float16).astype(np.float32))


def test_a_codec_that_breaks_its_promise_is_named_to_the_one_who_wrote_it() -> None:
    tensors = model(MLP)
    with pytest.raises(AppError, match=r"'halves'.*breaks the promise of its parts.*part half is float32"):
        sent(Halves("dtype"), tensors)


@pytest.mark.parametrize("wrong", ["raises", "decoded"])
def test_a_codec_that_fails_on_what_a_peer_sent_costs_that_update_alone(wrong) -> None:
    tensors = model(MLP)
    with pytest.raises(MalformedMessage, match="'halves'"):
        wire(Halves(wrong), tensors).decode(sent(Halves(), tensors))


def test_an_older_fedmq_reads_messages_that_have_no_codec() -> None:
    plain = open_envelope(encode(UPDATE, model(MLP)), Limits())
    assert "codec" not in plain._header.fields
    coded = UPDATE.model_copy(update={"codec": "int8"})
    assert open_envelope(encode(coded, sent(Int8(), model(MLP))), Limits()).message == coded


@pytest.mark.parametrize("fraction", [0.001, 0.01, 0.1, 1.0])
def test_the_usual_size_of_topk_is_that_of_a_model_without_structure(fraction):
    tensors = model({"w": (50_000,)})
    ours = wire(TopK(fraction), tensors)
    assert ours.usual_bytes == pytest.approx(sent(TopK(fraction), tensors).num_bytes, rel=0.02)
    least, most = ours.bounds()
    assert least <= ours.usual_bytes <= most


@pytest.mark.parametrize("codec", [Bf16(), Int8(), Int4(), PowerSgd(2)], ids=lambda codec: codec.name)
def test_other_codecs_have_one_size(codec):
    tensors = model(MLP)
    assert wire(codec, tensors).usual_bytes == packed_bytes(spec_of(sent(codec, tensors)))
