"""Tasks in steps of a hidden state, from the core to devices with real spools: one state on all sides, bit for bit."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import numpy as np
import pytest

from fedmq.coordinator.decisions.commands import IssueTask
from fedmq.coordinator.decisions.events import Started
from fedmq.coordinator.decisions.records import Snapshot
from fedmq.coordinator.decisions.task_models import HiddenModel, RoundedModel
from fedmq.coordinator.settings import DownlinkSettings, StopSettings, UplinkSettings
from fedmq.coordinator.state import checkpoint
from fedmq.coordinator.strategies import FedBuff
from fedmq.participant.service.task_models import ModelDiffers, base_of, keep
from fedmq.participant.spool.spool import Spool
from fedmq.schemas.codec import decode, encode
from fedmq.schemas.codecs.hidden import applied
from fedmq.schemas.codecs.known import capabilities
from fedmq.schemas.errors import AppError, LimitExceeded, MalformedMessage, PeerError, SpecMismatch
from fedmq.schemas.messages import Downlink, HeldModel, Task, TrainingConfig, Uplink
from fedmq.schemas.parameters import Parameters
from fedmq.schemas.signing import tensors_digest
from tests.unit.coordinator.decisions.harness import Bench, Saved, of, only

HIDDEN = DownlinkSettings(codec="hidden")
TOPK = DownlinkSettings(codec="hidden", step_codec="topk", fraction=0.02)
EVERY = DownlinkSettings(codec="hidden", step_every=4)
EVERY_SECOND = DownlinkSettings(codec="hidden", step_every=2)
MODEL = Parameters(
    {
        "000/w": np.linspace(-1, 1, 700, dtype=np.float32).reshape(70, 10),
        "001/half": np.linspace(0, 1, 300).astype(np.float16),
        "002/mean": np.ones(5, np.float32),
        "003/step": np.arange(2),
    },
    {"002/mean"},
)


def delta(seed: int) -> Parameters:
    rng = np.random.default_rng(seed)
    averaged = {n: a for n, a in MODEL.items() if n != "003/step"}
    return Parameters({n: rng.normal(0, 0.1, a.shape).astype(a.dtype) for n, a in averaged.items()}, {"002/mean"})


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Return a folder in memory, if there is one: a file system may sync at each rename."""
    place = Path("/dev/shm")
    if not os.access(place, os.W_OK):
        yield tmp_path
        return
    with TemporaryDirectory(dir=place) as made:
        yield Path(made)


class Device:
    """A participant's part: its spool, its hello, and what it makes of a task."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder, self.session = name, folder, 0
        self.task: IssueTask | None = None
        self.hidden: Parameters | None = None
        self._open()

    def _open(self) -> None:
        self.spool = Spool(self.folder, self.name)
        found = self.spool.read_model()
        self.model = None if found is None else found.held

    def say_hello(self, bench: Bench) -> list:
        held = () if self.task is None else (self.task.task_id,)
        return bench.hello(
            self.name, session=f"s{self.session}", holds=held, codecs=capabilities(), model=self.model,
            accepting=self.task is None,
        )  # fmt: skip

    def restart(self, bench: Bench) -> list:
        self.spool.close()
        self._open()
        self.session += 1
        return self.say_hello(bench)

    def take(self, order: IssueTask, tensors: Parameters) -> int:
        """Take a task over the wire, and return the bytes of its message."""
        task = Task(
            task_id=order.task_id, run_id="run", participant_id=self.name, base_version=order.base_version,
            reply="delta", training=order.training, lease_s=order.lease_s, downlink=order.downlink,
        )  # fmt: skip
        body = encode(task, tensors)
        decoded = decode(body)
        assert decoded.message == task
        assert decoded.parameters is not None
        self.hidden = base_of(decoded.message, decoded.parameters, self.spool)
        self.model = keep(decoded.message, self.hidden, self.spool)
        self.task = order
        return len(body)


def from_disk(saved: Saved, folder: Path) -> Saved:
    """Return what a standby finds of a coordinator's commit: the checkpoint goes through its file."""
    path = folder / "checkpoint.safetensors"
    digest = checkpoint.write(path, saved.snapshot.arrays, saved.snapshot.scalars)
    found = checkpoint.read(path, digest)
    return replace(saved, snapshot=Snapshot(found.arrays, found.meta))


