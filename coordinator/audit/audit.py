"""The audit of a run: its ledger and checkpoints must agree with each other. `explain` says what made one version.

Weights can be checked without payloads. The ledger's rows go through the run's own strategy over a model of one number.
This gives the same weights as the real model, because they follow from staleness, client weights and counts. Two cases
are reported as left out: `port` compares payloads, and a user's own strategy is not known here.

The parameters can be checked only with the payloads. If the run has an archive, the payloads are replayed
(replay_check.py). If it has none, the checkpoints' digests show that nobody has altered them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from fedmq.coordinator.audit import groups as audit_groups
from fedmq.coordinator.audit.replay_check import Kept, stretches
from fedmq.coordinator.audit.timeouts import other_moments
from fedmq.coordinator.decisions.failures import DROPPED, Drop, drops_in
from fedmq.coordinator.decisions.tasks.generations import set_backs_in
from fedmq.coordinator.decisions.versions.model import dropped
from fedmq.coordinator.state import checkpoint
from fedmq.coordinator.state.checkpoint_files import CheckpointFiles
from fedmq.coordinator.state.frozen_file import check_frozen, read_frozen
from fedmq.coordinator.state.ledger.forms import PLAIN, Forms
from fedmq.coordinator.state.ledger.reader import LedgerReader
from fedmq.coordinator.state.ledger.rows import MOST_DISCARD_ROWS, UpdateRow, VersionRow
from fedmq.coordinator.state.ledger.traffic import NO_MODELS, ModelBytes
from fedmq.coordinator.state.ledger.trust import believed
from fedmq.coordinator.state.run_folder import RunFolder
from fedmq.coordinator.strategies import AnyStrategy
from fedmq.coordinator.strategies.protocol import ClientUpdate, Strategy, arrivals, buffer_timeout
from fedmq.schemas.errors import CheckpointError, LedgerError
from fedmq.schemas.messages import update_id
from fedmq.schemas.methods import METHODS
from fedmq.schemas.parameters import Parameters

BY_PAYLOAD = ("port",)
"""Strategies whose weights depend on what the updates carry."""
NO_ARCHIVE = "their tensors are not kept: the run has no [archive] table"
_MOST_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one check: `wrong` is empty if it holds; `left_out` says why it was not made."""

    name: str
    wrong: tuple[str, ...] = ()
    left_out: str = ""

    @property
    def holds(self) -> bool:
        return not self.wrong


@dataclass(frozen=True, slots=True)
class Explanation:
    """The updates that made a version, and its metrics."""

    point: VersionRow
    updates: tuple[UpdateRow, ...]
    metrics: Mapping[str, float]
    """Metrics of the version's central evaluation; empty if there was none."""
    lost: tuple[Drop, ...] = ()
    """Buffers that were lost on the way to this version: accepted updates that were discarded after all."""
    forms: Forms = PLAIN
    """Forms in which models travel in the run, and updates since the coordinator's last start."""
    models: ModelBytes = NO_MODELS
    """Bytes of this version's model in the stream, and of the tasks that refer to it."""

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        told = asdict(self)
        del told["forms"]
        return told | self.forms.to_json()


def explain(ledger: LedgerReader, version: int) -> Explanation:
    """Return the updates, with staleness and weights, that made this version. Raises LedgerError if it is not there."""
    with believed(ledger.path), ledger.at_one_moment():
        points = [point for point in ledger.versions(version - 1) if point.version == version]
        if not points:
            newest = ledger.version()
            there = f"it has versions 1 to {newest}" if newest else "it has made none yet"
            raise LedgerError(f"the run in {ledger.path.parent} has no version {version} made of updates: {there}")
        metrics = [row.metrics for row in ledger.evaluations() if row.version == version and row.metrics]
        lost = tuple(
            drop for drop in drops_in(ledger.checkpoints()[0].scalars) if drop.count and drop.version == version - 1
        )
        forms = Forms.of(ledger.run().settings)
        made_of, measured = tuple(ledger.updates_in(version)), metrics[-1] if metrics else {}
        return Explanation(points[0], made_of, measured, lost, forms, ledger.bytes_of_models(version))


