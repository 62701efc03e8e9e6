"""The beginning of a run: it is made new, or goes on from the state that its ledger names."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import fields
from typing import Any

from pydantic_core import to_jsonable_python

from fedmq.broker_config.transport import Transport
from fedmq.coordinator.audit.replay import checkpoint_meta, rebuilt
from fedmq.coordinator.decisions.core import Core
from fedmq.coordinator.decisions.records import Snapshot
from fedmq.coordinator.decisions.task_models import task_model
from fedmq.coordinator.decisions.tasks.names import NONCE_CHARS, TaskNames
from fedmq.coordinator.decisions.versions.model import parameters_in
from fedmq.coordinator.decisions.versions.unfreezing import FrozenParts, check_growth, scheduled
from fedmq.coordinator.service.commits.commit import Committer
from fedmq.coordinator.settings import CommitSettings, DownlinkSettings, RunSettings, unfreezing
from fedmq.coordinator.state import checkpoint
from fedmq.coordinator.state.checkpoint_files import CheckpointFiles
from fedmq.coordinator.state.frozen_file import frozen_in, write_frozen
from fedmq.coordinator.state.ledger.reader import LedgerReader
from fedmq.coordinator.state.ledger.trust import believed
from fedmq.coordinator.state.ledger.writer import Ledger
from fedmq.coordinator.state.run_folder import RunFolder
from fedmq.coordinator.strategies.protocol import MEMORY, Strategy
from fedmq.schemas.errors import BrokerError, CheckpointError, ConfigError, LedgerError
from fedmq.schemas.frozen import split_off
from fedmq.schemas.local.event_log import EventLog
from fedmq.schemas.messages import TrainingConfig, Uplink
from fedmq.schemas.parameters import Array, Parameters

log = EventLog(__name__)

_NOT_OURS = (
    "this run begins now, so they are not its own, and it discards them as wrong_run. If their coordinator is only "
    "down, stop this one, and give each run a broker.prefix of its own"
)

FIXED_RUN_SETTINGS = ("run_id", "seed", "client_weights", "max_staleness")
"""Settings that a run keeps for life, beside its strategy and training: a replay of the ledger needs them."""

FIXED_DOWNLINK_SETTINGS = ("codec", "step_codec", "fraction", "step_every")
"""Settings of the table [downlink] that a run keeps for life. The others say how the same tensors travel."""


def open_core(
    folder: RunFolder,
    ledger: Ledger,
    *,
    run: RunSettings,
    strategy: Strategy[Any],
    training: TrainingConfig,
    commit: CommitSettings,
    initial_parameters: Callable[[], Parameters],
    evaluates: bool,
    naming: TaskNames | None = None,
    check_model: Callable[[Parameters], None] | None = None,
    uplink: Uplink | None = None,
    frozen: Callable[[], Collection[str] | Mapping[str, bool]] = tuple,
    downlink: DownlinkSettings | None = None,
) -> Core:
    """Return the core of a new run, or the restored core of a run that the ledger knows.

    `naming` is of this start (`drawn_names`); without it the ids of tasks are plain. `frozen` is asked at the creation
    of a run for the names of the tensors that no update moves; a mapping says of each whether an optimizer would
    step it (`unfreezing.scheduled`).

    Raises ConfigError if the settings do not fit the run's, CheckpointError if its state is damaged, and the error of
    `check_model` if the parameters of an unfinished run do not fit its model.
    """
    settings = settings_of(run, strategy, training, commit, uplink, downlink)
    if ledger.is_new():
        run_uid = secrets.token_hex(4)
        files = CheckpointFiles.of(folder, commit, run.run_id, run_uid)
        _refuse_checkpoints_without_a_ledger(folder, files)
        parameters, parts = parts_of(initial_parameters(), frozen(), strategy, training, downlink)
        core = Core(
            run,
            strategy,
            training,
            parameters,
            run_uid,
            evaluates=evaluates,
            naming=naming,
            uplink=uplink,
            frozen=parts,
            downlink=downlink,
        )
        files.prepare()
        if parts is not None:
            write_frozen(files, parts.first)
        first = Committer.first_checkpoint(files, ledger.epoch, core.snapshot())
        ledger.create(run.run_id, run_uid, settings, time.time(), first)
        log.info("run_created", run=run.run_id, uid=run_uid, folder=folder.path)
        return core
    with believed(ledger.path):
        refuse_changes(ledger.run().settings, settings, folder)
        snapshot = _load(folder, ledger, commit, strategy)
        run_row = ledger.run()
        files = CheckpointFiles.of(folder, commit, run_row.run_id, run_row.run_uid)
        parts = frozen_in(files, snapshot.scalars)
        participants = (row.record for row in ledger.participants())
        core = Core.restore(
            run,
            strategy,
            training,
            snapshot,
            participants,
            ledger.open_tasks(),
            evaluates=evaluates,
            naming=naming,
            uplink=uplink,
            downlink=downlink,
            frozen=parts,
        )
    if check_model is not None and core.finished is None:
        check_model(whole(core.parameters, parts, core.version))
    ledger.resume(settings)
    log.info("run_resumed", run=run.run_id, version=core.version, accepted=core.accepted)
    return core


def parts_of(
    initial: Parameters,
    frozen: Collection[str] | Mapping[str, bool],
    strategy: Strategy[Any],
    training: TrainingConfig,
    downlink: DownlinkSettings | None,
) -> tuple[Parameters, FrozenParts | None]:
    """Return the tensors of a new run that move, and its frozen part with the schedule of [training] unfreeze.

    Raises AppError or ConfigError if they do not fit the model or the strategy.
    """
    parameters, part = split_off(initial, frozen)
    fixed = initial.non_trainable
    flags = frozen if isinstance(frozen, Mapping) else {name: name not in fixed for name in initial if name in frozen}
    parts = scheduled(part, flags, unfreezing(training))
    if parts is not None and parts.schedule:
        task_model(downlink, check_growth(strategy, parameters, parts))
    return parameters, parts


def whole(parameters: Parameters, parts: FrozenParts | None, version: int) -> Parameters:
    """Return the whole model of a version."""
    return parameters if parts is None else parts.whole(version, parameters)


def _refuse_checkpoints_without_a_ledger(folder: RunFolder, files: CheckpointFiles) -> None:
    """Raise LedgerError if the folder had a run. A new one in it would remove what is left of the old one's model."""
    found = files.newest_of_a_run()
    if found is not None:
        raise LedgerError(
            f"{folder.ledger} knows no run, but there are checkpoints of one, {found} the newest: the ledger was lost "
            "or emptied. Put it back from a backup, ledger.sqlite-wal with it if there is one. To begin anew, move "
            f"{folder.path} away, or choose another run_id"
        )