def same(a: Parameters, b: Parameters) -> bool:
    return a.non_trainable == b.non_trainable and [(n, x.dtype, x.tobytes()) for n, x in a.items()] == [
        (n, x.dtype, x.tobytes()) for n, x in b.items()
    ]


@pytest.mark.parametrize(
    ("settings", "most_steps"), [(HIDDEN, 3), (TOPK, 25), (EVERY, 12)], ids=["int8", "topk", "int8, every 4 versions"]
)
def test_the_hidden_state_is_the_same_on_all_sides_over_1000_versions(folder, monkeypatch, settings, most_steps):
    """`most_steps`: the versions of the longest way that steps lead a participant."""
    monkeypatch.setattr(os, "fsync", lambda _: None)  # nobody pulls the plug here
    versions = 1000 if settings is HIDDEN else 300
    rng = np.random.default_rng(3)
    bench = Bench(FedBuff(buffer_size=2), model=MODEL, downlink=settings, concurrency=4,
                  stop=StopSettings(max_versions=versions), lease_s=1e9)  # fmt: skip
    devices = {name: Device(name, folder) for name in "abcd"}
    seen = {"whole": 0, "steps": 0, "differs": 0, "returns": 0, "restarts": 0, "takeovers": 0, "lost disks": 0}
    longest = 0

    def carry_out(commands: list) -> None:
        nonlocal longest
        for issued in of(IssueTask, commands):
            order = issued
            device = devices[order.participant_id]
            assert order.downlink is not None
            hidden, tensors = bench.core.task_tensors, bench.core.tensors_of(order)
            try:
                device.take(order, tensors)
            except ModelDiffers:
                seen["differs"] += 1
                device.model = None
                order = only(IssueTask, bench.decline(order, "model_differs", retry_after_s=0.0))
                assert order.downlink is not None
                assert order.downlink.held is None
                device.take(order, bench.core.tensors_of(order))
            assert device.hidden is not None
            assert same(device.hidden, hidden)
            newest = bench.core.version // settings.step_every * settings.step_every
            assert device.model == HeldModel(version=newest, digest=tensors_digest(hidden).hex())
            held = order.downlink.held
            seen["whole" if held is None else "steps"] += 1
            longest = max(longest, 0 if held is None else newest - held)

    for device in devices.values():
        carry_out(device.say_hello(bench))
    away_until = 0
    while bench.core.finished is None:
        number = bench.core.version
        if number % 200 == 100 and number >= away_until:
            away_until = number + 40  # longer than the ring; what it brings then is stale, and counts
        names = [n for n, d in devices.items() if d.task is not None and not (n == "d" and number < away_until)]
        device = devices[names[rng.integers(len(names))]]
        order, device.task = device.task, None
        assert order is not None
        seen["returns"] += bench.core.version - order.base_version > most_steps
        what = rng.random()
        if what < 0.04:  # killed, or deposed, with an update that is in no commit: the update comes again
            takes_over = what < 0.02
            seen["takeovers" if takes_over else "restarts"] += 1
            saved = bench.save()
            bench.update(order, tensors=delta(order.seq))
            bench.restore(from_disk(saved, folder) if takes_over else saved)
            carry_out(bench.step(Started()))
        carry_out(bench.update(order, tensors=delta(order.seq)))
        if 0.04 < what < 0.06:  # a device loses its disk, or a bit of it, with or without a word about it
            other = devices["abcd"[rng.integers(4)]]
            path = other.folder / other.name / "model.fedmq"
            if path.exists():
                seen["lost disks"] += 1
                path.write_bytes(path.read_bytes()[:-1]) if what < 0.05 else path.unlink()
            if what < 0.055:
                carry_out(other.restart(bench))
        elif 0.06 < what < 0.08:
            carry_out(devices["abcd"[rng.integers(4)]].restart(bench))
    assert bench.core.version == versions
    assert longest > 10 if settings is TOPK else longest == most_steps
    assert seen.pop("returns") >= versions // 300, seen
    assert min(seen.values()) >= 3, seen
    error = np.abs(bench.core.parameters["000/w"] - bench.core.task_tensors["000/w"]).max()
    assert 0 < error < 1  # it follows the model
    for device in devices.values():
        device.spool.close()


