"""kill -9 of the coordinator and of its child around a distillation: nothing is lost, and the replay has the bits."""

import signal

import pytest

from fedmq.studies.engine import replay as engine_replay
from tests.chaos.harness import Federation, died_at
from tests.support.full import FULL, in_full

pytestmark = pytest.mark.broker

DISTIL = """

def distil(ensemble, start, seed):
    mean = sum(weight * parameters["w"].astype("float64") for parameters, weight in ensemble)
    noise = np.random.default_rng(seed).normal(size=start["w"].shape) / 100
    return {"w": (0.5 * start["w"] + 0.5 * mean + noise).astype("float32")}
"""
OURS = ("distil-asked", "distil-answered", "distilled-kept", "before-checkpoint", "after-checkpoint", "after-ledger")
"""Points that end the coordinator."""
CHILDS = ("distil-begun", "distil-made", "distil-written") if FULL else ("distil-made",)
VERSIONS = 8


class Distilling(Federation):
    """A federation whose coordinator distils. Its model does not follow from the updates alone."""

    def replayed(self, rows):
        return engine_replay.replay(self.run_dir).parameters

    def plain(self):
        """Return version -> why it is the plain mean, "" if it was distilled."""
        with self.ledger() as ledger:
            return ledger.distillations()


@pytest.fixture
def federation(tmp_path, rabbitmq_node, prefix):
    one = Distilling(tmp_path, rabbitmq_node.url, prefix, VERSIONS)
    settings = one.folder / "federation.toml"
    text = settings.read_text()
    assert 'name = "fedbuff"' in text
    settings.write_text(text.replace('name = "fedbuff"', 'name = "feddf"\nformer_versions = 2'))
    with (one.folder / "app.py").open("a") as app:
        app.write(DISTIL)
    yield one
    one.close()


def test_a_coordinator_killed_at_every_point_around_a_distillation_asks_again_and_loses_nothing(federation):
    """One run has six deaths. Each coordinator works a little before it dies."""
    participants = [federation.participant(name) for name in ("p0", "p1")]
    for point in OURS:
        one = federation.coordinator(fault=f"{point}:2")
        assert died_at(one, point), one.text[-3000:]
    with federation.ledger() as ledger:
        assert ledger.run().finished is None
    assert federation.coordinator().ended() == 0
    assert [one.ended() for one in participants] == [0, 0]
    federation.check(VERSIONS)
    assert federation.plain() == dict.fromkeys(range(1, VERSIONS + 1), "")


@pytest.mark.parametrize("point", CHILDS)
def test_a_child_that_is_killed_costs_one_version_its_distillation_and_the_ledger_says_so(federation, point):
    participants = [federation.participant(name) for name in ("p0", "p1")]
    coordinator = federation.coordinator(fault=f"{point}:3")
    assert coordinator.ended() == 0
    assert f"fault point {point}\n" in (federation.run_dir / "model" / "model.log").read_text()
    assert [one.ended() for one in participants] == [0, 0]
    federation.check(VERSIONS)
    died = [version for version, why in federation.plain().items() if why]
    assert died == [3, 6]  # each new child dies at its third
    assert all(f"ended with status {-signal.SIGKILL}" in federation.plain()[version] for version in died)
    assert "event=version_not_distilled version=3" in coordinator.text


@in_full("integration/coordinator/test_distilling.py has a takeover without processes")
def test_a_standby_takes_over_while_the_child_is_at_work(federation):
    (federation.folder / "hold").mkdir()
    with (federation.folder / "app.py").open("a") as app:
        app.write("\nDISTIL = distil\n\ndef distil(ensemble, start, seed):\n    import time\n")
        app.write("    while Path('hold/child').exists():\n        time.sleep(0.02)\n")
        app.write("    return DISTIL(ensemble, start, seed)\n")
    held = federation.folder / "hold" / "child"
    held.touch()
    participants = [federation.participant(name) for name in ("p0", "p1")]
    first = federation.coordinator()
    first.wait_for("event=distilling version=1")
    standby = federation.coordinator()
    standby.wait_for("event=standby ")
    first.send(signal.SIGKILL)
    assert first.ended() == -signal.SIGKILL
    standby.wait_for("event=distilling version=1")
    held.unlink()
    assert [one.ended() for one in (standby, *participants)] == [0, 0, 0]
    federation.check(VERSIONS)
    assert federation.plain() == dict.fromkeys(range(1, VERSIONS + 1), "")


@in_full("unit/coordinator/decisions/versions/test_distilling.py and unit/fedmq/app have time-outs and children")
def test_a_distillation_that_hangs_is_given_up_and_its_child_ended(federation):
    settings = federation.folder / "federation.toml"
    settings.write_text(
        settings.read_text().replace("former_versions = 2", "former_versions = 2\ndistil_timeout_s = 2")
    )
    with (federation.folder / "app.py").open("a") as app:
        app.write("\nDISTIL = distil\n\ndef distil(ensemble, start, seed):\n    import time\n")
        app.write("    while not Path('hung').exists():\n        Path('hung').touch()\n        time.sleep(1e6)\n")
        app.write("    return DISTIL(ensemble, start, seed)\n")
    participants = [federation.participant(name) for name in ("p0", "p1")]
    coordinator = federation.coordinator()
    assert [one.ended() for one in (coordinator, *participants)] == [0, 0, 0]
    assert (federation.folder / "hung").exists()
    federation.check(VERSIONS)
    found = federation.plain()
    assert found[1] == "there was no answer within distil_timeout_s = 2"
    assert found[VERSIONS] == ""
