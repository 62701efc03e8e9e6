"""A device that lies about its codec or its memory gets no update counted twice, and hurts nobody but itself."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedmq.broker_config.embedded.transport import EmbeddedBroker, EmbeddedTransport
from fedmq.broker_config.topology import Topology
from fedmq.coordinator.decisions.commands import Accept, Discard, IssueTask
from fedmq.coordinator.service.incoming import update_reader
from fedmq.coordinator.service.incoming.update_reader import Wires, decoded
from fedmq.coordinator.strategies import FedBuff
from fedmq.schemas.codecs.blocks import Int8
from fedmq.schemas.codecs.codec import Array, Encoded, Part, Places, Values
from fedmq.schemas.codecs.known import UplinkCodec
from fedmq.schemas.codecs.topk import TopK
from fedmq.schemas.errors import PeerError, WrongCodec
from fedmq.schemas.messages import Uplink
from fedmq.schemas.parameters import Parameters
from fedmq.schemas.tensors import spec_of
from tests.integration.chunks.federation import Federation, until
from tests.unit.coordinator.decisions.harness import Bench, of, only
from tests.unit.schemas.samples import UPDATE

FED_BACK = Uplink(codec="topk", error_feedback=True)
HAS_IT = {"codecs": ("topk",)}
MODEL = Parameters({"w": np.linspace(-1, 1, 300, dtype=np.float32)})


def bench(**settings: Any) -> Bench:
    return Bench(FedBuff(buffer_size=1), uplink=FED_BACK, **({"concurrency": 1} | settings))


def wires_of(codec: Any) -> Wires:
    spec = spec_of(MODEL)
    return Wires(UplinkCodec(Uplink(codec=codec.name), codec), lambda _version: spec)


@pytest.mark.parametrize("left", [None, "m1"], ids=["none", "the same"])
def test_an_update_that_leaves_no_new_mark_cannot_keep_its_memory_for_a_second_one(left: str | None) -> None:
    one = bench()
    first = only(IssueTask, one.hello("a", **HAS_IT))
    second = only(IssueTask, one.update(first, next_memory="m1"))
    refused = only(Discard, one.update(second, memory="m1", next_memory=left))
    assert refused.reason == "wrong_memory"
    assert "expected a new mark" in refused.detail


def test_a_mark_is_good_for_one_update_of_its_own_participant() -> None:
    one = bench(concurrency=2)
    one.update(only(IssueTask, one.hello("a", **HAS_IT)), next_memory="of-a")
    theirs = only(IssueTask, one.hello("b", **HAS_IT))
    again = only(IssueTask, one.update(theirs, next_memory="of-b"))
    stolen = only(Discard, one.update(again, memory="of-a", next_memory="new"))
    assert stolen.reason == "wrong_memory"


def test_who_says_it_has_the_codec_may_send_plain_and_who_says_it_has_none_may_send_coded() -> None:
    """Neither hurts: the coordinator decodes what an update says it is, and refuses any other codec than the run's."""
    wires = wires_of(TopK(0.1))
    coded = wires.of(0).encode(MODEL, 0, None, {}).tensors
    assert decoded(UPDATE.model_copy(update={"codec": "topk"}), coded, wires) is not None
    assert decoded(UPDATE, MODEL, wires) is MODEL
    for codec in ("int8", "none", "zstd"):
        with pytest.raises(WrongCodec):
            decoded(UPDATE.model_copy(update={"codec": codec}), coded, wires)
    with pytest.raises(WrongCodec):
        decoded(UPDATE.model_copy(update={"codec": "topk"}), coded, None)
    one = bench()
    task = only(IssueTask, one.hello("a"))
    assert not task.coded
    for old, new in ((None, "m1"), ("m1", "m2"), ("m2", "m3")):  # plain and coded ones in turn
        task = only(IssueTask, one.update(task, memory=old, next_memory=new))
        task = only(IssueTask, one.update(task))
    assert of(Accept, one.update(task, memory="m3", next_memory="m4"))


@pytest.mark.parametrize("codec", [TopK(0.1), Int8("nearest")], ids=["topk", "int8"])
@pytest.mark.parametrize("size", [3e38, np.inf, np.nan], ids=str)
def test_a_residual_that_has_no_bounds_is_refused_as_any_tensor_is(codec: Any, size: float) -> None:
    wires = wires_of(codec)
    parts = {n: a.copy() for n, a in wires.of(0).encode(MODEL, 0, None, {}).tensors.items()}
    large = "coded:value" if "coded:value" in parts else "coded:scale"
    parts[large][:] = size
    with pytest.raises(PeerError):
        decoded(UPDATE.model_copy(update={"codec": codec.name}), Parameters(parts), wires)


@dataclass(frozen=True)
class Own:
    """A codec of the user's own, whose decode does what it is told."""

    act: Any
    name = "own"

    def parts(self, places: Places) -> tuple[Part, ...]:
        return (Part("half", "float16", places.size, places.size),)

    def encode(self, values: Array, places: Places, seed: int, warm: Mapping[str, Array]) -> Encoded:
        return Encoded({"half": values.astype(np.float16)})

    def decode(self, parts: Mapping[str, Array], places: Places) -> Values:
        self.act()
        return parts["half"].astype(np.float32)


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Federation]:
    broker = EmbeddedBroker()
    one = Federation(tmp_path, Topology("p"), lambda name: EmbeddedTransport(broker, name))
    yield one
    one.close()


def small() -> Parameters:
    return Parameters({"000/w": np.zeros(40, np.float32), "001/b": np.zeros(3, np.float32)})


def run_with(federation: Federation, act: Any) -> Any:
    """Start a run whose coordinator decodes with a codec that does this, and a participant whose own works."""
    order = Uplink(codec="own")
    ended = federation.coordinator(1, 2, initial_parameters=small, uplink=UplinkCodec(order, Own(act)))
    federation.participant("a", own_codec=Own(lambda: None))
    return ended


def test_a_codec_that_raises_is_named_and_costs_the_update_alone(
    federation: Federation, caplog: pytest.LogCaptureFixture
) -> None:
    errors: list[BaseException] = [SystemExit("\n\x1b[2J"), MemoryError(), KeyError("q")]

    def act() -> None:
        if errors:
            raise errors.pop(0)

    assert run_with(federation, act).result(60).finished == "max_versions"
    assert errors == []
    for name in ("SystemExit", "MemoryError", "KeyError"):
        assert re.search(rf"the codec 'own': decode\(\) raised: test_coded_updates.py:.*: {name}", caplog.text)
    federation.check(1, 2)


def test_a_codec_that_hangs_is_named_while_it_does(
    federation: Federation, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(update_reader, "SLOW_S", 0.05)
    goes_on = threading.Event()
    ended = run_with(federation, lambda: goes_on.wait(60))
    until(lambda: "event=codec_hangs codec=own participant=a task=" in caplog.text)
    assert not ended.done()
    goes_on.set()
    assert ended.result(60).finished == "max_versions"
