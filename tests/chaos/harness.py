"""A federation of real processes on a real RabbitMQ, which tests can kill at will, and a witness of every update.

The witness is a second queue on the updates exchange. The broker confirms an update when both queues hold it, so the
witness has every confirmed update with its payload, which a replay needs.
"""

from __future__ import annotations

import signal
import threading
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from fedmq.broker_config.amqp.transport import AmqpTransport
from fedmq.broker_config.topology import Queue, Topology
from fedmq.broker_config.transport import Delivery, TransportState
from fedmq.coordinator.audit import audit
from fedmq.coordinator.decisions.task_desk import task_seed
from fedmq.coordinator.decisions.tasks.names import parsed
from fedmq.coordinator.decisions.versions.model import Model
from fedmq.coordinator.settings import UplinkSettings
from fedmq.coordinator.state import archive, checkpoint
from fedmq.coordinator.state.ledger.reader import LedgerReader
from fedmq.coordinator.state.ledger.rows import UpdateRow
from fedmq.coordinator.state.run_folder import RunFolder
from fedmq.coordinator.strategies import AnyStrategy, FedBuff
from fedmq.coordinator.strategies.math.staleness_weights import Polynomial
from fedmq.coordinator.strategies.protocol import ClientUpdate, Distils, Strategy
from fedmq.coordinator.uplink import uplink_codec
from fedmq.schemas.codec import decode
from fedmq.schemas.local.backoff import Backoff
from fedmq.schemas.messages import Update
from fedmq.schemas.methods import update_spec
from fedmq.schemas.parameters import Parameters
from fedmq.schemas.tensors import spec_of
from fedmq.studies.engine import replay as engine_replay
from tests.chaos import app
from tests.integration.front.terminal import Terminal
from tests.support.asking import ask_until
from tests.support.features import FEDBUFF, plain_app

DEADLINE_S = 60.0
CONFIG = ("--config", "federation.toml")
STRATEGY = FedBuff(buffer_size=3, staleness=Polynomial(0.5))

FEDERATION = """
[run]
run_id = "r1"
concurrency = 3
participant_timeout_s = 20
lease_s = 60
decline_backoff_s = 1
[run.stop]
max_versions = {max_versions}
[strategy]
{strategy}
[commit]
commit_interval_s = 0.1
[archive]
max_bytes = 1_000_000_000
[broker]
prefix = "{prefix}"
heartbeat_s = 2
[participant]
hello_interval_s = 0.5
"""


class Witness:
    """Keeps everything that reaches the updates exchange, by update_id; `copies` counts repeats."""

    def __init__(self, url: str, topology: Topology, **login: Any) -> None:
        """`login` is that of AmqpTransport, if the URL alone does not let the witness in."""
        self.updates: dict[str, tuple[Update, Parameters | None]] = {}
        """Updates by update_id, with their parameters; None if these travelled in chunks."""
        self.copies: Counter[str] = Counter()
        self.num_bytes: dict[str, int] = {}
        """Bytes of each update's message, by update_id. Those of chunks are not among them."""
        self.changed = threading.Condition()
        self._connected = False
        self._transport = AmqpTransport(
            url, name="witness", heartbeat_s=2, backoff=Backoff(base_s=0.1, cap_s=0.5), **login
        )
        exchange = topology.updates_exchange.name
        self.queue = Queue(f"{topology.prefix}.witness", "quorum", exchange, "update")
        queues = [*topology.shared_queues, self.queue]
        self._transport.open(topology.exchanges, queues, self._news, timeout_s=DEADLINE_S)
        self._transport.consume(self.queue.name, self._on_delivery, 16)

    def _news(self, state: TransportState) -> None:
        with self.changed:
            if state.name in ("connected", "disconnected"):
                self._connected = state.name == "connected"
            self.changed.notify_all()

    def _on_delivery(self, delivery: Delivery) -> None:
        decoded = decode(bytes(delivery.body))
        assert isinstance(decoded.message, Update)
        assert (decoded.parameters is None) == (decoded.message.chunks is not None)
        with self.changed:
            self.updates[decoded.message.update_id] = (decoded.message, decoded.parameters)
            self.copies[decoded.message.update_id] += not delivery.redelivered
            self.num_bytes[decoded.message.update_id] = len(delivery.body)
            self.changed.notify_all()
        self._transport.ack(delivery)

    def depth(self, queue: Queue) -> int:
        self.wait_until(lambda: self._connected)
        return self._transport.depth(queue.name)

    def wait_for_depth(self, queue: Queue, at_least: int) -> None:
        """Wait until `at_least` messages are ready. If the broker gives up on a consumer, its messages come back."""
        deadline = time.monotonic() + DEADLINE_S
        while self.depth(queue) < at_least:
            assert time.monotonic() < deadline, f"{queue.name} never held {at_least} messages"
            with self.changed:
                self.changed.wait(0.1)

    def drain(self, queue: Queue) -> set[str]:
        """Return the update_ids of all messages left in a queue that nobody consumes any more."""
        left = self.depth(queue)
        found: list[str | None] = []

        def on_delivery(delivery: Delivery) -> None:
            with self.changed:
                found.append(delivery.message_id)
                self.changed.notify_all()

        if left:
            self._transport.consume(queue.name, on_delivery, left)
            self.wait_until(lambda: len(found) >= left)
        return {str(update_id) for update_id in found}

    def wait_until(self, condition: Callable[[], bool], lacks: Callable[[], object] = lambda: "") -> None:
        with self.changed:
            assert self.changed.wait_for(condition, DEADLINE_S), f"the witness waited in vain {lacks()}"

    def close(self) -> None:
        self._transport.close()


