"""Attacks on identity over TLS, by a user of the broker that may do everything but be somebody else.

Mallory has a certificate and all rights on all names, so that nothing but the checks of identity stands in her way.
Each test shows that her messages reached their queues, that each was refused, and that the run beside them lost
nothing.
"""

from __future__ import annotations

import contextlib
import json
import ssl
import threading
import uuid
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pika
import pytest
from pika.exceptions import AMQPError, ChannelClosedByBroker, UnroutableError

from fedmq.broker_config.amqp.transport import AmqpTransport
from fedmq.broker_config.node.node import PrivateNode
from fedmq.broker_config.node.tls import NodeTls
from fedmq.broker_config.topology import Queue, Topology
from fedmq.broker_config.transport import Message
from fedmq.coordinator.state.ledger.reader import LedgerReader
from fedmq.schemas import chunks
from fedmq.schemas.codec import encode
from fedmq.schemas.errors import BrokerRefused, LedgerError
from fedmq.schemas.local.backoff import Backoff
from fedmq.schemas.messages import (
    AnyMessage,
    ChunkedPayload,
    Decline,
    Hello,
    Notice,
    Receipt,
    Task,
    TrainingConfig,
    Update,
    update_id,
)
from fedmq.schemas.parameters import Parameters
from tests.integration.chunks.federation import DEADLINE_S, RUN_ID, Federation, Trainer, until
from tests.support.certificates import Authority, Pem
from tests.support.rabbitmq import require_server

pytestmark = pytest.mark.broker

USERS = ("coordinator", "alice", "bob", "mallory", "admin")
QUICK = Backoff(base_s=0.05, cap_s=0.2)
SMALL = Parameters({"000/w": np.ones(4, np.float32)})


class Site:
    """A node, its authority, and users without passwords that may do everything."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority(folder / "ca")
        server = self.authority.certify("broker", server=True)
        tls = NodeTls(self.authority.file, server.certificate, server.key)
        # A password is refused because the user has none, and not because nobody may give one.
        self.node = PrivateNode(folder / "node", tls=tls, overrides={"auth_mechanisms.2": "PLAIN"})
        self.node.start(timeout_s=110)
        self._pem = {name: self.authority.certify(name) for name in USERS}
        definitions = folder / "users.json"
        definitions.write_text(
            json.dumps(
                {
                    "users": [{"name": n, "password_hash": "", "tags": ""} for n in USERS],
                    "permissions": [
                        {"user": n, "vhost": "/", "configure": ".*", "write": ".*", "read": ".*"} for n in USERS
                    ],
                }
            )
        )
        self.node.ctl("import_definitions", str(definitions))

    @property
    def url(self) -> str:
        return self.node.url

    def files(self, pem: Pem | None) -> dict[str, str]:
        ours = {} if pem is None else {"cert_file": str(pem.certificate), "key_file": str(pem.key)}
        return {"ca_file": str(self.authority.file), **ours}

    def transport(self, name: str) -> AmqpTransport:
        return AmqpTransport(self.url, name=name, backoff=QUICK, auth="external", **self.files(self._pem[name]))

    @contextlib.contextmanager
    def raw(self, user: str, credentials: Any = None, *, certificate: bool = True) -> Iterator[Any]:
        """Yield a plain pika channel of this user, in confirm mode."""
        context = ssl.create_default_context(cafile=str(self.authority.file))
        if certificate:
            context.load_cert_chain(self._pem[user].certificate, self._pem[user].key)
        parameters = pika.ConnectionParameters(
            "127.0.0.1", self.node.port, credentials=credentials or pika.credentials.ExternalCredentials(),
            ssl_options=pika.SSLOptions(context, "127.0.0.1"),
        )  # fmt: skip
        connection = pika.BlockingConnection(parameters)
        try:
            channel = connection.channel()
            channel.confirm_delivery()
            yield channel
        finally:
            with contextlib.suppress(AMQPError):
                connection.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    require_server()
    one = Site(tmp_path_factory.mktemp("site"))
    yield one
    one.node.stop()


class Fleet:
    """Members that a test revokes."""

    def __init__(self, *enrolled: str) -> None:
        self.standings = dict.fromkeys(enrolled, "enrolled")

    def standing(self, participant_id: str) -> Any:
        return self.standings.get(participant_id, "unknown")

    def max_examples(self, participant_id: str) -> int | None:
        return None


def forge(channel: Any, queue: Queue, body: bytes, user: str | None = "mallory", **properties: Any) -> None:
    """Publish to a queue as no fedmq process would. Raises unless the broker has put the message there."""
    channel.basic_publish(
        queue.exchange, queue.routing_key, body, pika.BasicProperties(user_id=user, delivery_mode=2, **properties),
        mandatory=True,
    )  # fmt: skip


class Forged(AmqpTransport):
    """A transport in whose path somebody puts a wrong chunk before each right one, with the same label."""

    def __init__(self, site: Site, name: str) -> None:
        super().__init__(site.url, name=name, backoff=QUICK, auth="external", **site.files(site._pem[name]))
        self._forger = contextlib.ExitStack()
        self._channel = self._forger.enter_context(site.raw("mallory"))
        self._lock = threading.Lock()
        self.forged = self.too_late = 0
        self.chunks: Counter[tuple[object, object]] = Counter()
        """Publications of each chunk, by its payload's id and its index."""

    def publish(self, message: Message, timeout_s: float = 30.0) -> Future[None]:
        if chunks.PAYLOAD_ID in message.headers:
            self.chunks[message.headers[chunks.PAYLOAD_ID], message.headers[chunks.INDEX]] += 1
            with self._lock:
                for body, user in ((bytes(len(message.body)), "mallory"), (b"short", None)):
                    properties = pika.BasicProperties(user_id=user, headers=dict(message.headers), delivery_mode=2)
                    try:
                        self._channel.basic_publish(
                            message.exchange, message.routing_key, body, properties, mandatory=True
                        )
                        self.forged += 1
                    except UnroutableError:  # the run is over, and the queue with it
                        self.too_late += 1
        return super().publish(message, timeout_s)

    def close(self, timeout_s: float = 5.0) -> None:
        super().close(timeout_s)
        with self._lock:
            self._forger.close()


