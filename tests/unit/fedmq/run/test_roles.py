"""The parts of the app file that a participant is put together from."""

import pytest

from fedmq.broker_config.embedded.transport import EmbeddedBroker, EmbeddedTransport
from fedmq.config.file import load_config
from fedmq.run.roles import participant_for

APP = """
class Trainer:
    num_examples = 3
    def train(self, parameters, config): ...

def build_trainer(participant_id):
    return Trainer()

def conditions(participant_id):
    return {"at-rest": True, "at-work": False}[participant_id]
"""

FEDERATION = """
[run]
run_id = "r1"
[run.stop]
max_versions = 1
[strategy]
name = "fedbuff"
"""


@pytest.mark.parametrize(
    ("participant_id", "unmet"),
    [
        ("at-rest", None),
        ("at-work", "the app's conditions() says no"),
        ("unheard-of", "a condition could not be checked: AppError: conditions in"),
    ],
)
def test_the_apps_own_conditions_are_asked_about_this_participant(tmp_path, participant_id, unmet):
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "federation.toml").write_text(FEDERATION)
    config = load_config(tmp_path / "federation.toml", environ={})
    service = participant_for(config, participant_id, EmbeddedTransport(EmbeddedBroker()))
    assert service._conditions is not None
    said = service._conditions()
    assert said is unmet if unmet is None else said.startswith(unmet)