def verify(folder: RunFolder, strategy: Strategy[Any] | None = None, *, replay: bool = True) -> list[Check]:
    """Make all checks of a run that are possible, also while it goes on. Raises LedgerError if it cannot be read.

    A replay needs `strategy` if the run has a user's own one. `replay=False` leaves the replay out.
    """
    with LedgerReader(folder.ledger) as ledger:
        with believed(ledger.path), ledger.at_one_moment():
            rows, points = ledger.updates(), ledger.versions()
            run, lost = ledger.run(), Lost.of(ledger, rows)
            checks = [
                Check("orders and versions without gaps", tuple(_gaps(rows, points, lost))),
                Check("each update once, for its own task", tuple(_identities(ledger, run.run_id, rows, lost))),
                Check("staleness follows from the versions", tuple(_staleness(rows, ledger.version(), lost))),
                _weights(run.settings["strategy"], rows, lost),
                Check("the newest checkpoint holds all of it", tuple(_newest_state(ledger, rows, lost))),
            ]
            checks += _timeouts(run.settings["strategy"], rows, points)
            checks += _discards(ledger)
            checks += _sizes(ledger, rows)
            checks += [Check(_told(drop)) for drop in lost.drops]
            checks += [Check(one.told()) for one in set_backs_in(ledger.checkpoints()[0].scalars)]
            if sum(drop.count for drop in lost.drops) != len(lost.ids):
                wrong = f"the state says {sum(drop.count for drop in lost.drops)}, the ledger {len(lost.ids)}"
                checks.append(Check("updates of lost buffers are discarded", (wrong,)))
            kept = Kept.of(ledger, rows)
        with believed(ledger.path):
            checks += _files(folder, ledger)
            of_the_run = built_in(run.settings["strategy"])
        if replay and strategy is not None:  # a mistake in a user's strategy is no mistake in the ledger
            checks += _replayed(folder, ledger, kept, strategy)
        elif replay:
            with believed(ledger.path):
                checks += _replayed(folder, ledger, kept, of_the_run)
        return checks


def _sizes(ledger: LedgerReader, rows: Sequence[UpdateRow]) -> Iterator[Check]:
    """Look for accepted updates without their bytes, from the first one whose bytes were counted."""
    counted = ledger.counted_orders()
    if not counted:
        return
    accepted = {row.accepted_order for row in rows if row.accepted_order >= counted[0]}
    wrong = tuple(f"update {order}" for order in sorted(accepted.symmetric_difference(counted)))
    yield Check("the bytes of each update are counted once", wrong)


def _discards(ledger: LedgerReader) -> Iterator[Check]:
    """Compare the counts of discarded updates with their rows, which are fewer after a flood."""
    counts, rows = ledger.discarded(), ledger.discard_rows()
    wrong = tuple(
        f"{rows.get(reason, 0)} rows of {reason}, the state counts {counts.get(reason, 0)}"
        for reason in sorted(counts.keys() | rows.keys())
        if not min(counts.get(reason, 0), MOST_DISCARD_ROWS) <= rows.get(reason, 0) <= counts.get(reason, 0)
    )
    yield Check("discarded updates are counted", wrong)
    without = {reason: count - rows.get(reason, 0) for reason, count in counts.items()}
    few = ", ".join(f"{number} {reason}" for reason, number in without.items() if number > 0)
    if few and not wrong:
        why = f"there are {few} beyond the first {MOST_DISCARD_ROWS} of a reason, which are counted and have no rows"
        yield Check("each discarded update is told", left_out=why)


def _told(drop: Drop) -> str:
    if drop.anew and not drop.count:
        return f"the method began anew after update {drop.accepted} and version {drop.version}: {drop.reason}"
    return (
        f"{drop.count} accepted updates up to number {drop.accepted} were discarded after version {drop.version}: "
        f"{drop.reason}"
    )


@dataclass(frozen=True, slots=True)
class Lost:
    """Updates that were accepted, and then discarded with the buffer of a version that failed."""

    ids: frozenset[str]
    drops: tuple[Drop, ...]

    @classmethod
    def of(cls, ledger: LedgerReader, rows: list[UpdateRow]) -> Lost:
        """Read them from a ledger. `rows` are its accepted updates."""
        discarded = {uid for uid, reason in ledger.discarded_updates() if reason in DROPPED}
        ids = frozenset(row.update_id for row in rows if row.version is None and row.update_id in discarded)
        return cls(ids, tuple(drops_in(ledger.checkpoints()[0].scalars)))

    def at(self, accepted: int, version: int) -> Iterator[Drop]:
        """Yield the drops between this update and whatever came next."""
        return (drop for drop in self.drops if (drop.accepted, drop.version) == (accepted, version))

    def met(self, row: UpdateRow) -> int:
        """Return the version that was current when this update was lost."""
        return next((drop.version for drop in self.drops if drop.accepted >= row.accepted_order), -1)

    def others(self, rows: list[UpdateRow]) -> list[UpdateRow]:
        """Return the updates that were not lost."""
        return [row for row in rows if row.update_id not in self.ids] if self.ids else rows


