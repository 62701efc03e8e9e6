"""Decisions on requests for certificates."""

import pytest

from fedmq.fleet import certificates, enrolment, registrar
from fedmq.fleet.certificates import DAY_S, Credential
from fedmq.fleet.inventory import Inventory
from fedmq.fleet.registrar import Registrar
from fedmq.schemas.messages import CertificateInstalled, CertificateRequest
from tests.support.fleet import NOW_S, FakeAdmin, made


class World:
    """A fleet with one open token, and its registrar."""

    def __init__(self, path):
        self.path = path
        self.folder = made(path)
        self.inventory = Inventory(self.folder.inventory)
        self.admin = FakeAdmin()
        self.now_s = NOW_S
        self.registrar = Registrar(self.folder, self.inventory, wall_s=lambda: self.now_s, admin=self.admin)
        self.token = self.new_token("sensor-1")

    def new_token(self, device_id):
        path = self.path / f"{device_id}.token"
        enrolment.token(device_id, path, 60.0, inventory=self.inventory, admin=self.admin, now_s=self.now_s)
        return enrolment.bundle.read(path)

    def ask(self, key, user, claim="sensor-1", subject="sensor-1"):
        request = CertificateRequest(participant_id=claim, request=certificates.request(key, subject))
        return self.registrar.on_request(request, user)


@pytest.fixture
def world(tmp_path):
    made_here = World(tmp_path)
    yield made_here
    made_here.inventory.close()


def test_the_subject_is_the_tokens_whatever_the_request_says(world):
    key = certificates.new_key()
    answer = world.ask(key, world.token.user, claim="coordinator", subject="coordinator")
    assert (answer.verdict, answer.participant_id) == ("issued", "sensor-1")
    assert certificates.facts(answer.certificate).common_name == "sensor-1"
    assert certificates.fits(Credential(answer.certificate, key))


def test_the_same_key_again_gets_the_same_certificate(world):
    key = certificates.new_key()
    first = world.ask(key, world.token.user)
    world.now_s += 3600  # the token has expired, and this key asked in time
    assert world.ask(key, world.token.user) == first
    assert len(world.inventory.certificates("sensor-1")) == 1


def test_another_key_for_a_used_token_is_refused(world):
    world.ask(certificates.new_key(), world.token.user)
    answer = world.ask(certificates.new_key(), world.token.user)
    assert (answer.verdict, answer.certificate) == ("refused", None)
    assert "used by another key" in answer.detail


@pytest.mark.parametrize(("after_s", "verdict"), [(59.0, "issued"), (60.0, "refused")])
def test_a_token_ends_in_time(world, after_s, verdict):
    world.now_s += after_s
    answer = world.ask(certificates.new_key(), world.token.user)
    assert answer.verdict == verdict
    assert ("expired" in answer.detail) == (verdict == "refused")


def test_a_temporary_user_without_a_token_gets_nothing(world):
    assert world.ask(certificates.new_key(), "join-0").verdict == "refused"


def test_a_request_without_a_user_gets_no_answer(world):
    assert world.ask(certificates.new_key(), None) is None


def test_the_temporary_user_goes_once_the_device_has_its_certificate(world):
    key = certificates.new_key()
    world.ask(key, world.token.user)
    other = CertificateInstalled(participant_id="sensor-1", key_id="0" * 64)
    world.registrar.on_installed(other, world.token.user)
    assert world.token.user in world.admin.rights
    done = CertificateInstalled(participant_id="sensor-1", key_id=certificates.key_id(key))
    world.registrar.on_installed(done, world.token.user)
    assert set(world.admin.rights) == {"sensor-1"}
    assert world.inventory.token(world.token.user).state == "closed"
    assert world.inventory.certificates("sensor-1")[0].installed_s == NOW_S