@pytest.fixture
def federation(site: Site, tmp_path: Path) -> Iterator[Federation]:
    """A federation over TLS whose every chunk, both ways, is preceded by two of mallory's."""
    topology = Topology(f"t{uuid.uuid4().hex[:10]}")
    one = Federation(tmp_path, topology, lambda name: Forged(site, name))
    yield one
    one.close()


def start(federation: Federation, *names: str, **trainers: Trainer) -> dict[str, Future[str]]:
    return {name: federation.participant(name, trainers.get(name), coordinator_user="coordinator") for name in names}


def open_task(federation: Federation, participant_id: str) -> str | None:
    """Return the id of a participant's open task, from the ledger."""
    with (
        contextlib.suppress(LedgerError, FileNotFoundError),
        LedgerReader(federation.run_dir / "ledger.sqlite") as ledger,
    ):
        for task in ledger.open_tasks():
            if task.participant_id == participant_id:
                return task.task_id
    return None


def depth(channel: Any, queue: Queue) -> int:
    return int(channel.queue_declare(queue.name, passive=True).method.message_count)


def lies_to_the_coordinator(task_id: str) -> list[AnyMessage]:
    """Return what would take alice's task from her, or take her place."""
    mine = update_id(RUN_ID, task_id, "alice")
    update = Update(
        update_id=mine, task_id=task_id, run_id=RUN_ID, participant_id="alice", base_version=0, payload="delta",
        num_examples=10, num_steps=1, train_s=0.1,
    )  # fmt: skip
    payload = ChunkedPayload(payload_id="p", num_bytes=200_256, chunk_bytes=8192, count=25, digest="0" * 64)
    return [
        Hello(participant_id="alice", session_id="mallory", num_examples=10),
        Hello(participant_id="alice", session_id="mallory", num_examples=10, accepting=False),
        Decline(task_id=task_id, run_id=RUN_ID, participant_id="alice", reason="no_data"),
        update,
        update.model_copy(update={"chunks": payload}),
        update.model_copy(update={"base_version": 99}),
    ]


def lies_to_alice(task_id: str) -> list[tuple[AnyMessage, Parameters | None]]:
    """Return what would make alice drop her work, or do mallory's."""
    payload = ChunkedPayload(payload_id="p", num_bytes=16_384, chunk_bytes=8192, count=2, digest="0" * 64)
    task = Task(
        task_id="mine-1", run_id=RUN_ID, participant_id="alice", base_version=0, reply="delta",
        training=TrainingConfig(), lease_s=1000.0,
    )  # fmt: skip
    receipt = Receipt(
        update_id=update_id(RUN_ID, task_id, "alice"), task_id=task_id, run_id=RUN_ID, participant_id="alice",
        verdict="discarded", reason="too_stale",
    )  # fmt: skip
    return [
        (task, SMALL),
        (task.model_copy(update={"chunks": payload}), None),
        (receipt, None),
        (Notice(run_id=RUN_ID, participant_id="alice", event="task_withdrawn", task_id=task_id), None),
        (Notice(run_id=RUN_ID, participant_id="alice", event="send_again", task_id=task_id), None),
        (Notice(run_id=RUN_ID, participant_id="alice", event="run_finished"), None),
    ]


