"""A federation with a fleet beside its file."""

import hashlib
from types import SimpleNamespace

import pytest

from fedmq.config.device import load_device
from fedmq.config.file import load_config
from fedmq.fleet import certificates, setup
from fedmq.fleet.bundle import Bundle, broker_settings
from fedmq.fleet.folder import read_text, write_secret
from fedmq.fleet.inventory import Inventory
from fedmq.run import devices, participant
from fedmq.run.enrolled import as_coordinator, open_fleet
from fedmq.run.participant import participant_for
from fedmq.schemas.errors import ConfigError, FleetError
from fedmq.schemas.messages import CertificateRequest
from tests.support.fleet import NOW_S, PLAN, made

FEDERATION = """
[run]
run_id = "r1"
[run.stop]
max_versions = 1
[strategy]
name = "fedbuff"
"""


CODEC = """
class Signs:
    name = "signs"
    parts = encode = decode = None

build_codec = Signs
"""


APP = """
class Trainer:
    num_examples = 1
    def train(self, parameters, config):
        return None

def build_trainer(participant_id):
    return Trainer()
"""


class Offline:
    """A transport that nothing is asked of."""


@pytest.fixture
def configured(tmp_path):
    """A function: configured(flags) reads the federation file, beside which there may be a fleet."""
    (tmp_path / "federation.toml").write_text(FEDERATION)
    return lambda *flags, **more: load_config(tmp_path / "federation.toml", flags, environ={}, **more)


def test_without_a_fleet_nothing_changes(configured):
    config = configured()
    assert config.security.fleet is None
    assert as_coordinator(config) is config


def test_a_fleet_beside_the_file_gives_address_and_certificate(configured, tmp_path):
    folder = made(tmp_path)
    config = as_coordinator(configured())
    assert config.security.fleet == str(folder.path)
    assert config.broker.auth == "external"
    assert config.broker.url.get_secret_value() == PLAN.urls[0]
    assert (config.broker.ca_file, config.broker.cert_file) == (str(folder.ca), str(folder.coordinator))
    assert (config.security.coordinator_user, config.broker.key_file) == ("coordinator", None)


def test_what_the_file_says_wins(configured, tmp_path):
    made(tmp_path)
    config = as_coordinator(
        configured("broker.auth=password", "broker.ca_file=own.pem", broker="amqps://coordinator:p@one.test/")
    )
    assert config.broker.auth == "password"
    assert config.broker.url.get_secret_value() == "amqps://coordinator:p@one.test/"
    assert (config.broker.ca_file, config.broker.cert_file) == (str(tmp_path / "own.pem"), None)


def test_a_fleet_elsewhere_is_named(configured, tmp_path):
    folder = made(tmp_path / "there")
    assert as_coordinator(configured("security.fleet=there/fleet")).broker.cert_file == str(folder.coordinator)
    with pytest.raises(FleetError, match="fedmq fleet init"):
        as_coordinator(configured("security.fleet=nowhere"))


@pytest.mark.parametrize("flag", ["broker.prefix=other", "security.coordinator_user=other"])
def test_a_file_and_a_fleet_that_contradict_each_other_are_refused(configured, tmp_path, flag):
    made(tmp_path)
    with pytest.raises(ConfigError, match="was made for"):
        as_coordinator(configured(flag))


def test_a_fleet_at_work_knows_its_members_and_decides_on_requests(configured, tmp_path):
    folder = made(tmp_path)
    with open_fleet(configured()) as fleet:
        assert fleet.members.standing("sensor-1") == "unknown"
        with Inventory(folder.inventory) as other:
            other.begin_enrolment("sensor-1", NOW_S, max_examples=60)
        fleet.members._look_at = float("-inf")  # a moment later
        assert (fleet.members.standing("sensor-1"), fleet.members.max_examples("sensor-1")) == ("enrolled", 60)
        answer = fleet.registrar.on_request(CertificateRequest(participant_id="x", request="text"), "sensor-1")
        assert answer.verdict == "refused"


def test_a_coordinator_signs_with_the_key_that_the_bundles_know(configured, tmp_path):
    folder = made(tmp_path)
    with open_fleet(configured()) as fleet:
        signature = fleet.sign(b"content")
    verify = certificates.verifier(bundle_of(folder).coordinator_key)
    assert verify(b"content", signature)
    assert not verify(b"other", signature)


def test_a_signing_key_that_the_bundles_do_not_know_is_refused(configured, tmp_path):
    write_secret(made(tmp_path).signing_key, certificates.new_signing_key().private)
    with pytest.raises(ConfigError, match="every device would refuse every task"), open_fleet(configured()):
        pass


