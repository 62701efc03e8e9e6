"""A device that joins by a token, at a broker that plays a script."""

from concurrent.futures import Future

import pytest

from fedmq.broker_config.transport import Delivery, TransportState
from fedmq.fleet import certificates, enrolment
from fedmq.fleet.inventory import Inventory
from fedmq.fleet.joining import bundle_path, join
from fedmq.fleet.registrar import Registrar
from fedmq.schemas.codec import decode, encode
from fedmq.schemas.errors import BrokerRefused, ConfigError
from fedmq.schemas.messages import CertificateInstalled, CertificateRequest
from tests.support.fleet import NOW_S, FakeAdmin, made

LOST = "the connection is lost"


class Broker:
    """Connections by which a coordinator answers. `answers` has what becomes of one request after the other: a key
    that asks in its place, LOST, or None for an answer as it should be."""

    def __init__(self, path, answers=(), refuses_after=None):
        self.inventory = Inventory(made(path).inventory)
        self.registrar = Registrar(made(path), self.inventory, wall_s=lambda: NOW_S, admin=FakeAdmin())
        self.file = path / "a.token"
        enrolment.token("a", self.file, 60.0, inventory=self.inventory, admin=FakeAdmin(), now_s=NOW_S)
        self.token = enrolment.bundle.read(self.file)
        self.answers, self.refuses_after = list(answers), refuses_after
        self.connections = self.closed = self.installed = 0
        self.settled = []

    def answered(self, key):
        request = CertificateRequest(participant_id="a", request=certificates.request(key, "a"))
        return self.registrar.on_request(request, self.token.user)

    # The transport of one connection after the other

    def connect(self, settings, name):
        if self.connections == self.refuses_after:
            self.open = self._refuse
        self.connections += 1
        return self

    def open(self, exchanges, queues, on_state):
        self.on_state = on_state

    def _refuse(self, exchanges, queues, on_state):
        raise BrokerRefused("the broker refused the login")

    def consume(self, queue, on_delivery, prefetch):
        self.on_delivery = on_delivery

    def publish(self, message):
        asked = decode(message.body).message
        if isinstance(asked, CertificateInstalled):
            self.installed += 1
        elif (what := self.answers.pop(0) if self.answers else None) == LOST:
            self.on_state(TransportState("disconnected"))
        else:
            answer = self.registrar.on_request(asked, self.token.user) if what is None else self.answered(what)
            body, user = encode(answer), self.token.coordinator_user
            self.on_delivery(Delivery("q", body, "m", None, user, {}, False, 0, answer))
        done = Future()
        done.set_result(None)
        return done

    def ack(self, delivery):
        self.settled.append(delivery)

    def close(self):
        self.closed += 1


@pytest.fixture
def broker(tmp_path):
    opened = []

    def start(*answers, **more):
        opened.append(Broker(tmp_path, answers, **more))
        return opened[-1]

    yield start
    for one in opened:
        one.inventory.close()


def test_it_gets_its_certificate_and_says_so(broker):
    one = broker()
    content = join(one.file, one.token, one.connect)
    assert certificates.fits(certificates.Credential(content.certificate, content.key))
    assert bundle_path(one.file).exists()
    assert (one.installed, one.connections, one.closed, len(one.settled)) == (1, 1, 1, 1)


def test_a_lost_connection_is_made_again(broker):
    one = broker(LOST, LOST)
    join(one.file, one.token, one.connect)
    assert (one.connections, one.closed) == (3, 3)


def test_a_connection_that_is_not_let_in_again_ends_it(broker):
    """The token's user is deleted once another device has joined."""
    one = broker(LOST, refuses_after=1)
    with pytest.raises(BrokerRefused, match="the token was used or its time is over"):
        join(one.file, one.token, one.connect)
    assert one.closed == 2


def test_a_certificate_for_another_key_tells_that_the_token_is_used_and_stays_for_the_other_device(broker):
    one = broker(certificates.new_key())
    with pytest.raises(ConfigError, match="this token has been used by another key"):
        join(one.file, one.token, one.connect)
    assert one.settled == []
    assert not bundle_path(one.file).exists()


def test_a_refusal_of_another_key_is_passed_over(broker):
    """Two devices ask at once. The first one's answer comes when the second one has been refused."""
    one = broker()
    ours = one.registrar.on_request

    def both(asked, user):
        answer = ours(asked, user)
        refusal = one.answered(certificates.new_key())
        assert refusal.verdict == "refused"
        one.on_delivery(Delivery("q", encode(refusal), "m", None, one.token.coordinator_user, {}, False, 0, refusal))
        return answer

    one.registrar.on_request = both
    one.answered = lambda key: ours(
        CertificateRequest(participant_id="a", request=certificates.request(key, "a")), one.token.user
    )
    assert join(one.file, one.token, one.connect).participant_id == "a"
    assert len(one.settled) == 2


def test_a_refusal_of_our_key_ends_it(broker):
    one = broker()
    one.answered(certificates.new_key())
    with pytest.raises(ConfigError, match="The coordinator refuses to let a join"):
        join(one.file, one.token, one.connect)
