"""Features of the model's way down and of its versions, two or more at a time, with kill -9 and a standby.

Tasks refer to models in a stream ([downlink] reference), tensors join the model ([training] unfreeze), and versions are
distilled (strategy feddf). chaos/test_features.py has each feature with all faults.
"""

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.chaos.harness import Federation, died_at
from tests.chaos.test_distilling import DISTIL
from tests.support.features import plain_app
from tests.support.full import in_full

pytestmark = [pytest.mark.broker, pytest.mark.timeout(300)]

SMALL, LARGE = 4_000, 30_000
"""Values of the tensor that moves, and of the one that is frozen at first."""
VERSIONS, UNFROZEN = 8, 4
REFERENCES = {
    "FEDMQ_BROKER__CHUNK_BYTES": "16384",
    "FEDMQ_DOWNLINK__REFERENCE_BYTES": "4096",
    "FEDMQ_RUN__CONCURRENCY": "4",
}
FEDBUFF = 'name = "fedbuff"\nbuffer_size = 4'
FEDDF = 'name = "feddf"\nbuffer_size = 4\nformer_versions = 2'
"""Four tasks of a version are what makes them refer to a model."""
WHOLE = """
def distil(ensemble, start, seed):
    base = np.linspace(0, 1, FROZEN, dtype="float32")
    for parameters in (start, *(model for model, _ in ensemble)):
        assert parameters["base"].tobytes() == base.tobytes() and int(parameters["steps"]) == 3
    return DISTIL(ensemble, start, seed)
"""
UPLINKS = {"plain": "", "int8": 'codec = "int8"', "topk": 'codec = "topk"\nfraction = 0.1\nvalues = "int8"'}
DOWNLINKS = {"plain": "", "bf16": 'codec = "bf16"', "hidden": 'codec = "hidden"'}
UNFREEZINGS = [(up, down) for up in UPLINKS for down in DOWNLINKS]
DISTILLINGS = [(up, down) for up in UPLINKS for down in ("plain", "bf16")]


@pytest.fixture
def make(tmp_path, rabbitmq_node, prefix):
    made = []

    def of(**given):
        made.append(Federation(tmp_path, rabbitmq_node.url, prefix, VERSIONS, SMALL, **given))
        made[-1].environ = REFERENCES
        return made[-1]

    yield of
    for one in made:
        one.close()


def check(federation, least_tasks):
    """Check the promises, and that so many tasks at least referred to a model that was sent no more often than that.

    A killed coordinator publishes again, so with few tasks by reference each may have had a publication of its own.
    """
    federation.check(VERSIONS)
    with federation.ledger() as ledger:
        models = ledger.bytes_of_models()
    assert models.tasks >= least_tasks
    assert 0 < models.sent_bytes <= models.read_bytes
    verified = federation.command("verify", "runs/r1")
    assert verified.ended() == 0, verified.text


@in_full("front/test_unfreezing.py has kills around an unfreezing, and test_references.py around references")
@pytest.mark.parametrize(("up", "down"), UNFREEZINGS)
def test_a_run_unfreezes_every_tensor_by_reference_through_kills_and_a_late_participant(make, up, down):
    tables = f'[downlink]\n{DOWNLINKS[down]}\n[training]\nunfreeze = [{{ version = {UNFROZEN}, tensors = ["base"] }}]'
    federation = make(frozen=LARGE, uplink=UPLINKS[up], strategy=FEDBUFF, more=tables)
    people = [federation.participant(name) for name in ("p0", "p1")]
    first = federation.coordinator()
    first.wait_for("event=version_made version=2 ")
    first.kill()
    second = federation.coordinator()
    second.wait_for(f"event=tensors_unfrozen version={UNFROZEN} ")
    second.kill()
    people.append(federation.participant("late"))
    last = federation.coordinator()
    assert last.ended() == 0, last.text
    assert [one.ended() for one in people] == [0, 0, 0]
    check(federation, least_tasks=2 if down == "hidden" else 16)
    final = load_file(federation.run_dir / "final.safetensors")
    assert not np.array_equal(final["base"], np.linspace(0, 1, LARGE, dtype=np.float32))


@in_full("chaos/test_distilling.py has kills around distillations of plain models")
@pytest.mark.parametrize(("up", "down"), DISTILLINGS)
def test_a_run_distils_whole_models_by_reference_through_a_kill_and_a_takeover(make, up, down):
    text = plain_app(SMALL, frozen=LARGE) + DISTIL + "\n\nDISTIL = distil\n" + WHOLE
    federation = make(
        frozen=LARGE, uplink=UPLINKS[up], more=f"[downlink]\n{DOWNLINKS[down]}\n", strategy=FEDDF, app_text=text
    )
    active = federation.coordinator(fault="distil-answered:3")
    active.wait_for("event=active run=r1 epoch=1")
    standby = federation.coordinator()
    standby.wait_for("event=standby")
    people = [federation.participant(name) for name in ("p0", "p1")]
    assert died_at(active, "distil-answered")
    assert standby.ended() == 0, standby.text
    assert [one.ended() for one in people] == [0, 0]
    check(federation, least_tasks=16)
    with federation.ledger() as ledger:
        assert ledger.distillations() == dict.fromkeys(range(1, VERSIONS + 1), "")