def _gaps(rows: list[UpdateRow], points: list[VersionRow], lost: Lost) -> Iterator[str]:
    for at, row in enumerate(rows, start=1):
        if row.accepted_order != at:
            yield f"update {row.update_id} is number {row.accepted_order}, expected {at}"
            break
    for at, point in enumerate(points, start=1):
        if point.version != at:
            yield f"after version {at - 1} comes {point.version}"
            break
    found = Counter(row.version for row in rows)
    found.pop(None, None)
    for point in points:
        if found.pop(point.version, 0) != point.num_updates:
            yield f"version {point.version} was made of {point.num_updates} updates, the ledger holds others"
    for version, count in found.items():
        yield f"{count} updates are in version {version}, which was never made"
    if audit_groups.has_groups(rows):
        yield from audit_groups.other_versions(lost.others(rows))
        return
    in_order = [math.inf if row.version is None else row.version for row in lost.others(rows)]
    if in_order != sorted(in_order):
        yield "updates are in other versions than the order of their acceptance gives"


def _identities(ledger: LedgerReader, run_id: str, rows: list[UpdateRow], lost: Lost) -> Iterator[str]:
    tasks = {task.task_id: task for task in ledger.accepted_tasks()}
    for row in rows:
        if row.update_id != update_id(run_id, row.task_id, row.participant_id):
            yield f"update {row.update_id} is not the one of task {row.task_id} and {row.participant_id}"
        task = tasks.pop(row.task_id, None)
        if task is None or (task.participant_id, task.base_version) != (row.participant_id, row.base_version):
            yield f"update {row.update_id}: task {row.task_id} was not closed by it"
    yield from (f"task {task_id} is closed as accepted, and no update of it is" for task_id in tasks)
    accepted = {row.update_id for row in rows}
    for uid, reason, task_id, participant_id in ledger.discard_claims():
        # Anybody may put another one's update_id into an update. Then it does not follow from the other ids.
        its_own = uid == update_id(run_id, task_id, participant_id)
        if uid in accepted and its_own and reason != "duplicate" and uid not in lost.ids:
            yield f"update {uid} was accepted, and discarded as {reason}"


def _staleness(rows: list[UpdateRow], newest: int, lost: Lost) -> Iterator[str]:
    if audit_groups.has_groups(rows):
        yield from audit_groups.other_staleness(rows, newest)
        return
    for row in rows:
        current = newest if row.version is None else row.version - 1
        if row.update_id in lost.ids:
            current = lost.met(row)
        if row.staleness != current - row.base_version:
            yield f"update {row.update_id} has staleness {row.staleness}, {current} - {row.base_version} expected"


def _weights(settings: Mapping[str, Any], rows: list[UpdateRow], lost: Lost) -> Check:
    name = "weights follow from the strategy"
    if settings.get("name") in BY_PAYLOAD:
        return Check(name, left_out=f"{settings['name']} weighs by the payloads")
    strategy = built_in(settings)
    if strategy is None:
        return Check(name, left_out=f"{settings.get('type')} is a user's own strategy")
    return Check(name, tuple(_other_weights(strategy, rows, lost)))


def _timeouts(settings: Mapping[str, Any], rows: list[UpdateRow], points: list[VersionRow]) -> Iterator[Check]:
    """Check the versions of a run whose buffer has a timeout, or whose ledger says that a timeout made one."""
    strategy = built_in(settings)
    timed = any(point.by_timeout for point in points)
    if strategy is not None and (timed or buffer_timeout(strategy) is not None):
        yield Check("versions by a timeout follow from its time", tuple(other_moments(strategy, rows, points)))


def built_in(settings: Mapping[str, Any]) -> Strategy[Any] | None:
    """Return the run's strategy; None if it is a user's own."""
    fields = {key: value for key, value in settings.items() if key != "type"}
    try:
        strategy: Strategy[Any] = TypeAdapter(AnyStrategy).validate_python(fields)
    except ValidationError:
        return None
    return strategy if type(strategy).__qualname__ == settings.get("type") else None


def _replayed(folder: RunFolder, ledger: LedgerReader, kept: Kept, strategy: Strategy[Any] | None) -> Iterator[Check]:
    name = "the updates make the versions"
    if not kept.bases:
        yield Check(name, left_out=NO_ARCHIVE)
        return
    if strategy is None:
        yield Check(name, left_out="the strategy is a user's own: name its federation file with --config")
        return
    for found in stretches(folder, ledger, kept, strategy):
        which = f"updates {found.first} to {found.last}"
        if found.wrong:
            yield Check(f"{which} were replayed", (found.wrong,))
        elif found.why_not:
            yield Check(f"{which} were replayed", left_out=found.why_not)
        else:
            what = f"make {found.versions} versions and {found.states} committed states, bit for bit"
            yield Check(f"{which} {what}" if found.last >= found.first else "the archive begins with the newest state")