@pytest.mark.parametrize(("settings", "steps"), [(HIDDEN, (4, 5, 6)), (EVERY_SECOND, (2, 4, 6))], ids=["1", "2"])
def test_a_second_core_of_the_same_updates_has_the_same_hidden_states_and_a_restart_changes_no_bit(settings, steps):
    benches = [Bench(model=MODEL, downlink=settings) for _ in range(2)]
    for bench in benches:
        tasks = of(IssueTask, bench.hello("a", "b", codecs=capabilities()))
        for number in range(12):
            (task,) = of(IssueTask, bench.update(tasks.pop(0), tensors=delta(number)))
            tasks.append(task)
            if bench is benches[1] and number % 3 == 2:
                bench.restart()
    first, second = (bench.core.snapshot() for bench in benches)
    assert first.scalars["hidden"] == second.scalars["hidden"]
    assert list(first.arrays) == list(second.arrays)
    assert all(a.tobytes() == second.arrays[name].tobytes() for name, a in first.arrays.items())
    assert [name for name in first.arrays if name.startswith("step/")] == [
        f"step/{version}/{part}" for version in steps for part in ("scale", "q")
    ]


def test_the_golden_steps_of_the_spec_are_the_model_s_own() -> None:
    x = Parameters({"w": np.zeros(4, np.float32)})
    made = HiddenModel(HIDDEN.step, x)
    for delta_, q, scale in (
        ([0.5, -0.25, 0.125, 0.01], [127, -64, 32, 3], 0.003937007859),
        ([0.1, 0.1, -0.3, 0.02], [42, 43, -127, 8], 0.002369954716),
    ):
        before = made.base
        x = Parameters({"w": x["w"] + np.float32(delta_)})
        made.advance(x)
        step = made._steps[-1]
        assert step.parts["q"].tolist() == q
        assert step.parts["scale"][0] == pytest.approx(scale, rel=1e-9, abs=0)
        assert made.base["w"].tolist() == (before["w"] + np.float32(q) * step.parts["scale"][0]).tolist()


def test_steps_are_kept_while_they_are_smaller_than_the_model_and_at_most_32():
    rng = np.random.default_rng(0)
    for settings, kept in ((HIDDEN, 3), (DownlinkSettings(codec="hidden", step_codec="topk", fraction=0.001), 32)):
        x = np.zeros(4000, np.float32)
        made = HiddenModel(settings.step, Parameters({"w": x}))
        for _ in range(40):
            x = x + rng.normal(size=4000).astype(np.float32)
            made.advance(Parameters({"w": x}))
        digest = made.scalars()["hidden"]["digests"][0]
        for version, digest_, found in ((40 - kept, digest, 40 - kept), (39 - kept, digest, None), (39, digest, None)):
            assert made.version_of(HeldModel(version=version, digest=digest_)) == found
        for held, order_held in ((40, 40), (40 - kept, 40 - kept), (39 - kept, None), (41, None), (None, None)):
            order = made.order(capabilities(), held)
            assert order is not None
            assert order.held == order_held
        assert made.order((), 40) is None
        assert len(made.tensors(made.order(capabilities(), 40))) == 0


