"""Each feature that changes what travels: a signed deployment, in one message a model and in chunks, is the study.

With one participant at a time there is one order of events, so the study makes the deployment's model, to the last bit.
It follows that its codec, its residuals, its hidden states and its frozen part are the deployment's too.
"""

from __future__ import annotations

import hashlib

import pytest

from fedmq.app.app import load_app, trainer_of
from fedmq.broker_config.embedded.transport import EmbeddedBroker, EmbeddedTransport
from fedmq.broker_config.topology import Topology
from fedmq.coordinator.audit import audit
from fedmq.coordinator.settings import ArchiveSettings, StopSettings
from fedmq.coordinator.state import checkpoint
from fedmq.coordinator.state.ledger.reader import LedgerReader
from fedmq.coordinator.state.run_folder import RunFolder
from fedmq.coordinator.uplink import own_codec, uplink_codec
from fedmq.schemas.messages import TrainingConfig
from fedmq.studies.engine.replay import replay
from fedmq.studies.engine.settings import StudyRun
from fedmq.studies.simulate import simulate
from fedmq.study.app_problem import AppProblem
from tests.integration.chunks.federation import DEADLINE_S, Federation
from tests.scenario.studies.federations import population
from tests.support.features import FEATURES
from tests.support.full import in_full

VERSIONS = 5
TRAINING = TrainingConfig(batch_size=16, learning_rate=0.2)
FORMS = {
    "whole": {"max_message_bytes": 2**20, "chunk_bytes": 2**20},
    "chunks": {"max_message_bytes": 1024, "chunk_bytes": 1024},
}
MOST_IDS_BYTES, SIGNATURE_BYTES = 64, 192
"""More than the names of a deployment, and its signatures, add to a message of a study."""


def signature(signed: bytes) -> str:
    """Return what stands in for the coordinator's signature: 128 digits that follow from the bytes."""
    return hashlib.sha512(signed).hexdigest()


def bits(parameters):
    return {name: array.tobytes() for name, array in parameters.items()}


CHUNKED = in_full("integration/coordinator/test_uplink.py and test_downlink.py have chunks")


@pytest.mark.timeout(300)  # the first import of PyTorch on a busy machine
@pytest.mark.parametrize("form", ["whole", pytest.param("chunks", marks=CHUNKED)])
@pytest.mark.parametrize("name", FEATURES)
def test_a_signed_deployment_with_any_feature_has_the_bits_and_bytes_of_its_study(name, form, tmp_path, monkeypatch):
    pytest.importorskip("torch") if name == "TorchTrainer" else None
    monkeypatch.chdir(tmp_path)
    feature, path = FEATURES[name], tmp_path / "app.py"
    path.write_text(feature.app_text(large=False))
    uplink, strategy = feature.uplink_settings(tmp_path), feature.built_strategy
    problem, one = AppProblem(app=str(path), participant_id="sensor-{number}"), population(1)
    run = StudyRun(stop=StopSettings(max_versions=VERSIONS), uplink=uplink, downlink=feature.downlink_settings)
    study = simulate(strategy, problem, one, run, TRAINING)
    dealt = problem.deal(one.members(0), 0)
    part = getattr(dealt, "frozen", None)
    initial = dealt.initial if part is None else part.whole(0, dealt.initial)
    broker = EmbeddedBroker()
    federation = Federation(tmp_path, Topology("p"), lambda one: EmbeddedTransport(broker, one))
    try:
        ended = federation.coordinator(
            VERSIONS, strategy=strategy, training=TRAINING, initial_parameters=lambda: initial,
            frozen=lambda: initial.keys() - dealt.initial.keys(), archive=ArchiveSettings(max_bytes=2**30),
            uplink=uplink_codec(uplink, strategy.reply), downlink=feature.downlink_settings, sign=signature,
            **FORMS[form],
        )  # fmt: skip
        left = federation.participant(
            "sensor-1", trainer_of(load_app(path), "sensor-1"), own_codec=own_codec(uplink), **FORMS[form],
            verify=lambda signed, told: signature(signed) == told,
        )  # fmt: skip
        assert ended.result(DEADLINE_S).version == VERSIONS
        assert left.result(DEADLINE_S) == "run_finished"
    finally:
        federation.close()
    final = checkpoint.read(federation.run_dir / "final.safetensors").arrays
    assert bits(final) == bits(study.parameters)
    assert bits(final) == bits(replay(federation.run_dir).parameters)
    assert [one for one in audit.verify(RunFolder(federation.run_dir)) if not one.holds or one.left_out] == []
    with LedgerReader(federation.run_dir / "ledger.sqlite") as ledger:
        up, down = ledger.bytes_up(), ledger.bytes_down()
    messages = len(study.updates.time_s)
    assert (up.messages, down.messages) == (messages, messages)
    assert up.decoded_bytes == messages * sum(
        a.nbytes for n, a in dealt.initial.items() if n in dealt.initial.averaged()
    )
    if form == "whole":
        assert 0 <= up.wire_bytes - study.bytes_up <= MOST_IDS_BYTES * messages
        assert 0 <= down.wire_bytes - study.bytes_down <= (MOST_IDS_BYTES + SIGNATURE_BYTES) * messages