class Gated(Trainer):
    """A trainer that waits in each training for the test."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()


def test_a_run_beside_forged_messages_and_chunks_of_every_kind_loses_nothing_and_counts_nothing_twice(
    site: Site, federation: Federation, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "fedmq")
    alice, topology = Gated(), federation.topology
    coordinator = federation.coordinator(versions=2, buffer_size=2, identity="user", members=Fleet("alice", "bob"))
    ended = start(federation, "alice", alice=alice)
    until(lambda: alice.trainings == 1)
    task_id = open_task(federation, "alice")
    assert task_id is not None
    with site.raw("mallory") as mallory:
        lies = lies_to_the_coordinator(task_id)
        for lie in lies:
            queue = topology.updates if isinstance(lie, Update) else topology.control
            tensors = SMALL if isinstance(lie, Update) and lie.chunks is None else None
            for user in ("mallory", None):
                forge(mallory, queue, encode(lie, tensors), user, correlation_id=task_id)
        own = Hello(participant_id="mallory", session_id="s", num_examples=10)
        forge(mallory, topology.control, encode(own))
        for user in ("mallory", None):
            forge(mallory, topology.updates, b"noise", user, correlation_id=task_id)
        to_alice = lies_to_alice(task_id)
        for message, tensors in to_alice:
            for user in ("mallory", None):
                forge(mallory, topology.participant("alice"), encode(message, tensors), user)
        with site.raw("admin") as admin:
            until(lambda: depth(admin, topology.dead) == 2 * len(lies) + 3)
        service = federation._participants["alice"][0]
        until(lambda: service._strangers.count == 2 * len(to_alice))
        with pytest.raises(ChannelClosedByBroker) as refused:
            forge(mallory, topology.control, encode(own), "alice")
        assert refused.value.reply_code == 406, "the broker refuses a user_id that is not the publisher's"
    ended |= start(federation, "bob")
    assert alice.gate is not None
    alice.gate.set()
    summary = coordinator.result(DEADLINE_S)
    assert [one.result(DEADLINE_S) for one in ended.values()] == ["run_finished"] * 2
    expected = {"wrong_sender": len(lies), "unknown_sender": len(lies) + 1, "not_enrolled": 2}
    assert {k: v for k, v in summary.discarded.items() if k != "run_finished"} == expected
    assert (summary.version, summary.accepted) == (2, 4)
    federation.check(versions=2, updates=4)
    uploads = [federation.transports[name] for name in ("alice", "bob")]
    for transport in (federation.transports["coordinator"], *uploads):
        assert isinstance(transport, Forged)
        assert transport.forged + transport.too_late == 2 * transport.chunks.total()
        assert transport.forged >= 2 * 25, "a wrong chunk before each right one, and one too short"
        assert set(transport.chunks.values()) == {1}, "no chunk was sent again"
    assert sum(one.chunks.total() for one in uploads) >= 25 * 4
    assert "event=payload_broken" not in caplog.text
    assert "event=send_again" not in caplog.text
    assert caplog.text.count("event=foreign_chunk") >= 8, "one line for each payload, up and down"
    assert caplog.text.count("event=stranger_ignored") == 2


def test_what_a_revoked_participant_left_in_the_queue_is_discarded_as_revoked(
    site: Site, federation: Federation
) -> None:
    fleet, bob = Fleet("alice", "bob"), Gated()
    settings: dict[str, Any] = {"versions": 1, "buffer_size": 2, "identity": "user", "members": fleet}
    federation.coordinator(**settings)
    start(federation, "bob", bob=bob)
    until(lambda: bob.trainings == 1)
    federation.stop_coordinator()
    assert bob.gate is not None
    bob.gate.set()
    with site.raw("admin") as admin:
        until(lambda: depth(admin, federation.topology.updates) == 1)
    fleet.standings["bob"] = "revoked"
    start(federation, "alice")
    summary = federation.coordinator(**settings).result(DEADLINE_S)
    assert (summary.version, summary.accepted) == (1, 2)
    # Its hellos count as well.
    assert summary.discarded.keys() - {"run_finished"} == {"revoked"}
    federation.check(versions=1, updates=2)
    with LedgerReader(federation.run_dir / "ledger.sqlite") as ledger:
        assert ledger.accepted_by_participant() == {"alice": 2}
        assert [reason for _, reason in ledger.discarded_updates()].count("revoked") == 1


@pytest.mark.parametrize("password", ["", "alice", "guest", "fedmq"])
def test_no_password_lets_anybody_in_as_a_user_that_has_none(site: Site, password: str) -> None:
    with (
        pytest.raises(AMQPError, match=r"403|ACCESS_REFUSED"),
        site.raw("mallory", pika.PlainCredentials("alice", password)),
    ):
        pass


def test_a_connection_without_a_certificate_is_refused(site: Site) -> None:
    with pytest.raises(AMQPError), site.raw("mallory", certificate=False):
        pass
    url = site.node.url_for("alice", "sesame")
    transport = AmqpTransport(url, name="t", backoff=QUICK, **site.files(None))
    with pytest.raises(BrokerRefused, match="asks for a client's certificate"):
        transport.open((), (), timeout_s=DEADLINE_S)


def test_a_certificate_of_another_authority_an_old_one_and_one_without_a_user_are_refused(
    site: Site, tmp_path: Path
) -> None:
    stranger = Authority(tmp_path / "stranger").certify("alice")
    wrong = {
        "an authority that the broker trusts": stranger,
        "renew it": site.authority.certify("old", days=-0.5),
        "was revoked": site.authority.certify("nobody"),
    }
    for words, pem in wrong.items():
        transport = AmqpTransport(site.url, name="t", backoff=QUICK, auth="external", **site.files(pem))
        with pytest.raises(BrokerRefused, match=words):
            transport.open((), (), timeout_s=DEADLINE_S)