class Federation:
    """One run's folder, its processes by kind, and the checks that must hold whatever happened."""

    def __init__(
        self,
        folder: Path,
        url: str,
        prefix: str,
        max_versions: int = 8,
        size: int = app.SIZE,
        pause_s: float = 0.0,
        *,
        columns: int = 0,
        frozen: int = 0,
        uplink: str = "",
        more: str = "",
        strategy: str = FEDBUFF,
        app_text: str | None = None,
        **login: Any,
    ) -> None:
        """Write the run's folder and open the witness.

        `size` is the number of values in the model, `pause_s` the longest duration of a training. `url` is one URL, or
        one for each node, separated by commas. `columns` makes the model a matrix, and `frozen` is the size of a tensor
        beside it that is frozen. `uplink` are the lines of the table with the updates' codec, and `strategy` those of
        the strategy's. `more` are further tables of the federation file, `app_text` is another app, and `login` is the
        witness's.
        """
        self.folder = folder
        self._strategy: Strategy[Any] = TypeAdapter(AnyStrategy).validate_python(tomllib.loads(strategy))
        self._uplink = tomllib.loads(uplink)
        self._known = app_text is None and not more
        """True if an update that travelled in chunks can be trained again here."""
        self._by_rows = not isinstance(self._strategy, Distils) and "unfreeze" not in more
        """True if the strategy alone makes the model of the ledger's rows: no version is distilled, and no tensor
        joins."""
        self._first: Parameters | None = None
        if app_text is None:
            self._first = Parameters({n: np.asarray(a) for n, a in app.initial_parameters(size, columns).items()})
        self.url = url
        self.topology = Topology(prefix)
        self.run_dir = folder / "runs" / "r1"
        own = plain_app(size, columns=columns, frozen=frozen, pause_s=pause_s)
        (folder / "app.py").write_text(own if app_text is None else app_text)
        settings = FEDERATION.format(prefix=prefix, max_versions=max_versions, strategy=strategy)
        (folder / "federation.toml").write_text(f"{settings}[uplink]\n{uplink}\n{more}")
        self.witness = Witness(url, self.topology, **login)
        self.environ: dict[str, str] = {}
        """Environment variables of all processes."""
        self._running: list[Terminal] = []

    # Processes

    def coordinator(self, fault: str = "", **environ: str) -> Terminal:
        return self._start("coordinator", *CONFIG, fault=fault, **environ)

    def participant(self, name: str, fault: str = "", **environ: str) -> Terminal:
        return self._start("participant", *CONFIG, "--id", name, fault=fault, **environ)

    def command(self, *arguments: str, folder: Path | None = None) -> Terminal:
        """Start any command, in another folder than the federation's if one is given."""
        return self._start(*arguments, fault="", folder=folder)

    def _start(self, *arguments: str, fault: str, folder: Path | None = None, **environ: str) -> Terminal:
        given = {"FEDMQ_BROKER_URL": self.url, "FEDMQ_FAULT": fault} | self.environ | environ
        self._running.append(Terminal(folder or self.folder, *arguments, **given))
        return self._running[-1]

    def close(self) -> None:
        for one in reversed(self._running):
            one.close()
        self.witness.close()

    def hold(self, name: str, wait: bool = True) -> None:
        """Let no training of this participant end. With `wait`, return only when it is in one."""
        file = self.folder / "hold" / name
        file.parent.mkdir(exist_ok=True)
        file.touch()
        if wait:
            ask_until(lambda: self.trainings(name).total() % 2 == 1, within_s=DEADLINE_S, what=f"a training of {name}")

    def release(self, name: str) -> None:
        file = self.folder / "hold" / name
        file.unlink()
        file.with_suffix(".seen").unlink(missing_ok=True)

    # What must hold

    def ledger(self) -> LedgerReader:
        return LedgerReader(self.run_dir / "ledger.sqlite")

    def trainings(self, name: str) -> Counter[str]:
        """Count the lines in the diary of the participant's trainer: "begun SEED" and "done SEED"."""
        diary = self.folder / "calls" / name
        return Counter(diary.read_text().splitlines() if diary.exists() else ())

    def check(self, versions: int = 8, refused: Collection[str] = (), lost: Collection[str] = ()) -> list[UpdateRow]:
        """Check the promises and return the ledger's rows.

        Every update that the broker confirmed is in exactly one version, or discarded with a reason. The model is the
        one that the ledger's order gives.

        `refused` has the update_ids for which a nack was seen. Only one of the two queues, for updates and for the
        witness, may have these. `lost` has those of the time after a backup that the folder was restored from: the
        restored ledger knows nothing of them, or has discarded them.
        """
        checks = audit.verify(RunFolder(self.run_dir))
        assert [one for one in checks if not one.holds or one.left_out] == []
        with self.ledger() as ledger:
            rows, points = ledger.updates(), ledger.versions()
            discards = {uid for uid, reason in ledger.discarded_updates() if reason != "duplicate"}
            late = self.witness.drain(self.topology.updates) - {row.update_id for row in rows} - discards
            self.witness.wait_until(lambda: late <= set(self.witness.updates))
            for update_id in late:  # their senders had not heard yet that the run was over
                closed = ledger.closed_task(self.witness.updates[update_id][0].task_id)
                assert closed is not None
                assert closed.state == "withdrawn"
        assert [row.accepted_order for row in rows] == list(range(1, len(rows) + 1))
        accepted = {row.update_id for row in rows}
        assert len(accepted) == len(rows)
        assert [point.version for point in points] == list(range(1, versions + 1))
        assert Counter(row.version for row in rows) == {point.version: point.num_updates for point in points}
        assert not accepted & discards
        seen_or_refused = set(refused)
        self.witness.wait_until(
            lambda: accepted <= self.witness.updates.keys() | seen_or_refused,
            lambda: f"for {accepted - self.witness.updates.keys() - seen_or_refused}",
        )
        assert self.witness.depth(self.witness.queue) == 0
        known = accepted | discards | late
        witnessed = set(self.witness.updates)
        allowed = known | seen_or_refused | set(lost)
        assert known - seen_or_refused <= witnessed <= allowed, "taken by the broker, not in the ledger"
        final = checkpoint.read(self.run_dir / "final.safetensors").arrays
        replayed = self.replayed(rows)
        assert [final[name].tobytes() for name in replayed] == [replayed[name].tobytes() for name in replayed]
        in_the_engine = engine_replay.replay(self.run_dir).parameters
        assert list(final) == list(in_the_engine)
        assert [final[name].tobytes() for name in final] == [in_the_engine[name].tobytes() for name in in_the_engine]
        return rows

    def replayed(self, rows: list[UpdateRow]) -> Parameters:
        """Send the witness's payloads, in the ledger's order, through the strategy alone and return the model, without
        its frozen part."""
        if not self._by_rows:
            return engine_replay.replay(self.run_dir).parameters
        first = self._first or self._base()
        codec = uplink_codec(self.uplink, self._strategy.reply)
        wire = None if codec is None else codec.wire(update_spec(self._strategy.reply, spec_of(first)))

        def witnessed(row: UpdateRow, versions: list[Parameters]) -> Parameters:
            update, payload = self.witness.updates.get(row.update_id, (None, None))
            assert update is None or (update.task_id, update.base_version) == (row.task_id, row.base_version)
            if payload is None:
                plain = update is None or update.codec is None
                again = plain and self._known
                return trained_again(versions[row.base_version], row.task_id) if again else self.archived(row)
            if update is None or update.codec is None:
                return payload
            assert wire is not None
            return wire.decode(payload)

        return replay(rows, witnessed, first, self._strategy)

    @property
    def uplink(self) -> UplinkSettings:
        """The table of the updates' codec. A file of its own is in the federation's folder."""
        file = {key: str(self.folder / name) for key, name in self._uplink.items() if key == "file"}
        return UplinkSettings.model_validate(self._uplink | file)

    def _base(self) -> Parameters:
        """Return the model that the run began with, as its archive has it."""
        with self.ledger() as ledger:
            base = ledger.bases()[0]
        assert base.accepted == 0
        return Model.restore(self._strategy, archive.read_base(self.run_dir / "archive", base)).parameters

    def archived(self, row: UpdateRow) -> Parameters:
        """Return an accepted update's tensors, as they were counted."""
        with self.ledger() as ledger:
            (kept,) = ledger.archived(row.accepted_order - 1, row.accepted_order)
        return archive.read_update(self.run_dir / "archive", kept)


