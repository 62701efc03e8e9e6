"""The coordinator as a service: a run folder, a transport and the decision core, from start to summary."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from broker_config.topology import Topology
from broker_config.transport import Transport
from coordinator import checkpoint
from coordinator.archive import Archive
from coordinator.checkpoint_files import CheckpointFiles
from coordinator.commit import Committer, Pace
from coordinator.core import Core
from coordinator.evaluator import Evaluator
from coordinator.intake import Intake
from coordinator.ledger import Ledger
from coordinator.loop import Clocks, Loop, Stop
from coordinator.publishing import Publisher
from coordinator.run_folder import RunFolder
from coordinator.settings import ArchiveSettings, CommitSettings, RunSettings
from coordinator.startup import open_core
from coordinator.strategies.base import Strategy
from schemas.codec import Limits
from schemas.errors import StateError
from schemas.limits import CHUNK_BYTES, MAX_PAYLOAD_BYTES
from schemas.messages import TrainingConfig
from schemas.parameters import Parameters

log = logging.getLogger("fedmq.coordinator")

MOST_PREFETCH = 512
OPEN_POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class RunSummary:
    """How a run stands. `finished` is the reason, None where it can be resumed; `model_path` is set once finished."""

    run_id: str
    version: int
    accepted: int
    discarded: Mapping[str, int]
    finished: str | None
    metrics: Mapping[str, float]
    """Of the last central evaluation that succeeded."""
    model_path: Path | None


class CoordinatorService:
    """Runs one run, new or resumed. The evaluator belongs to the caller; the transport is opened and closed here."""

    def __init__(
        self,
        *,
        run_dir: Path,
        run: RunSettings,
        commit: CommitSettings,
        strategy: Strategy[Any],
        training: TrainingConfig,
        transport: Transport,
        topology: Topology,
        initial_parameters: Callable[[], Parameters],
        max_message_bytes: int,
        chunk_bytes: int = CHUNK_BYTES,
        max_payload_bytes: int = MAX_PAYLOAD_BYTES,
        check_model: Callable[[Parameters], None] | None = None,
        archive: ArchiveSettings | None = None,
        evaluator: Evaluator | None = None,
        export: Callable[[Path], None] | None = None,
        publish_timeout_s: float = 60.0,
    ) -> None:
        """`initial_parameters` is asked for a new run only. `check_model` gets the parameters of one that goes on, and
        raises AppError where they are not those of its model. `export` gets the path of the final .safetensors and
        writes final.keras beside it."""
        self._folder = RunFolder(run_dir)
        self._run_settings = run
        self._commit_settings = commit
        self._archive_settings = archive or ArchiveSettings()
        self._strategy = strategy
        self._training = training
        self._transport = transport
        self._topology = topology
        self._initial_parameters = initial_parameters
        self._check_model = check_model
        self._max_message_bytes = max_message_bytes
        self._chunk_bytes = min(chunk_bytes, max_message_bytes)
        self._max_payload_bytes = max_payload_bytes
        self._evaluator = evaluator
        self._export = export
        self._publish_timeout_s = publish_timeout_s
        self._inbox: SimpleQueue[Any] = SimpleQueue()
        self._stopping = False

    def stop(self) -> None:
        """Commit and leave; the same run can be resumed. From any thread, or a signal handler."""
        self._stopping = True
        self._inbox.put(Stop())

    def run(self) -> RunSummary:
        """Block until the run finishes or `stop` is called. A run that is finished already only gives its summary.

        Raises ConfigError, StateError or BrokerError where it cannot go on.
        """
        self._folder.acquire()
        try:
            with Ledger(self._folder.ledger) as ledger:
                epoch = ledger.take_over(socket.gethostname(), os.getpid(), time.time())
                log.info("this coordinator is the active one run=%s epoch=%d", self._run_settings.run_id, epoch)
                summary = self._run(ledger)
                with contextlib.suppress(OSError):  # of a full disk: it is for people only
                    ledger.leave(time.time())
                return summary
        except OSError as error:  # at the start and at the end; a commit in between is tried again
            raise StateError(
                f"the run in {self._folder.path} cannot be written: {error}. Nothing was acked that is not on disk: "
                "make room, and the same command goes on"
            ) from error
        finally:
            self._folder.release()

    def _run(self, ledger: Ledger) -> RunSummary:
        core = open_core(
            self._folder,
            ledger,
            run=self._run_settings,
            strategy=self._strategy,
            training=self._training,
            commit=self._commit_settings,
            initial_parameters=self._initial_parameters,
            evaluates=self._evaluator is not None,
            check_model=self._check_model,
        )
        if core.finished is None or not self._folder.final_parameters.exists():
            # Without a final model a finished run was killed before its goodbye, or in the middle of it.
            try:
                if self._opened():
                    with self._archive(core, ledger) as archive:
                        self._loop(core, ledger, archive).run()
            finally:
                self._transport.close()
        else:
            log.info("the run is over already run=%s reason=%s", self._run_settings.run_id, core.finished)
        if core.finished is not None:
            self._save_model(core)
        return self._summary(core, ledger)

    def _opened(self) -> bool:
        """Wait for the broker, on a thread of its own so that `stop` can end the wait; False where it did."""
        opened: Future[None] = Future()

        def work() -> None:
            try:
                self._transport.open(self._topology.exchanges, self._topology.shared_queues, self._inbox.put)
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

    def _loop(self, core: Core, ledger: Ledger, archive: Archive | None) -> Loop:
        run = ledger.run()
        began_s = time.monotonic() - run.elapsed_s
        files = CheckpointFiles.of(self._folder, self._commit_settings, run.run_id, run.run_uid)
        budget_bytes = self._commit_settings.memory_budget_bytes
        # Of updates in chunks only manifests come through the window.
        fitting = budget_bytes // max(1, min(core.task_tensors.num_bytes, self._max_message_bytes))
        return Loop(
            run_id=self._run_settings.run_id,
            core=core,
            ledger=ledger,
            committer=Committer(files, ledger, self._commit_settings.keep_checkpoints, archive),
            pace=Pace(self._commit_settings, min(max(1, fitting), MOST_PREFETCH), budget_bytes // 4),
            transport=self._transport,
            topology=self._topology,
            publisher=Publisher(
                self._transport,
                self._topology,
                run_id=self._run_settings.run_id,
                reply=self._strategy.reply,
                window_bytes=budget_bytes // 2,
                timeout_s=self._publish_timeout_s,
                on_task=self._inbox.put,
                max_message_bytes=self._max_message_bytes,
                chunk_bytes=self._chunk_bytes,
            ),
            intake=Intake(self._transport, self._topology, put=self._inbox.put, payload_bytes=core.payload_bytes),
            evaluator=self._evaluator,
            inbox=self._inbox,
            limits=Limits(max_body_bytes=self._max_message_bytes),
            payload_limits=Limits(max_body_bytes=self._max_payload_bytes),
            clocks=Clocks(lambda: time.monotonic() - began_s, time.time),
        )

    def _save_model(self, core: Core) -> None:
        """Once a run is over; again after a crash in between."""
        path = self._folder.final_parameters
        if not path.exists():
            meta = {
                "run_id": self._run_settings.run_id,
                "version": core.version,
                "non_trainable": sorted(core.parameters.non_trainable),
            }
            checkpoint.write(path, core.parameters, meta)
        if self._export is not None and not self._folder.final_model.exists():
            self._export(path)

    def _summary(self, core: Core, ledger: Ledger) -> RunSummary:
        models = [path for path in (self._folder.final_model, self._folder.final_parameters) if path.exists()]
        metrics = [row.metrics for row in ledger.evaluations() if row.metrics]
        return RunSummary(
            run_id=self._run_settings.run_id,
            version=core.version,
            accepted=ledger.accepted(),
            discarded=ledger.discarded(),
            finished=core.finished,
            metrics=metrics[-1] if metrics else {},
            model_path=models[0] if models and core.finished is not None else None,
        )
