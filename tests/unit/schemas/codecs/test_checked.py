"""A codec of the user's own that does something else than the seam asks for: the error names the function and why."""

from __future__ import annotations

import numpy as np
import pytest

from fedmq.schemas.codecs.blocks import Int8
from fedmq.schemas.codecs.codec import Encoded, Part
from fedmq.schemas.codecs.powersgd import PowerSgd
from fedmq.schemas.codecs.topk import TopK
from fedmq.schemas.codecs.wire import Wire
from fedmq.schemas.errors import AppError, MalformedMessage, TrainerError
from fedmq.schemas.parameters import Parameters
from fedmq.schemas.tensors import spec_of

MODEL = Parameters({"w": np.arange(6, dtype=np.float32)})


class Halves:
    """A codec of somebody's own, with some of its functions replaced."""

    name = "halves"

    def __init__(self, **other):
        self.__dict__.update(other)

    def parts(self, places):
        return (Part("half", "float16", places.size, places.size),)

    def encode(self, values, places, seed, warm):
        return Encoded({"half": values.astype(np.float16)})

    def decode(self, parts, places):
        return parts["half"].astype(np.float32)


def raises(*_):
    raise SystemExit(3)


def through(**other):
    wire = Wire(Halves(**other), False, spec_of(MODEL))
    return wire.decode(wire.encode(MODEL, 3, None, {}).tensors)


def test_what_keeps_the_promise_comes_back():
    assert through()["w"].tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (raises, r"test_checked.py:\d+: raise SystemExit\(3\): SystemExit: 3"),
        (lambda _: None, "TypeError: 'NoneType' object is not iterable"),
        (lambda p: [Part("half", "float16", 0.5, p.size)], "'float' object cannot be interpreted"),
        (lambda p: [Part("half", "int7", p.size, p.size)], "part 'half' has the dtype 'int7', expected one of float16"),
        (lambda _: [Part("half", "float16", -5, -1)], "part 'half' has -5 to -1 elements, expected 0 or more"),
        (lambda _: [Part("half", "float16", 6, 5)], "part 'half' has 6 to 5 elements"),
        (lambda _: [Part("half", "float16", 0, 6, 7)], "part 'half' usually has 7 elements, expected 0 to 6"),
        (lambda p: [Part("a:b\x1b", "float16", p.size, p.size)], r"part 'a:b\\x1b' is no name of its own"),
        (lambda p: [Part("half", "float16", p.size, p.size)] * 2, "part 'half' is no name of its own"),
        (
            lambda p: [Part("half", "float16", 1, p.size), Part("rest", "int8", 1, 1)],
            "part 'half' has 1 to 6 elements, and only the last part may have any number",
        ),
    ],
)
def test_parts_that_cannot_travel_are_refused_with_the_reason(given, said):
    with pytest.raises(AppError, match=rf"the codec 'halves': parts\(\).*{said}"):
        through(parts=given)


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        (raises, TrainerError, r"raised: test_checked.py:\d+"),
        (lambda *_: None, AppError, r"returned NoneType, expected fedmq.Encoded\(parts\)"),
        (lambda *_: Encoded([1, 2]), AppError, "returned Encoded, expected"),
        (lambda *_: Encoded({"half": np.zeros(5, np.float16)}), AppError, "part half has 5 elements, expected 6 to 6"),
        (lambda *_: Encoded({"half": [[1], [2, 3]]}), AppError, "breaks the promise of its parts"),
        (lambda v, *_: Encoded({"half": v.astype(np.float16)}, {"residual": v}), AppError, "keeps 'residual'"),
        (lambda v, *_: Encoded({"half": v.astype(np.float16)}, {"a": "x"}), AppError, "keeps 'a' .*, a str"),
        (lambda v, *_: Encoded({"half": v.astype(np.float16)}, {"a": np.array(["x"])}), AppError, "keeps 'a'"),
    ],
)
def test_an_encoding_that_fails_or_is_something_else_is_told_with_its_codec(given, error, said):
    with pytest.raises(error, match=rf"the codec 'halves': encode\(\).*{said}"):
        through(encode=given)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (raises, "raised: test_checked.py"),
        (lambda *_: None, r"gave object\[\], expected float32\[6\]"),
        (lambda _, p: np.zeros(p.size), "gave float64"),
        (lambda _, p: np.zeros(p.size - 1, np.float32), r"gave float32\[5\]"),
    ],
)
def test_a_decoding_that_fails_is_told_with_its_codec_on_either_side(given, said):
    with pytest.raises(MalformedMessage, match=rf"the codec 'halves': decode\(\) {said}"):
        through(decode=given)
    with pytest.raises(MalformedMessage, match=r"the codec 'halves': decode\(\)"):
        Wire(Halves(decode=given), False, spec_of(MODEL)).encode(MODEL, 3, None, {}).residual  # noqa: B018


def test_a_codec_cannot_change_the_values_nor_the_parts_that_it_is_given():
    def encode(values, *_):
        values *= 0
        return Encoded({"half": values.astype(np.float16)})

    def decode(parts, _):
        parts["half"][:] = 0
        return parts["half"].astype(np.float32)

    with pytest.raises(TrainerError, match="read-only"):
        through(encode=encode)
    with pytest.raises(MalformedMessage, match="read-only"):
        through(decode=decode)
    assert MODEL["w"].tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("codec", [Int8(), TopK(0.5), PowerSgd(1)])
def test_what_a_memory_gives_to_the_next_encoding_stays_as_it_was(codec):
    model = Parameters({"w": np.arange(6, dtype=np.float32).reshape(2, 3)})
    wire = Wire(codec, False, spec_of(model))
    residual = np.ones(6, np.float32)
    first = wire.encode(model, 3, residual, {})
    wire.encode(model, 4, residual, first.warm)
    assert residual.tolist() == [1] * 6
    assert first.residual == pytest.approx(model["w"].reshape(-1) + residual - first.received["w"].reshape(-1))