def _other_weights(strategy: Strategy[Any], rows: list[UpdateRow], lost: Lost) -> Iterator[str]:
    if arrivals(strategy) is not None:
        yield from audit_groups.other_weights(strategy, rows, lambda row: _over_one_number(row, strategy), lost.at)
        return
    parameters = Parameters({"one": np.zeros(1, np.float32)})
    state = strategy.init(parameters)
    group: list[UpdateRow] = []
    version = 0
    for at, row in enumerate(rows):
        if row.version is None and row.update_id not in lost.ids:
            return
        state = strategy.accumulate(state, _over_one_number(row, strategy), row.staleness)
        group.append(row)
        if row.version is None:
            for drop in lost.at(row.accepted_order, version):
                state, group = dropped(strategy, state, parameters, drop), []
            continue
        version = row.version
        if at + 1 == len(rows) or rows[at + 1].version != row.version:
            for made, weight in zip(group, strategy.weights(state), strict=True):
                if made.weight != weight:
                    yield f"update {made.update_id} has weight {made.weight} in version {made.version}, not {weight}"
            state, parameters = strategy.aggregate(state, parameters)
            group = []


def _over_one_number(row: UpdateRow, strategy: Strategy[Any]) -> ClientUpdate:
    zero = Parameters({"one": np.zeros(1, np.float32)})
    return ClientUpdate(
        update_id=row.update_id,
        participant_id=row.participant_id,
        base_version=row.base_version,
        payload=zero,
        beside=dict.fromkeys(METHODS[strategy.reply].update, zero),
        num_examples=row.num_examples,
        num_steps=row.num_steps,
        metrics=row.metrics,
        client_weight=row.client_weight,
        train_s=row.train_s,
        group=row.arrival_group,
    )


def _newest_state(ledger: LedgerReader, rows: list[UpdateRow], lost: Lost) -> Iterator[str]:
    state = ledger.checkpoints()[0]
    expected = (ledger.version(), len(rows))
    row, scalars = (state.version, state.accepted), (state.scalars["version"], state.scalars["accepted"])
    for what, found in (("row", row), ("state", scalars)):
        if found != expected:
            yield f"its {what} has (version, updates) {found}, the ledger {expected}"
    buffered = [row.update_id for row in lost.others(rows) if row.version is None]
    if list(state.scalars["buffer_ids"]) != buffered:
        yield f"its buffer holds {len(state.scalars['buffer_ids'])} updates, the ledger {len(buffered)} without version"


def _files(folder: RunFolder, ledger: LedgerReader) -> Iterator[Check]:
    files = CheckpointFiles.of_run(folder, ledger.run())
    newest: dict[str, Any] = {}
    rows = ledger.checkpoints()
    for row in rows:
        places = files.places(row.file, newest=row is rows[0])
        for place in places:
            name = f"checkpoint {row.file}" + (", its copy" if place is not places[0] else "")
            try:
                found = checkpoint.read(place, row.digest)
            except CheckpointError as error:
                now = ledger.checkpoints()  # a running coordinator removes older files
                if now[0].seq == row.seq or (place is places[0] and row.seq in {one.seq for one in now}):
                    yield Check(name, (str(error),))
                continue
            newest = newest or dict(found.arrays)
            yield Check(name)
    frozen = rows[0].scalars.get("frozen")
    if frozen is not None:
        wrong = tuple(map(str, check_frozen(files, frozen)))
        yield Check("the model's frozen part", wrong)
        if wrong:
            return
        part = read_frozen(files, frozen, mend=False).by_name
        newest = newest and {f"parameters/{name}": array for name, array in part.items()} | newest
    if folder.final_parameters.exists() and newest:
        yield Check("the final model is the newest checkpoint's", tuple(_final(folder, newest)))


def _final(folder: RunFolder, newest: Mapping[str, Any]) -> Iterator[str]:
    try:
        final = checkpoint.read(folder.final_parameters).arrays
    except CheckpointError as error:
        yield str(error)
        return
    for name, array in final.items():
        same = newest.get(f"parameters/{name}")
        if same is None or same.tobytes() != array.tobytes():
            yield f"tensor {name!r} differs"


def shown(check: Check) -> str:
    """Describe what is wrong for a person: the first few findings."""
    more = len(check.wrong) - _MOST_SHOWN
    return "; ".join(check.wrong[:_MOST_SHOWN]) + (f"; and {more} more" if more > 0 else "")
