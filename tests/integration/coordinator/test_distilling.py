"""A strategy that distils, in the real service: what waits for the answer, what a crash leaves, what is replayed."""

import threading
from collections import deque

import numpy as np
import pytest

from fedmq.coordinator.audit import audit
from fedmq.coordinator.decisions.events import DistilFailed, Distilled
from fedmq.coordinator.service import loop
from fedmq.coordinator.service.commits import commit, effects
from fedmq.coordinator.settings import ArchiveSettings, StopSettings
from fedmq.coordinator.state.run_folder import RunFolder
from fedmq.coordinator.strategies import FedDf
from fedmq.coordinator.strategies.math.staleness_weights import Polynomial
from fedmq.schemas.parameters import Parameters
from fedmq.studies.engine.replay import replay
from tests.integration.coordinator.federation import DEADLINE_S, same_bits
from tests.integration.coordinator.test_crashes import Crashed
from tests.integration.coordinator.test_damaged_checkpoints import flip
from tests.support.asking import ask_until

STRATEGY = FedDf(buffer_size=3, staleness=Polynomial(0.5), former_versions=2)


def made_of(order, claim=None):
    """Return a version that depends on every model, every weight and the seed."""
    ensemble = order.ensemble
    mean = sum(w * m["000/w"].astype(np.float64) for m, w in zip(ensemble.models, ensemble.weights, strict=True))
    noise = np.random.default_rng(order.seed).normal(size=5) / 100
    made = 0.5 * ensemble.start["000/w"] + 0.5 * mean + noise
    return Distilled(order.version, Parameters({"000/w": made.astype(np.float32)}) if claim is None else claim)


class Fake:
    """A distiller that answers on a thread of its own, or only when `release` is called."""

    def __init__(self, answer=made_of, hold=False):
        self.orders, self.given_up = [], 0
        self._answer, self._hold = answer, hold
        self._waiting = deque()
        self.changed = threading.Condition()

    def submit(self, order, on_result, part=None):
        assert part is None
        with self.changed:
            self.orders.append(order)
            self._waiting.append((order, on_result))
            self.changed.notify_all()
        if not self._hold:
            threading.Thread(target=self.release).start()

    def give_up(self):
        self.given_up += 1

    def wait_for(self, count):
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.orders) >= count, DEADLINE_S)

    def release(self):
        order, on_result = self._waiting.popleft()
        on_result(self._answer(order))


@pytest.fixture
def federation(federation):
    federation.strategy = STRATEGY
    federation.archive = ArchiveSettings(max_bytes=2**30)
    return federation


def join(federation, count=3):
    return [federation.join(f"p{i}") for i in range(count)]


def check(federation, versions):
    """Check that the ledger is whole and that both replays give the final model, bit for bit; return its versions."""
    checks = audit.verify(RunFolder(federation.run_dir))
    assert [one for one in checks if not one.holds or one.left_out] == []
    assert any("bit for bit" in one.name for one in checks)
    with federation.ledger() as ledger:
        rows, points = ledger.updates(), ledger.versions()
    assert len({row.update_id for row in rows}) == len(rows)
    assert [point.version for point in points] == list(range(1, versions + 1))
    assert same_bits(federation.final(), replay(federation.run_dir).parameters)
    return points


def test_versions_are_the_answers_and_both_replays_give_their_bits(federation):
    join(federation)
    distiller = Fake()
    assert federation.run(distiller=distiller).version == 5
    assert [order.version for order in distiller.orders] == [1, 2, 3, 4, 5]
    assert all(len(order.ensemble.models) == 3 for order in distiller.orders)
    assert [point.plain for point in check(federation, 5)] == [""] * 5
    assert not same_bits(federation.final(), federation.replayed())  # which is FedBuff's


def test_without_a_distiller_the_run_is_fedbuffs_and_says_so(federation, caplog):
    join(federation)
    assert federation.run().version == 5
    points = check(federation, 5)
    assert {point.plain for point in points} == {
        "the app has no distil(ensemble, start, seed), which the strategy asks for"
    }
    assert same_bits(federation.final(), federation.replayed())
    assert "event=version_not_distilled version=1" in caplog.text


def test_a_claim_that_is_no_version_never_ends_the_run(federation):
    wrong = [
        Parameters({"000/w": np.full(5, np.inf, np.float32)}),
        Parameters({"000/w": np.zeros((5, 5), np.float32)}),
        Parameters({"000/w": np.full(5, 2e15, np.float32)}),
        Parameters({"other": np.zeros(5, np.float32)}),
    ]
    claims = dict(enumerate(wrong, start=1))
    join(federation)
    federation.run(distiller=Fake(lambda order: made_of(order, claims.get(order.version))))
    points = check(federation, 5)
    assert all(point.plain for point in points[:4])
    assert points[4].plain == ""