def test_a_device_that_never_came_for_its_certificate_loses_its_token_after_a_week(world):
    world.ask(certificates.new_key(), world.token.user)
    world.now_s += 60 + enrolment.USED_TOKEN_S - 1
    world.registrar.tidy()
    assert world.token.user in world.admin.rights
    world.now_s += 1
    world.registrar.tidy()
    assert world.token.user not in world.admin.rights


def test_a_device_renews_its_certificate_and_no_other_ones(world):
    first = world.ask(certificates.new_key(), world.token.user)
    world.now_s += 30 * DAY_S
    key = certificates.new_key()
    answer = world.ask(key, "sensor-1", claim="sensor-2", subject="sensor-2")
    assert (answer.verdict, answer.participant_id) == ("issued", "sensor-1")
    facts = certificates.facts(answer.certificate)
    assert (facts.common_name, facts.not_after_s) == ("sensor-1", world.now_s + 90 * DAY_S)
    assert answer.certificate != first.certificate
    assert world.ask(key, "sensor-1") == answer


def test_a_device_with_a_young_certificate_gets_no_other_one(world):
    world.ask(certificates.new_key(), world.token.user)
    world.now_s += 22.4 * DAY_S
    answer = world.ask(certificates.new_key(), "sensor-1")
    assert (answer.verdict, "young" in answer.detail) == ("refused", True)
    world.now_s += 0.2 * DAY_S
    assert world.ask(certificates.new_key(), "sensor-1").verdict == "issued"


def test_a_key_of_another_device_gets_nothing(world):
    key = certificates.new_key()
    world.ask(key, world.token.user)
    other = world.new_token("sensor-2")
    answer = world.ask(key, other.user)
    assert (answer.verdict, "another device" in answer.detail) == ("refused", True)


def test_who_is_no_device_or_was_revoked_gets_nothing(world):
    assert "no device of this fleet" in world.ask(certificates.new_key(), "stranger").detail
    key = certificates.new_key()
    world.ask(key, world.token.user)
    world.inventory.begin_revocation("sensor-1", NOW_S)
    for user in ("sensor-1", world.token.user):
        for one in (key, certificates.new_key()):
            answer = world.ask(one, user)
            assert (answer.verdict, answer.certificate) == ("refused", None)


def test_text_that_is_no_request_is_refused(world):
    answer = world.registrar.on_request(CertificateRequest(participant_id="x", request="text"), world.token.user)
    assert (answer.verdict, answer.participant_id) == ("refused", "x")
    assert world.inventory.token(world.token.user).key_id is None


def test_without_the_authoritys_key_a_request_waits_until_a_person_signs(world):
    stick = world.path / "stick.key"
    world.folder.ca_key.rename(stick)
    key = certificates.new_key()
    assert world.ask(key, world.token.user).verdict == "waiting"
    assert world.ask(key, world.token.user).verdict == "waiting"
    assert len(world.inventory.requests()) == 1
    assert len(registrar.sign_waiting(world.folder, world.inventory, world.now_s + 5, stick)) == 1
    answer = world.ask(key, world.token.user)
    assert answer.verdict == "issued"
    assert certificates.facts(answer.certificate).common_name == "sensor-1"
    assert registrar.sign_waiting(world.folder, world.inventory, world.now_s + 5, stick) == []


def test_what_waits_for_a_revoked_device_is_not_signed(world):
    stick = world.path / "stick.key"
    world.folder.ca_key.rename(stick)
    world.ask(certificates.new_key(), world.token.user)
    world.inventory.begin_revocation("sensor-1", NOW_S)
    assert registrar.sign_waiting(world.folder, world.inventory, world.now_s, stick) == []


def test_a_device_cannot_fill_the_inventory_with_requests(world):
    world.folder.ca_key.rename(world.path / "stick.key")
    world.ask(certificates.new_key(), world.token.user)
    verdicts = [world.ask(certificates.new_key(), "sensor-1").verdict for _ in range(4)]
    assert verdicts == ["waiting", "refused", "refused", "refused"]