def test_with_a_step_every_third_version_tasks_between_train_from_the_step_before_and_rare_ones_get_few_steps():
    rng = np.random.default_rng(0)
    x = np.zeros(4000, np.float32)
    made = HiddenModel(HIDDEN.step, Parameters({"w": x}), 3)
    bases = [made.base]
    for version in range(1, 12):
        x = x + rng.normal(size=4000).astype(np.float32)
        made.advance(Parameters({"w": x}))
        bases.append(made.base)
        order = made.order(capabilities(), version)
        assert order is not None
        assert order.version == (None if version % 3 == 0 else version // 3 * 3)
        assert order.held == version // 3 * 3
        assert len(made.tensors(order)) == 0
    begun = [next(v for v, other in enumerate(bases) if other is base) for base in bases]
    assert begun == [0, 0, 0, 3, 3, 3, 6, 6, 6, 9, 9, 9]
    for held, begins, steps in ((8, 6, [9]), (7, 6, [9]), (3, 3, [6, 9]), (2, 0, [3, 6, 9])):
        order = made.order(capabilities(), held)
        assert order is not None
        assert order.held == begins
        tensors = made.tensors(order)
        assert list(tensors) == [f"step:{version}:{part}" for version in steps for part in ("scale", "q")]
        assert same(applied(order.step, bases[held], tensors, begins, 9), made.base)
    with pytest.raises(SpecMismatch, match=r"from the hidden state of version 6 to '9', expected .* up to 12"):
        applied(HIDDEN.step, bases[6], made.tensors(made.order(capabilities(), 6)), 6, 12)


def test_a_difference_beyond_float32_begins_anew_with_the_model_itself():
    made = HiddenModel(HIDDEN.step, Parameters({"w": np.float32([-3e38, 0])}))
    made.advance(Parameters({"w": np.float32([3e38, 1])}))
    assert made.base["w"].tolist() == np.float32([3e38, 1]).tolist()
    assert made.order(capabilities(), 0).held is None  # type: ignore[union-attr]


def test_a_participant_without_the_capability_gets_what_the_others_train_from_whole_and_plain():
    for settings in (HIDDEN, DownlinkSettings(codec="bf16")):
        model = Parameters({"w": np.linspace(0, 1, 50, dtype=np.float32)})
        bench = Bench(FedBuff(buffer_size=1), model=model, downlink=settings)
        task = of(IssueTask, bench.hello("a"))[0]
        moved = Parameters({"w": np.full(50, 1 / 3, np.float32)})
        (task,) = of(IssueTask, bench.update(task, tensors=moved))
        assert task.downlink is None
        assert bench.core.tensors_of(task) is bench.core.task_tensors
        assert not np.array_equal(bench.core.task_tensors["w"], bench.core.parameters["w"])


def test_a_model_in_bf16_is_rounded_once_and_trained_from_as_float32(tmp_path):
    model = Parameters({"w": np.float32([1 / 3, 1, -2.7]), "mean": np.float32([1 / 3]), "n": np.arange(2)}, {"mean"})
    made = RoundedModel(model)
    order = made.order(capabilities(), None)
    assert order == Downlink(codec="bf16", digest=tensors_digest(made.base).hex())
    assert made.base["w"].tolist() == [0.333984375, 1, -2.703125]
    assert made.base["mean"].tolist() == model["mean"].tolist()
    assert [a.dtype.name for a in made.tensors(order).values()] == ["bfloat16", "float32", "int64"]
    device = Device("a", tmp_path)
    bench = Bench(model=model, downlink=DownlinkSettings(codec="bf16"))
    order = only(IssueTask, device.say_hello(bench))
    device.take(order, bench.core.tensors_of(order))
    assert device.hidden is not None
    assert same(device.hidden, made.base)
    assert device.model is None
    with pytest.raises(ValueError, match="read-only"):
        device.hidden["w"][0] = 1
    device.spool.close()


def test_a_model_that_bf16_does_not_fit_is_refused_or_sent_as_it_is():
    with pytest.raises(AppError, match=r"is for models of float32, and the tensor 'w' is float64"):
        Bench(model=Parameters({"w": np.zeros(2)}), downlink=DownlinkSettings(codec="bf16"))
    made = RoundedModel(Parameters({"w": np.float32([3.4e38])}))
    assert made.order(capabilities(), None) is None
    assert made.tensors(None)["w"].tolist() == [np.float32(3.4e38)]


def test_a_name_that_begins_as_a_step_does_is_refused():
    with pytest.raises(AppError, match="'step:w' begins as a step does"):
        Bench(model=Parameters({"step:w": np.zeros(2, np.float32)}), downlink=HIDDEN)


@pytest.mark.parametrize(
    ("reply", "settings", "place"),
    [
        ("delta", TOPK, None),
        ("parameters", HIDDEN, None),
        ("change", DownlinkSettings(codec="hidden", step_codec="int4"), None),
        ("parameters", TOPK, "downlink.step_codec"),
        ("parameters", DownlinkSettings(codec="bf16"), "downlink.codec"),
        ("scaffold", HIDDEN, "downlink.codec"),
        ("scaffold", DownlinkSettings(), None),
    ],
)
def test_what_does_not_go_with_a_strategy_is_refused_with_its_key(reply, settings, place):
    assert [found for found, _ in settings.unmet(SimpleNamespace(reply=reply))] == ([] if place is None else [place])


def test_keys_that_do_not_belong_together_are_refused():
    with pytest.raises(ValueError, match="step_codec belongs to codec = 'hidden', and codec is 'bf16': take it out"):
        DownlinkSettings(codec="bf16", step_codec="int8")
    with pytest.raises(ValueError, match="step_codec is not set: take it out"):
        DownlinkSettings(codec="hidden", fraction=0.1)
    with pytest.raises(ValueError, match=r"codec is 'int 8', allowed: none, .*, custom; did you mean int8"):
        UplinkSettings(codec="int 8")


def steps_of_two_versions() -> tuple[Parameters, Parameters, Downlink]:
    """Return a hidden state, and the tensors and the order of a task with two steps from it."""
    x = {"w": np.linspace(0, 1, 600, dtype=np.float32), "n": np.arange(2)}
    made = HiddenModel(HIDDEN.step, Parameters(x))
    first = made.base
    for number in (1, 2):
        made.advance(Parameters({"w": x["w"] + np.float32(number), "n": x["n"] + number}))
    order = made.order(capabilities(), 0)
    assert order is not None
    assert same(applied(order.step, first, made.tensors(order), 0, 2), made.base)
    return first, made.tensors(order), order


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda t: {n: a for n, a in t.items() if n != "step:1:q"}, SpecMismatch),
        (lambda t: {**t, "step:3:q": t["step:1:q"]}, SpecMismatch),
        (lambda t: dict(reversed(t.items())), SpecMismatch),
        (lambda t: {**t, "step:1:q": t["step:1:q"][:-1]}, LimitExceeded),
        (lambda t: {**t, "step:2:q": t["step:2:q"].astype(np.int16)}, SpecMismatch),
        (lambda t: {**t, "step:2:scale": -t["step:2:scale"]}, MalformedMessage),
        (lambda t: {**t, "n": t["n"][:1]}, SpecMismatch),
        (lambda t: {**t, "n": t["n"].astype(np.int32)}, SpecMismatch),
    ],
)
def test_steps_that_do_not_fit_the_state_are_a_typed_error(change, error):
    first, tensors, order = steps_of_two_versions()
    with pytest.raises(error):
        applied(order.step, first, Parameters(change(dict(tensors))), 0, 2)