def drawn_names() -> TaskNames:
    """Return what a start of a coordinator draws for the names of its tasks."""
    return TaskNames("", key=secrets.token_hex(16), nonce=secrets.token_hex(NONCE_CHARS // 2))


def _load(folder: RunFolder, ledger: Ledger, commit: CommitSettings, strategy: Strategy[Any]) -> Snapshot:
    row, run = ledger.checkpoints()[0], ledger.run()
    files = CheckpointFiles.of(folder, commit, run.run_id, run.run_uid)
    files.prepare()
    try:
        arrays = files.read(row, CheckpointFiles.of_run(folder, run)).arrays
    except CheckpointError as error:
        arrays = _rebuild(folder, ledger, files, strategy, error)
    memories = {
        f"strategy/{MEMORY}{participant_id}/{tensor}": array
        for participant_id, remembered in ledger.memories().items()
        for tensor, array in remembered.items()
    }
    return Snapshot(arrays | memories, row.scalars)


def committed_parameters(folder: RunFolder, ledger: LedgerReader) -> Parameters:
    """Return the parameters of a run's newest checkpoint, and change nothing. Raises CheckpointError."""
    row, run = ledger.checkpoints()[0], ledger.run()
    errors: list[CheckpointError] = []
    files = CheckpointFiles.of_run(folder, run)
    for path in files.places(row.file, newest=True):
        try:
            arrays = checkpoint.read(path, row.digest).arrays
        except CheckpointError as error:
            errors.append(error)
            continue
        moving = parameters_in(Snapshot(arrays, row.scalars))
        return whole(moving, frozen_in(files, row.scalars, mend=False), row.scalars["version"])
    raise errors[0]


def _rebuild(
    folder: RunFolder, ledger: Ledger, files: CheckpointFiles, strategy: Strategy[Any], error: CheckpointError
) -> dict[str, Array]:
    """Return the newest state, made from the archive. Raises CheckpointError, which says what is lost, if it cannot."""
    row, *older_rows = ledger.checkpoints()
    found = rebuilt(folder, ledger, strategy, frozen_in(files, row.scalars) if "unfreeze" in row.scalars else None)
    if found is None:
        older = ", ".join(f"{r.file} (version {r.version}, {r.accepted} updates)" for r in older_rows) or "none"
        raise CheckpointError(
            f"{error} It holds version {row.version} with {row.accepted} updates; older checkpoints lack updates that "
            f"were acked since, and no archive has them: {older}"
        ) from error
    arrays, source = found
    log.error(
        "checkpoint_rebuilt", version=row.version, source=source,
        detail=f"{checkpoint.fault_of(error)}; its state was made again, the same bit for bit, and the run goes on",
    )  # fmt: skip
    try:
        files.write(row.file, arrays, checkpoint_meta(row.accepted, row.version))
    except OSError as refused:
        log.warning("checkpoint_not_mended", error=refused, detail="the next commit writes one")
    return arrays


def settings_of(  # noqa: PLR0917
    run: RunSettings,
    strategy: Strategy[Any],
    training: TrainingConfig,
    commit: CommitSettings,
    uplink: Uplink | None = None,
    downlink: DownlinkSettings | None = None,
) -> dict[str, Any]:
    """Return the settings in the form in which the ledger keeps them."""
    asked = to_jsonable_python(training)
    if not unfreezing(training):  # a ledger of an older fedmq does not have the key
        asked.pop("unfreeze", None)
    return {
        "run": to_jsonable_python(run),
        "strategy": {"type": type(strategy).__qualname__, **_hyper_parameters(strategy)},
        "training": asked,
        "commit": to_jsonable_python(commit),
        "uplink": to_jsonable_python(uplink),
        "downlink": to_jsonable_python(downlink or DownlinkSettings()),
    }


def _hyper_parameters(strategy: Strategy[Any]) -> dict[str, Any]:
    """Return all fields by name. Pydantic forgets those that a plain dataclass adds to one of its own."""
    return {f.name: to_jsonable_python(getattr(strategy, f.name)) for f in fields(strategy)}  # type: ignore[arg-type]


def refuse_changes(old: Mapping[str, Any], new: Mapping[str, Any], folder: RunFolder) -> None:
    """Raise ConfigError if a setting that a run keeps for life has changed since it began.

    A buffer may be given a timeout: no version so far was made by one, so a replay has nothing to mistake.
    """
    pairs = {f"run.{name}": (old["run"].get(name), new["run"].get(name)) for name in FIXED_RUN_SETTINGS}
    plain = to_jsonable_python(DownlinkSettings())  # a ledger of an older fedmq does not have the table
    was = {**plain, **old.get("downlink", {})}
    pairs |= {f"downlink.{key}": (was[key], new["downlink"][key]) for key in FIXED_DOWNLINK_SETTINGS}
    for table in ("strategy", "training"):
        names = [*new[table], *(name for name in old[table] if name not in new[table])]
        pairs |= {f"{table}.{name}": (old[table].get(name), new[table].get(name)) for name in names}
    if old["strategy"].get("buffer_timeout_s") is None and new["strategy"].get("buffer_timeout_s") is not None:
        del pairs["strategy.buffer_timeout_s"]
        pairs.pop("strategy.min_updates", None)
    changed = [f"{name} was {was!r} and is now {now!r}" for name, (was, now) in pairs.items() if was != now]
    if changed:
        raise ConfigError(
            f"the run in {folder.path} began with other settings: {'; '.join(changed)}. "
            "Set them back to continue it, or choose another run_id for a new run"
        )


def tell_of_another_run(transport: Transport, queue: str) -> None:
    """Warn of updates that wait before the run begins. Nothing depends on it, so a broker that does not tell ends
    nothing."""
    try:
        waiting = transport.depth(queue)
    except BrokerError as error:
        log.info("waiting_updates_unknown", queue=queue, detail=error)
        return
    if waiting:
        log.warning("updates_of_another_run", queue=queue, waiting=waiting, detail=_NOT_OURS)