def replay(
    rows: list[UpdateRow],
    payload_of: Callable[[UpdateRow, list[Parameters]], Parameters],
    first: Parameters | None = None,
    strategy: Strategy[Any] = STRATEGY,
) -> Parameters:
    """Return the last version. `payload_of` gets a row and all versions that were made before it."""
    if first is None:
        first = Parameters({name: np.asarray(array) for name, array in app.initial_parameters().items()})
    versions = [first]
    state = strategy.init(versions[0])
    for at, row in enumerate(rows):
        payload = payload_of(row, versions)
        state = strategy.accumulate(state, _as_the_core_sees(row, payload), row.staleness)
        if at + 1 == len(rows) or rows[at + 1].version != row.version:
            state, parameters = strategy.aggregate(state, versions[-1])
            versions.append(parameters)
    return versions[-1]


def _as_the_core_sees(row: UpdateRow, payload: Parameters) -> ClientUpdate:
    fields: dict[str, Any] = {
        "update_id": row.update_id, "participant_id": row.participant_id, "base_version": row.base_version,
        "payload": payload, "num_examples": row.num_examples, "num_steps": row.num_steps, "metrics": row.metrics,
        "client_weight": row.client_weight,
    }  # fmt: skip
    return ClientUpdate(**fields)


def trained_again(base: Parameters, task_id: str) -> Parameters:
    """Return the payload of an update that travelled in chunks. It is trained again, from the task's seed."""
    local = app.trained(base, task_seed(0, parsed(task_id).seq))
    return Parameters({name: local[name] - base[name] for name in base.averaged()})


def died_at(process: Terminal, point: str) -> bool:
    """Return True if SIGKILL ended the process at this fault point and it met no other."""
    return process.ended() == -signal.SIGKILL and process.text.count("fault point ") == 1 == process.text.count(
        f"fault point {point}\n"
    )


def seeds_of(rows: list[UpdateRow], participant_id: str) -> set[str]:
    """Return the training seeds of a participant's accepted updates."""
    return {str(task_seed(0, parsed(row.task_id).seq)) for row in rows if row.participant_id == participant_id}