@pytest.mark.parametrize(("held", "version"), [(2, 1), (0, 33), (1, 2), (0, 1)])
def test_steps_between_other_versions_are_a_typed_error(held, version):
    first, tensors, order = steps_of_two_versions()
    with pytest.raises(PeerError):
        applied(order.step, first, tensors, held, version)


@pytest.mark.parametrize("step", [None, Uplink(codec="powersgd"), Uplink(codec="mine")])
def test_steps_in_another_codec_are_a_typed_error(step):
    first, tensors, _ = steps_of_two_versions()
    with pytest.raises(MalformedMessage, match="expected one of int8, int4, topk"):
        applied(step, first, tensors, 0, 2)


def test_values_that_nobody_sent_are_found_by_the_digest(tmp_path):
    first, tensors, order = steps_of_two_versions()
    task = Task(
        task_id="t", run_id="run", participant_id="a", base_version=2, reply="delta", training=TrainingConfig(),
        lease_s=1.0, downlink=order,
    )  # fmt: skip
    spool = Spool(tmp_path, "a")
    with pytest.raises(ModelDiffers, match="has steps from the hidden state of version 0, and here is none"):
        base_of(task, tensors, spool)
    digest = tensors_digest(first).hex()
    keep(task.model_copy(update={"base_version": 0, "downlink": Downlink(codec="hidden", digest=digest)}), first, spool)
    assert tensors_digest(base_of(task, tensors, spool)).hex() == order.digest
    flipped = tensors["step:1:q"].copy()
    flipped[7] ^= 1
    with pytest.raises(ModelDiffers, match="what was made of version 2 has another digest than the task names"):
        base_of(task, Parameters({**tensors, "step:1:q": flipped}), spool)
    with pytest.raises(ModelDiffers, match="the task's steps do not fit the hidden state here"):
        base_of(task, Parameters({}), spool)
    assert spool.read_model().held == HeldModel(version=0, digest=digest)  # type: ignore[union-attr]
    spool.close()