def test_updates_that_come_meanwhile_wait_and_are_counted_once_afterwards(federation):
    federation.concurrency = 6
    federation.stop = StopSettings(max_versions=2)
    participants = join(federation, 6)
    distiller = Fake(hold=True)
    active = federation.start(federation.service(distiller=distiller))
    distiller.wait_for(1)
    for p in participants:
        p.wait_until(lambda p=p: len(p.tasks) >= 1)
    with federation.ledger() as ledger:
        assert ledger.accepted() <= 3
    distiller.release()
    distiller.wait_for(2)
    distiller.release()
    assert active.result(DEADLINE_S).version == 2
    points = check(federation, 2)
    with federation.ledger() as ledger:
        rows = ledger.updates()
    # those that waited met the version that was made meanwhile
    waited = [row.staleness for row in rows if row.version == 2 and row.base_version == 0]
    assert waited == [1] * len(waited) != []
    assert [point.plain for point in points] == ["", ""]


def test_a_coordinator_that_leaves_while_the_child_is_at_work_asks_again_with_the_same_seed(federation):
    participants = join(federation)
    held = Fake(hold=True)
    first = federation.service(distiller=held)
    active = federation.start(first)
    held.wait_for(1)
    ask_until(lambda: sum(len(p.receipts) for p in participants) == 3, within_s=DEADLINE_S, what="three receipts")
    first.stop()
    active.result(DEADLINE_S)
    assert held.given_up >= 1
    with federation.ledger() as ledger:
        assert ledger.accepted() == 3
        assert ledger.version() == 0
    distiller = Fake()
    assert federation.run(distiller=distiller).version == 5
    again = distiller.orders[0]
    assert (again.version, again.seed) == (held.orders[0].version, held.orders[0].seed)
    assert [m["000/w"].tobytes() for m in again.ensemble.models] == [
        m["000/w"].tobytes() for m in held.orders[0].ensemble.models
    ]
    check(federation, 5)


POINTS = (
    "distil-asked", "distil-answered", "distilled-kept", "before-checkpoint", "after-checkpoint", "before-ledger",
    "after-ledger",
)  # fmt: skip


@pytest.mark.parametrize("nth", [1, 3])
@pytest.mark.parametrize("point", POINTS)
def test_a_crash_anywhere_around_a_distillation_loses_nothing_and_is_replayed(federation, monkeypatch, point, nth):
    happened, passes = threading.Event(), [0]

    def fault(name):
        if name == point and not happened.is_set():
            passes[0] += 1
            if passes[0] == nth:
                happened.set()
                raise Crashed(name)

    for module in (commit, effects, loop):
        monkeypatch.setattr(module, "fault", fault)
    join(federation)
    with pytest.raises(Crashed, match=point):
        federation.run(distiller=Fake())
    assert happened.is_set()
    assert federation.run(distiller=Fake()).version == 5
    assert [version.plain for version in check(federation, 5)] == [""] * 5


def test_a_standby_that_takes_over_meanwhile_asks_again_and_the_late_answer_changes_nothing(federation):
    join(federation)
    held, own = Fake(hold=True), Fake()
    one = federation.service(distiller=held)
    active = federation.start(one)
    held.wait_for(1)
    standby = federation.start(federation.service(distiller=own))
    one.stop()
    active.result(DEADLINE_S)
    held.release()  # to nobody
    assert standby.result(DEADLINE_S).version == 5
    assert own.orders[0].seed == held.orders[0].seed
    assert [point.plain for point in check(federation, 5)] == [""] * 5


def test_a_child_that_never_answers_costs_the_timeout_and_no_more(federation):
    federation.strategy = FedDf(buffer_size=3, distil_timeout_s=0.2, former_versions=2)
    federation.stop = StopSettings(max_versions=2)
    join(federation)
    distiller = Fake(hold=True)
    assert federation.run(distiller=distiller).version == 2
    assert {point.plain for point in check(federation, 2)} == {"there was no answer within distil_timeout_s = 0.2"}
    assert distiller.given_up >= 2
    assert same_bits(federation.final(), federation.replayed())


def test_a_damaged_checkpoint_is_made_again_from_the_archive_with_the_distilled_versions(federation, caplog):
    federation.stop = StopSettings(max_versions=6)
    join(federation)
    sometimes = Fake(lambda order: DistilFailed(2, "no") if order.version == 2 else made_of(order))
    service = federation.service(distiller=sometimes)
    active = federation.start(service)
    sometimes.wait_for(5)
    service.stop()
    active.result(DEADLINE_S)
    with federation.ledger() as ledger:
        name = ledger.checkpoints()[0].file
        assert ledger.version() >= 4
    for folder in ("checkpoints", "copies"):
        flip(federation.run_dir / folder / name)
    assert federation.run(distiller=Fake()).version == 6
    assert "event=checkpoint_rebuilt" in caplog.text
    assert [bool(point.plain) for point in check(federation, 6)] == [False, True, False, False, False, False]


def test_a_version_whose_tensors_are_gone_or_altered_is_told_by_verify(federation):
    join(federation)
    federation.run(distiller=Fake())
    with federation.ledger() as ledger:
        place = ledger.archived_versions()[3]
    path = federation.run_dir / "archive" / place.file
    data = bytearray(path.read_bytes())
    data[place.offset + place.num_bytes - 1] ^= 1
    path.write_bytes(data)
    wrong = [text for one in audit.verify(RunFolder(federation.run_dir)) for text in one.wrong]
    assert any("the distilled version 3 is damaged in the archive" in text for text in wrong)