# Devices


def bundle_of(folder):
    with Inventory(folder.inventory) as inventory:
        fields = setup.shared(inventory).model_dump()
    return Bundle(**fields, participant_id="sensor-1", certificate="C", key="K")


def test_a_device_needs_its_bundle_and_an_app(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    broker = broker_settings(bundle_of(made(tmp_path)), "sensor-1", auth="external", cert_file="device.pem")
    config = load_device(None, None, (), broker=broker, coordinator_user="c", environ={"FEDMQ_BROKER_URL": "amqp://x/"})
    assert config.broker == broker
    assert (config.app, config.participant.spool_dir) == (str(tmp_path / "app.py"), str(tmp_path / "spool"))
    assert (config.security.kind("external"), config.security.coordinator_user) == ("user", "c")


def test_a_devices_own_settings_are_its_own(configured, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    broker = broker_settings(bundle_of(made(tmp_path)), "sensor-1", auth="external", cert_file="device.pem")
    flags = ("participant.hello_interval_s=3", "broker.heartbeat_s=9", "broker.prefix=other")
    alone = load_device(None, tmp_path / "own.py", flags, broker=broker, coordinator_user="c", environ={})
    assert (alone.app, alone.participant.hello_interval_s) == (str(tmp_path / "own.py"), 3.0)
    assert (alone.broker.heartbeat_s, alone.broker.prefix) == (9, "fedmq")
    with_file = load_device(tmp_path / "federation.toml", None, flags, broker=broker, coordinator_user="c", environ={})
    assert (with_file.app, with_file.participant.hello_interval_s) == (str(tmp_path / "app.py"), 3.0)
    assert (with_file.broker.heartbeat_s, with_file.broker.cert_file) == (9, "device.pem")


def test_a_device_with_the_federation_file_compares_its_files_and_has_its_codec(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.bin").write_bytes(b"theirs")
    (tmp_path / "own.py").write_text(CODEC)
    table = f'files = {{ "data.bin" = "{"0" * 64}" }}\n'
    (tmp_path / "f.toml").write_text(f'{table}{FEDERATION}[uplink]\ncodec = "custom"\nfile = "own.py"\n')
    broker = broker_settings(bundle_of(made(tmp_path)), "sensor-1", auth="external", cert_file="device.pem")
    config = load_device(tmp_path / "f.toml", None, (), broker=broker, coordinator_user="c", environ={})
    with pytest.raises(ConfigError, match=r"data\.bin is not the federation's file"):
        participant_for(config, "sensor-1", in_process=True, transport=Offline())
    digest = hashlib.sha256(b"theirs").hexdigest()
    config = config.model_copy(update={"files": {str(tmp_path / "data.bin"): digest}})
    (tmp_path / "app.py").write_text(APP)
    monkeypatch.setattr(participant, "ParticipantService", lambda **given: given["own_codec"].name)
    assert participant_for(config, "sensor-1", in_process=True, transport=Offline()) == "signs"
    alone = load_device(
        None, None, ("uplink.codec=custom", "uplink.file=own.py"), broker=broker, coordinator_user="c", environ={}
    )
    assert alone.uplink.file == str(tmp_path / "own.py")


def test_a_devices_mistakes_are_told_together(tmp_path):
    broker = broker_settings(bundle_of(made(tmp_path)), "sensor-1", auth="external", cert_file="device.pem")
    with pytest.raises(ConfigError) as caught:
        load_device(None, None, ("participant.hello=3", "run.seed=4"), broker=broker, coordinator_user="c", environ={})
    assert "participant.hello" in str(caught.value)
    assert "run" in str(caught.value)


def test_a_device_checks_tasks_with_the_key_of_its_bundle(tmp_path, monkeypatch):
    folder = made(tmp_path)
    content = bundle_of(folder)
    broker = broker_settings(content, "sensor-1", auth="external", cert_file="device.pem")
    device = SimpleNamespace(bundle=content, participant_id="sensor-1", broker_settings=lambda: broker)
    given = {}
    monkeypatch.setattr(devices, "open_device", lambda _path: device)
    monkeypatch.setattr(devices, "participant_for", lambda _settings, _id, **more: given.update(more))
    devices.device_service(tmp_path / "sensor-1.bundle", None, tmp_path / "app.py", ())
    sign = certificates.signer(read_text(folder.signing_key))
    assert given["verify"](b"content", sign(b"content"))
    assert not given["verify"](b"other", sign(b"content"))
