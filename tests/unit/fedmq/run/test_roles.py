"""The parts of the app file that a participant is put together from."""

import logging

import pytest

from fedmq.broker_config.embedded.transport import EmbeddedBroker, EmbeddedTransport
from fedmq.config.file import load_config
from fedmq.coordinator.service.summary import RunSummary
from fedmq.run.broker_user import log_identity
from fedmq.run.coordinator import coordinator_for, summary_text
from fedmq.run.participant import participant_for
from fedmq.schemas.errors import ConfigError
from tests.support.certificates import Authority

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
    service = participant_for(config, participant_id, EmbeddedTransport(EmbeddedBroker()), in_process=True)
    assert service._conditions is not None
    said = service._conditions()
    assert said is unmet if unmet is None else said.startswith(unmet)


@pytest.fixture
def configured(tmp_path):
    """A function: configured(flags) returns the configuration of a federation whose app is APP."""

    def configured(*flags):
        (tmp_path / "app.py").write_text(APP)
        (tmp_path / "federation.toml").write_text(FEDERATION)
        return load_config(tmp_path / "federation.toml", flags, environ={})

    return configured


def external(tmp_path, common_name):
    authority = Authority(tmp_path / "ca")
    pem = authority.certify(common_name)
    return (
        "broker.url=amqps://127.0.0.1:1/", "broker.auth=external", f"broker.ca_file={authority.file}",
        f"broker.cert_file={pem.certificate}", f"broker.key_file={pem.key}",
    )  # fmt: skip


def test_a_participant_is_the_user_that_its_certificate_names(configured, tmp_path):
    config = configured(*external(tmp_path, "at-rest"))
    service = participant_for(config, "at-rest")
    service._transport.close()
    with pytest.raises(ConfigError, match=r"\(--id\) is 'at-work'.*is 'at-rest' \(the common name of broker.cert_file"):
        participant_for(config, "at-work")


def test_a_coordinator_is_the_user_that_the_settings_name(configured, tmp_path):
    config = configured(*external(tmp_path, "chief"))
    refused = r"security.coordinator_user is 'coordinator'.*is 'chief' \(the common name of broker.cert_file"
    with pytest.raises(ConfigError, match=refused), coordinator_for(config):
        pass


def test_a_user_with_a_password_is_checked_as_well(configured):
    config = configured("security.identity=user", "broker.url=amqp://guest:sesame@h/")
    with pytest.raises(ConfigError, match=r"is 'guest' \(the user in broker.url") as refused:
        participant_for(config, "at-rest")
    assert "sesame" not in str(refused.value)


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ((), 'event=identity identity=open detail="whoever may publish on the broker is believed; set'),
        (
            ("security.identity=user", "security.coordinator_user=chief"),
            "event=identity identity=user user=at-rest coordinator_user=chief",
        ),
    ],
)
def test_the_first_log_line_says_how_sure_a_sender_is(configured, caplog, flags, line):
    caplog.set_level(logging.INFO, "fedmq")
    participant_for(configured(*flags), "at-rest", EmbeddedTransport(EmbeddedBroker()))
    assert caplog.messages[0].startswith(line)


def test_open_beside_a_fleet_is_a_warning(caplog):
    log_identity("open", "coordinator", "coordinator", fleet=True)
    assert [(record.levelname, "there is a fleet" in record.message) for record in caplog.records] == [
        ("WARNING", True)
    ]


def test_a_metrics_name_cannot_write_on_the_terminal(configured):
    summary = RunSummary("r1", 1, 2, {}, "max_versions", {"f1\x1b[2J": 0.5}, None)
    assert "On the test data: f1\\u001b[2J 0.5000\n" in summary_text(configured(), summary)