def spoilt(arrays: dict, scalars: dict, what: str) -> None:
    """Change a snapshot as somebody does who writes into the run's folder."""
    hidden = scalars["hidden"]
    match what:
        case "no digest":
            hidden["digests"] = []
        case "digests that are none":
            hidden["digests"] = ["x"] * len(hidden["digests"])
        case "digests of numbers":
            hidden["digests"] = [1] * len(hidden["digests"])
        case "another newest digest":
            hidden["digests"][-1] = "0" * 64
        case "a version that is a text":
            hidden["version"] = "2"
        case "a version below its steps":
            hidden["version"] = 1
        case "a codec that makes no steps":
            hidden["step"]["codec"] = "powersgd"
        case "another shape":
            arrays["hidden/000/w"] = np.zeros(3, np.float32)
        case "another dtype":
            arrays["hidden/000/w"] = np.zeros((70, 10))
        case "other values":
            arrays["hidden/000/w"] = np.full((70, 10), np.nan, np.float32)
        case "a part that is too short":
            arrays["step/2/q"] = arrays["step/2/q"][:-1]
        case "a part of another dtype":
            arrays["step/2/q"] = arrays["step/2/q"].astype(np.float64)
        case "a part that is not there":
            del arrays["step/1/scale"]


@pytest.mark.parametrize(
    "what",
    ["no digest", "digests that are none", "digests of numbers", "another newest digest", "a version that is a text",
     "a version below its steps", "a codec that makes no steps", "another shape", "another dtype", "other values",
     "a part that is too short", "a part of another dtype", "a part that is not there"],
)  # fmt: skip
def test_a_snapshot_with_another_hidden_state_is_refused_at_the_start_and_not_in_the_loop(what) -> None:
    model = HiddenModel(Uplink(codec="int8", rounding="nearest"), MODEL)
    parameters = MODEL
    for seed in range(2):
        parameters = parameters.replace({n: a + delta(seed).get(n, 0) for n, a in parameters.items()})
        model.advance(parameters)
    arrays, scalars = dict(model.arrays()), model.scalars()
    assert HiddenModel.restore(Snapshot(arrays, scalars), parameters).order({"downlink"}, 0) == model.order(
        {"downlink"}, 0
    )
    spoilt(arrays, scalars, what)
    with pytest.raises((KeyError, TypeError, ValueError, PeerError)):
        HiddenModel.restore(Snapshot(arrays, scalars), parameters)
