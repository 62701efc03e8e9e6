"""A device's bundle, its TLS files, and its renewals."""

import ssl

import pytest

from fedmq.fleet import bundle, certificates
from fedmq.fleet.bundle import Bundle
from fedmq.fleet.certificates import DAY_S, Credential
from fedmq.fleet.device import Device, files_of, tighten
from fedmq.run.devices import open_device
from fedmq.schemas.errors import ConfigError, FleetError
from fedmq.schemas.messages import Certificate
from tests.support.fleet import NOW_S, PLAN

CA = certificates.new_ca("fedmq test", NOW_S)
OTHER_CA = certificates.new_ca("fedmq test", NOW_S)


def bundle_of(name="sensor-1", ca=CA, **changes):
    issued = certificates.client_certificate(ca, name, NOW_S, 90 * DAY_S)
    fields = {
        "urls": PLAN.urls, "prefix": "fedmq", "coordinator_user": "coordinator", "coordinator_key": "0f" * 32,
        "ca": CA.certificate, "max_message_bytes": 100_000, "max_payload_bytes": 200_000,
        "participant_queues": "classic", "participant_id": "sensor-1", "certificate": issued.certificate,
        "key": issued.key,
    }  # fmt: skip
    return Bundle(**(fields | changes))


class World:
    """A device that can be started again."""

    def __init__(self, path):
        self.path = path / "sensor-1.bundle"
        self.now_s = NOW_S
        bundle.write(self.path, bundle_of())

    @property
    def files(self):
        return files_of(self.path)

    def start(self):
        return Device(self.path, bundle.read(self.path), lambda: self.now_s)

    def tls_key_id(self):
        """The key in the file that TLS reads, after OpenSSL has read it."""
        ssl.create_default_context().load_cert_chain(self.files / "device.pem")
        text = (self.files / "device.pem").read_text()
        return certificates.key_id(text[: text.index("-----BEGIN CERTIFICATE")])


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def signed(request, name="sensor-1", ca=CA):
    certificate = certificates.signed_request(ca, request.request, name, NOW_S + 30 * DAY_S, 90 * DAY_S)
    return Certificate(participant_id=name, verdict="issued", certificate=certificate)


def test_a_device_has_the_files_of_tls_beside_its_bundle(world):
    settings = world.start().broker_settings()
    assert settings.auth == "external"
    assert settings.url.get_secret_value() == "amqps://sensor-1@broker.test:5671/%2F"
    assert settings.cert_file == str(world.files / "device.pem")
    assert world.files.stat().st_mode & 0o777 == 0o700
    assert {path.name: path.stat().st_mode & 0o777 for path in world.files.iterdir()} == {
        "ca.pem": 0o600, "device.pem": 0o600,
    }  # fmt: skip
    assert world.tls_key_id() == certificates.key_id(bundle.read(world.path).key)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (bundle_of("sensor-2"), "that of 'sensor-2'"),
        (bundle_of(ca=OTHER_CA), "not from the authority"),
        (bundle_of(key=certificates.new_key()), "another key"),
    ],
    ids=["name", "authority", "key"],
)
def test_a_bundle_whose_parts_do_not_belong_together_is_refused(world, content, why):
    bundle.write(world.path, content)
    with pytest.raises(ConfigError, match=why):
        world.start()
    assert not world.files.exists()


def test_a_request_is_due_after_a_third_of_the_lifetime_and_keeps_its_key(world):
    device = world.start()
    world.now_s = NOW_S + 29.9 * DAY_S
    assert device.request() is None
    world.now_s = NOW_S + 30 * DAY_S
    first = device.request()
    assert certificates.key_id_of_request(first.request) == certificates.key_id_of_request(device.request().request)
    again = world.start().request()  # after a crash
    assert certificates.key_id_of_request(first.request) == certificates.key_id_of_request(again.request)
    assert certificates.key_id_of_request(first.request) != certificates.key_id(device.bundle.key)


def test_a_new_certificate_is_in_the_bundle_and_in_the_file_of_tls(world):
    device = world.start()
    world.now_s = NOW_S + 30 * DAY_S
    request = device.request()
    installed = device.install(signed(request))
    assert installed.key_id == certificates.key_id_of_request(request.request)
    found = bundle.read(world.path)
    assert certificates.fits(Credential(found.certificate, found.key))
    assert world.tls_key_id() == installed.key_id == certificates.key_id(found.key)
    assert sorted(path.name for path in world.files.iterdir()) == ["ca.pem", "device.pem"]
    assert device.request() is None  # the new one is young
    assert device.install(signed(request)) is None  # the same answer again


@pytest.mark.parametrize(
    "answer",
    [
        lambda request: signed(request, "sensor-2"),
        lambda request: signed(request, ca=OTHER_CA),
        lambda _: Certificate(participant_id="sensor-1", verdict="issued", certificate=bundle_of().certificate),
        lambda _: Certificate(participant_id="sensor-1", verdict="refused"),
    ],
    ids=["name", "authority", "key", "refusal"],
)
def test_a_certificate_that_does_not_fit_changes_nothing(world, answer):
    device = world.start()
    world.now_s = NOW_S + 30 * DAY_S
    before = world.path.read_text()
    assert device.install(answer(device.request())) is None
    assert world.path.read_text() == before
    assert device.request() is not None


def test_text_that_is_no_certificate_changes_nothing(world):
    device = world.start()
    world.now_s = NOW_S + 30 * DAY_S
    device.request()
    assert device.install(Certificate(participant_id="sensor-1", verdict="issued", certificate="text")) is None


def test_a_device_that_was_killed_with_its_new_bundle_on_disk_goes_on_with_it(world, monkeypatch):
    device = world.start()
    world.now_s = NOW_S + 30 * DAY_S
    request = device.request()

    def killed(path, _text):
        raise KeyboardInterrupt(str(path))

    monkeypatch.setattr("fedmq.fleet.device.write_secret", killed)
    with pytest.raises(KeyboardInterrupt, match=r"device\.pem"):
        device.install(signed(request))
    monkeypatch.undo()
    assert world.tls_key_id() != certificates.key_id_of_request(request.request)
    again = world.start()
    assert world.tls_key_id() == certificates.key_id_of_request(request.request)
    assert again.request() is None
    assert not (world.files / "renewal.key").exists()


def test_a_bundle_that_others_can_read_is_taken_from_them(world):
    world.path.chmod(0o644)
    tighten(world.path)
    assert world.path.stat().st_mode & 0o777 == 0o600


def test_a_path_that_is_no_bundle_keeps_its_mode(world, tmp_path):
    app = tmp_path / "app.py"
    app.write_text("x = 1\n")
    for path in (app, tmp_path):
        path.chmod(0o755)
        with pytest.raises((ConfigError, FleetError), match=str(path)):
            open_device(path)
        assert path.stat().st_mode & 0o777 == 0o755
    world.path.chmod(0o644)
    open_device(world.path)
    assert world.path.stat().st_mode & 0o777 == 0o600
