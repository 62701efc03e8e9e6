"""The coordinator as a service: a run folder, a transport and the decision core, from the start to the summary."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedmq.broker_config.security import IdentityKind
from fedmq.broker_config.topology import Topology
from fedmq.broker_config.transport import Transport
from fedmq.coordinator.decisions.core import Core
from fedmq.coordinator.decisions.evaluation import Evaluator
from fedmq.coordinator.decisions.failures import StrategyFailed
from fedmq.coordinator.decisions.versions.distilling import Distiller
from fedmq.coordinator.members import Everybody, Members
from fedmq.coordinator.service.commits.commit import Committer, Pace
from fedmq.coordinator.service.commits.effects import Effects
from fedmq.coordinator.service.commits.failures import Failures
from fedmq.coordinator.service.incoming.chunked_updates import ChunkedUpdates
from fedmq.coordinator.service.incoming.inbox import Inbox
from fedmq.coordinator.service.incoming.intake import Intake
from fedmq.coordinator.service.incoming.senders import Senders
from fedmq.coordinator.service.incoming.update_reader import Wires
from fedmq.coordinator.service.incoming.window import window_of
from fedmq.coordinator.service.leading.downtime import Downtime
from fedmq.coordinator.service.leading.leadership import Leadership
from fedmq.coordinator.service.leading.standby import Stop, wait_to_lead
from fedmq.coordinator.service.loop import Loop
from fedmq.coordinator.service.outgoing.certificates import CertificateDesk, Registrar
from fedmq.coordinator.service.outgoing.frozen import FrozenTasks, whole_evaluator
from fedmq.coordinator.service.outgoing.model_stream import ModelStream, stream_bytes
from fedmq.coordinator.service.outgoing.publishing import CoordinatorPublisher
from fedmq.coordinator.service.outgoing.references import References
from fedmq.coordinator.service.startup import (
    drawn_names,
    open_core,
    parts_of,
    refuse_changes,
    settings_of,
    tell_of_another_run,
    whole,
)
from fedmq.coordinator.service.summary import RunSummary, summary_of
from fedmq.coordinator.settings import ArchiveSettings, CommitSettings, DownlinkSettings, RunSettings
from fedmq.coordinator.state import checkpoint
from fedmq.coordinator.state.archive import Archive
from fedmq.coordinator.state.checkpoint_files import CheckpointFiles
from fedmq.coordinator.state.ledger import epochs
from fedmq.coordinator.state.ledger.reader import open_if_made
from fedmq.coordinator.state.ledger.traffic import ModelBytes
from fedmq.coordinator.state.ledger.trust import believed
from fedmq.coordinator.state.ledger.writer import Ledger
from fedmq.coordinator.state.run_folder import RunFolder, place_of, unwritable
from fedmq.coordinator.strategies.protocol import Strategy
from fedmq.schemas.codec import entry_bytes
from fedmq.schemas.codecs.known import UplinkCodec
from fedmq.schemas.codecs.names import REFERENCE
from fedmq.schemas.errors import ConfigError, Deposed, LedgerLocked
from fedmq.schemas.limits import CHUNK_BYTES, MAX_PAYLOAD_BYTES, MAX_TENSORS, PLAIN, limits_for, update_bytes
from fedmq.schemas.local.allocator import keep_freed_memory
from fedmq.schemas.local.event_log import EventLog
from fedmq.schemas.messages import TrainingConfig, Uplink
from fedmq.schemas.methods import update_spec
from fedmq.schemas.parameters import Parameters
from fedmq.schemas.signing import Sign
from fedmq.schemas.tensors import ModelSpec, packed_bytes, spec_of

log = EventLog(__name__)

OPEN_POLL_S = 0.2
"""Seconds between looks at `stop` while the broker is waited for."""


class CoordinatorService:
    """Runs one run, new or resumed. The evaluator belongs to the caller; transports are opened and closed here."""

    def __init__(
        self,
        *,
        run_dir: Path,
        run: RunSettings,
        commit: CommitSettings,
        strategy: Strategy[Any],
        training: TrainingConfig,
        connect: Callable[[], Transport],
        topology: Topology,
        initial_parameters: Callable[[], Parameters],
        frozen: Callable[[], Collection[str] | Mapping[str, bool]] = tuple,
        max_message_bytes: int,
        chunk_bytes: int = CHUNK_BYTES,
        max_payload_bytes: int = MAX_PAYLOAD_BYTES,
        max_tensors: int = MAX_TENSORS,
        check_model: Callable[[Parameters], None] | None = None,
        archive: ArchiveSettings | None = None,
        evaluator: Evaluator | None = None,
        distiller: Distiller | None = None,
        export: Callable[[Path], object] | None = None,
        publish_timeout_s: float = 60.0,
        identity: IdentityKind = "open",
        members: Members | None = None,
        registrar: Registrar | None = None,
        sign: Sign | None = None,
        uplink: UplinkCodec | None = None,
        downlink: DownlinkSettings | None = None,
    ) -> None:
        """`identity` says which senders are believed, and `members` who is in the fleet; None means everybody.
        `connect` makes a transport that is not open yet, one for each time that this coordinator stands by.
        `initial_parameters` is called for a new run only, and so is `frozen`, which returns the names of the tensors
        that no update moves. `check_model` gets the parameters of a run that goes on, and
        raises AppError if they do not fit its model. `export` gets the path of the final .safetensors and writes the
        model beside it (`FINAL_MODELS`). `registrar` decides on certificates, and `sign` signs tasks; both are None
        without a fleet. `uplink` is the codec that updates are asked for in, and `downlink` the form in which tasks
        carry the model."""
        self._folder = RunFolder(run_dir)
        self._run_settings = run
        self._commit_settings = commit
        self._archive_settings = archive or ArchiveSettings()
        self._strategy = strategy
        self._training = training
        self._connect = connect
        self._topology = topology
        self._initial_parameters = initial_parameters
        self._first: Parameters | None = None
        self._frozen = frozen
        self._check_model = check_model
        self._max_message_bytes = max_message_bytes
        self._chunk_bytes = min(chunk_bytes, max_message_bytes)
        self._max_payload_bytes = max_payload_bytes
        self._max_tensors = max_tensors
        self._evaluator = evaluator
        self._distiller = distiller
        self._export = export
        self._publish_timeout_s = publish_timeout_s
        self._identity = identity
        self._members = members or Everybody()
        self._registrar = registrar
        self._sign = sign
        self._uplink = uplink
        self._downlink = downlink or DownlinkSettings()
        self._inbox: Inbox | None = None
        self._failures = Failures()
        self._stopping = False

    @property
    def _order(self) -> Uplink | None:
        return None if self._uplink is None else self._uplink.order

    def stop(self) -> None:
        """Commit and leave; the same run can be resumed. Any thread may call it, and a signal handler."""
        self._stopping = True
        if self._inbox is not None:
            self._inbox.put(Stop())

    def run(self) -> RunSummary:
        """Block until the run finishes or `stop` is called: as the active coordinator, or as a standby while another
        one is active. A run that is finished already only gives its summary.

        Raises ConfigError, StateError or BrokerError if it cannot go on, and StrategyError if the strategy fails again
        and again.
        """
        if self._is_over():
            return summary_of(self._folder, self._run_settings.run_id)
        keep_freed_memory()
        try:
            if not self._folder.ledger.exists():
                self._first = self._initial_parameters()  # tell the app's mistakes now, not when the broker is there
                self._check_tensors(update_spec(self._strategy.reply, spec_of(self._first)))
                names = self._frozen()
                parts_of(self._first, names, self._strategy, self._training, self._downlink)
                self._frozen = lambda: names
            while not self._term():
                log.info("standing_by_again", run=self._run_settings.run_id)
        except OSError as error:  # at the start and at the end; a commit in between is tried again
            raise unwritable(self._folder.path, error) from error
        finally:
            self._folder.release()
        return summary_of(self._folder, self._run_settings.run_id)

    def _is_over(self) -> bool:
        """True if the run is finished. Raises ConfigError if the settings are not the run's: a standby should learn it
        at its start."""
        reader = open_if_made(self._folder.ledger)
        if reader is None:
            return False
        with reader as ledger:
            if ledger.is_new():
                return False
            with believed(self._folder.ledger):
                refuse_changes(ledger.run().settings, self._settings(), self._folder)
            over = ledger.run().finished is not None and self._folder.final_parameters.exists()
        if over:
            log.info("run_over_already", run=self._run_settings.run_id)
            self._export_model()
        return over

    def _term(self) -> bool:
        """Wait for the broker and the lead, and lead the run; False if another coordinator has taken it over."""
        transport = self._connect()
        inbox = self._inbox = Inbox(transport, self._topology)
        try:
            if self._stopping or not self._opened(transport, inbox):
                return True
            self._folder.acquire(place_of(transport.broker_id, self._topology.prefix))
            leadership = Leadership(transport, self._topology.leader, inbox.put, time.monotonic)
            if wait_to_lead(leadership, inbox, self._folder) and not self._is_over():
                with Ledger(self._folder.ledger) as ledger:
                    if self._take_over(ledger):
                        self._lead(ledger, transport, inbox, leadership)
                        # A standby must not find that the epoch has ended while we still hold the token.
                        transport.close()
                        with contextlib.suppress(OSError):  # it is for people only
                            ledger.leave(time.time())
        except Deposed as error:
            log.warning("deposed", detail=error)
            transport.close(0.0)
            return False
        except StrategyFailed:  # it is noted: go on from the last commit
            transport.close()
            return self._stopping
        finally:
            transport.close()
        return True

    def _opened(self, transport: Transport, inbox: Inbox) -> bool:
        """Wait for the broker; False if `stop` ended the wait. Another thread opens the transport, so `stop` can."""
        opened: Future[None] = Future()

        def work() -> None:
            try:
                transport.open(self._topology.exchanges, self._topology.coordinator_queues, inbox.on_state)
            except BaseException as error:  # noqa: BLE001  handed to the thread that waits
                opened.set_exception(error)
            else:
                opened.set_result(None)

        threading.Thread(target=work, name="open-transport", daemon=True).start()
        while not opened.done() and not self._stopping:
            wait([opened], OPEN_POLL_S)
        if not opened.done():
            return False
        opened.result()
        return True

    def _take_over(self, ledger: Ledger) -> bool:
        """Begin an epoch; False if `stop` comes first."""
        while not self._stopping:
            last = ledger.newest_epoch()
            try:
                epoch = ledger.take_over(socket.gethostname(), os.getpid(), time.time())
            except LedgerLocked as error:
                holder = epochs.shown(last) if last else "another process"
                advice = f"{holder} stands still in the middle of a commit: end it with kill -9, and this one goes on"
                log.error("cannot_take_over_yet", error=error, detail=advice)
                continue
            after = {"after": epochs.shown(last)} if last else {}
            log.info("active", run=self._run_settings.run_id, epoch=epoch, **after)
            return True
        return False

    def _lead(self, ledger: Ledger, transport: Transport, inbox: Inbox, leadership: Leadership) -> None:
        if ledger.is_new():
            tell_of_another_run(transport, self._topology.updates.name)
        core = open_core(
            self._folder,
            ledger,
            run=self._run_settings,
            strategy=self._strategy,
            training=self._training,
            commit=self._commit_settings,
            initial_parameters=self._take_first,
            evaluates=self._evaluator is not None,
            naming=drawn_names(),
            uplink=self._order,
            downlink=self._downlink,
            check_model=self._check_model,
            frozen=self._frozen,
        )
        self._check_tensors(core.payload_spec)
        core.limit_examples(self._members.max_examples)
        core.condemn(self._failures.condemned, careful=self._failures.careful)
        if core.finished is None or not self._folder.final_parameters.exists():
            # A finished run without a final model was killed before its goodbye, or in the middle of it.
            with self._archive(core, ledger) as archive, self._desk(inbox) as desk:
                loop = self._loop(
                    core,
                    ledger,
                    archive,
                    transport=transport,
                    inbox=inbox,
                    leadership=leadership,
                    certificates=desk,
                )
                before = loop.committed
                try:
                    loop.run(self._failures.lost_buffer(before.seq))
                except StrategyFailed as failed:
                    at = loop.committed
                    if at.seq != before.seq:  # it has forgotten what it was to learn from an earlier failure
                        self._failures.careful = False
                    self._failures.note(
                        failed, seq=at.seq, version=at.version, accepted=at.accepted, participants=core.participants
                    )
                    raise
                finally:
                    if self._distiller is not None:
                        self._distiller.give_up()  # whoever goes on with the run asks again
        if ledger.run().finished is not None:  # the core knows earlier, but its commit may have been refused
            self._save_model(core)

    def _check_tensors(self, spec: ModelSpec) -> None:
        """Raise ConfigError if the messages of this model have more tensors than the settings allow."""
        if len(spec) > self._max_tensors:
            raise ConfigError(
                f"an update of this model has {len(spec)} tensors, [broker] max_tensors is {self._max_tensors}: "
                f"raise it to {len(spec)} or more, on the coordinator and on all participants"
            )

    @contextmanager
    def _archive(self, core: Core, ledger: Ledger) -> Iterator[Archive | None]:
        if not self._archive_settings.on:
            yield None
            return
        archive = Archive(self._folder.archive, self._archive_settings, ledger)
        try:
            archive.open(core.snapshot(), core.accepted, core.version)
            yield archive
        finally:
            archive.close()

    @contextmanager
    def _desk(self, inbox: Inbox) -> Iterator[CertificateDesk | None]:
        if self._registrar is None:
            yield None
            return
        desk = CertificateDesk(self._registrar, inbox.put)
        try:
            yield desk
        finally:
            desk.close()

    def _loop(
        self,
        core: Core,
        ledger: Ledger,
        archive: Archive | None,
        *,
        transport: Transport,
        inbox: Inbox,
        leadership: Leadership,
        certificates: CertificateDesk | None,
    ) -> Loop:
        run = ledger.run()
        began_s = time.monotonic() - run.elapsed_s
        files = CheckpointFiles.of(self._folder, self._commit_settings, run.run_id, run.run_uid)
        budget_bytes = self._commit_settings.memory_budget_bytes
        frozen = FrozenTasks(core)
        most_spec = frozen.most_spec(self._strategy.reply)
        of_model = len(most_spec), entry_bytes(most_spec), self._max_tensors
        most = update_bytes(packed_bytes(most_spec), *of_model)
        limits = limits_for(min(self._max_message_bytes, most), *of_model)
        inbox.bound(limits.max_body_bytes, PLAIN.max_body_bytes)
        payload_limits = limits_for(self._max_payload_bytes, *of_model)
        wires = None if self._uplink is None else Wires(self._uplink, core.spec_of_update)
        # If updates come in chunks, only their manifests come through the window. The last versions' are the largest.
        largest_bytes = max(core.task_tensors.num_bytes, packed_bytes(core.payload_spec))
        usual_bytes = None if wires is None else wires.of(core.last_growth).usual_bytes
        window = window_of(budget_bytes, min(largest_bytes, self._max_message_bytes), usual_bytes)
        senders = Senders(core, self._identity, self._members)
        least_bytes, most_bytes = packed_bytes(core.spec_of_update(0)), packed_bytes(most_spec)
        if wires is not None:
            least_bytes = wires.of(0).bounds()[0]
            most_bytes = max(most_bytes, *(wires.of(version).bounds()[1] for version in (0, core.last_growth)))
        intake = Intake(
            transport,
            self._topology,
            put=inbox.put,
            payload_bytes=most_bytes,
            least_bytes=least_bytes,
            sender_of=senders.chunk_sender,
        )
        return Loop(
            run_id=self._run_settings.run_id,
            core=core,
            ledger=ledger,
            committer=Committer(files, ledger, self._commit_settings.keep_checkpoints, archive),
            pace=Pace(self._commit_settings, window, budget_bytes // 4),
            transport=transport,
            dead_exchange=self._topology.dead_exchange.name,
            publisher=CoordinatorPublisher(
                transport,
                self._topology,
                run_id=self._run_settings.run_id,
                reply=self._strategy.reply,
                window_bytes=budget_bytes // 2,
                timeout_s=self._publish_timeout_s,
                put=inbox.put,
                update_bytes=most_bytes,
                max_message_bytes=self._max_message_bytes,
                chunk_bytes=self._chunk_bytes,
                sign=self._sign,
                uplink=self._order,
                frozen=frozen,
                steps=self._downlink.codec == "hidden",
                references=self._references(core, frozen, transport, inbox),
            ),
            effects=Effects(
                run_id=self._run_settings.run_id,
                core=core,
                intake=intake,
                evaluator=whole_evaluator(self._evaluator, core.frozen),
                in_chunks=most_bytes > limits.max_body_bytes,
                control_queue=self._topology.control.name,
                put=inbox.put,
                wall_s=time.time,
                distiller=self._distiller,
            ),
            chunked=ChunkedUpdates(
                intake,
                core,
                transport,
                payload_limits,
                put=inbox.put,
                owned=archive is None,
                wires=wires,
                frozen=frozen,
            ),
            leadership=leadership,
            inbox=inbox,
            senders=senders,
            limits=limits,
            wires=wires,
            frozen=frozen,
            hellos_per_s=self._run_settings.hellos_per_s,
            run_s=lambda: time.monotonic() - began_s,
            wall_s=time.time,
            downtime=Downtime(run.elapsed_s, run.committed_wall_s),
            check_folder=lambda: self._folder.check(ledger),
            certificates=certificates,
        )

    def _references(self, core: Core, frozen: FrozenTasks, transport: Transport, inbox: Inbox) -> References | None:
        if self._downlink.reference == "never":
            return None
        keep = self._downlink.reference_keep
        stream = ModelStream(
            transport,
            self._topology.models(*stream_bytes(frozen.whole_bytes, keep)),
            chunk_bytes=self._chunk_bytes,
            timeout_s=self._publish_timeout_s,
            put=inbox.put,
        )
        return References(
            stream,
            run_id=self._run_settings.run_id,
            least_bytes=self._downlink.reference_bytes,
            keep=keep,
            concurrency=self._run_settings.concurrency,
            reads=lambda participant_id: core.reads(participant_id, REFERENCE),
            on_published=lambda version, num_bytes: inbox.put(ModelBytes(version, sent_bytes=num_bytes)),
        )

    def _take_first(self) -> Parameters:
        """Return the new run's parameters, and hold them no more."""
        first, self._first = self._first, None
        return self._initial_parameters() if first is None else first

    def _save_model(self, core: Core) -> None:
        """Write the final model of a finished run, unless an earlier start has done so."""
        path = self._folder.final_parameters
        if not path.exists():
            parameters = whole(core.parameters, core.frozen, core.version)
            meta = {
                "run_id": self._run_settings.run_id,
                "version": core.version,
                "non_trainable": sorted(parameters.non_trainable),
            }
            checkpoint.write(path, parameters, meta)
        self._export_model()

    def _export_model(self) -> None:
        if self._export is not None and self._folder.final_model is None:
            self._export(self._folder.final_parameters)

    def _settings(self) -> dict[str, Any]:
        return settings_of(
            self._run_settings, self._strategy, self._training, self._commit_settings, self._order, self._downlink
        )
