"""The replay: it sends the archived updates through the pure strategy again, in the ledger's order, bit for bit.

    state = the model and the strategy's state that a base or a checkpoint holds
    for each accepted update after it, in the ledger's order:
        accumulate(state, update, staleness), with the staleness and the client weight that the ledger has
        if the ledger begins the next version here: aggregate(state, parameters), or, if it was distilled,
            adopt(state, parameters, its tensors in the archive). Then the tensors join the model that are unfrozen at
            this version
        if the ledger says that the buffer was lost here: drop(state)
        if it says that the method began anew here: init(parameters)

With arrival groups, close_group(state, group) comes before aggregate. A version then comes before the first update that
met it by its base version and staleness, and it need not hold the updates that were accepted last.

Nothing is decided here. Neither the time nor the buffer counts, only the ledger. The result is therefore what the
ledger claims, and the digests of the commits (`states`) show whether it is what happened.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from fedmq.coordinator.decisions.failures import Drop, StrategyFailed, drops_in
from fedmq.coordinator.decisions.records import Snapshot
from fedmq.coordinator.decisions.versions.model import Model
from fedmq.coordinator.decisions.versions.unfreezing import FrozenParts
from fedmq.coordinator.state import archive, checkpoint
from fedmq.coordinator.state.ledger.reader import LedgerReader
from fedmq.coordinator.state.ledger.rows import ArchivedVersion, Base, CheckpointRow, UpdateRow
from fedmq.coordinator.state.run_folder import RunFolder
from fedmq.coordinator.strategies.protocol import Distils, RemembersParticipants, Strategy, arrivals
from fedmq.schemas.errors import CheckpointError
from fedmq.schemas.methods import METHODS
from fedmq.schemas.parameters import Array, Parameters

PayloadOf = Callable[[int], Parameters]
"""Returns an accepted update's tensors, by its order. Raises CheckpointError if they are damaged or gone."""
DistilledOf = Callable[[int], Parameters | None]
"""Returns a distilled version's tensors; None if it is the plain mean. Raises CheckpointError likewise."""


@dataclass(frozen=True, slots=True)
class DistilledVersions:
    """Records of the ledger and the archive about versions of a strategy that distils."""

    plain: Mapping[int, str]
    """Version -> why it is the plain mean; "" if it was distilled."""
    places: Mapping[int, ArchivedVersion]

    @classmethod
    def of(cls, ledger: LedgerReader) -> DistilledVersions:
        return cls(ledger.distillations(), ledger.archived_versions())

    def tensors(self, folder: RunFolder, version: int) -> Parameters | None:
        """Return the tensors of a distilled version; None if it is the plain mean. Raises CheckpointError if they are
        not kept."""
        if self.plain.get(version) != "":
            if version in self.plain:
                return None
            raise CheckpointError(f"the ledger does not say if version {version} was distilled")
        if version not in self.places:
            raise CheckpointError(f"version {version} was distilled, and its tensors are not kept")
        return archive.read_update(folder.archive, self.places[version])


@dataclass(frozen=True, slots=True)
class Point:
    """A state on the way. The arrays are live: compare or copy them before you ask for the next state."""

    accepted: int
    version: int
    model: Model
    weights: tuple[float, ...] = ()
    """Weights of the updates in the version, if it was made just now; otherwise empty."""
    passing: bool = False
    """True if the buffer of this state was lost. The ledger's state of these counts is the one after it."""

    def arrays(self) -> dict[str, Array]:
        """Return the arrays that a checkpoint of this state has."""
        return self.model.arrays()

    def digest(self) -> str:
        """Return the digest that a checkpoint of this state has."""
        return checkpoint.digest_of(self.arrays(), checkpoint_meta(self.accepted, self.version))


def checkpoint_meta(accepted: int, version: int) -> dict[str, Any]:
    """Return the meta values that a commit writes beside the arrays."""
    return {"version": version, "accepted": accepted}


def replay(
    strategy: Strategy[Any],
    snapshot: Snapshot,
    rows: Sequence[UpdateRow],
    payload_of: PayloadOf,
    up_to: int | None = None,
    *,
    drops: Sequence[Drop] = (),
    frozen: FrozenParts | None = None,
    distilled_of: DistilledOf = lambda _: None,
) -> Iterator[Point]:
    """Yield every state from the snapshot's on, until `up_to` updates are inside.

    `rows` are all accepted updates of the run, from the first, and `drops` all buffers that were lost. `frozen` is the
    model's frozen part; only a run with [training] unfreeze needs it. `distilled_of` is asked if the strategy distils.
    """
    accepted, version = snapshot.scalars["accepted"], snapshot.scalars["version"]
    to_come = list(drops[len(snapshot.scalars.get("drops", ())) :])
    model = Model.restore(strategy, snapshot, frozen=frozen)
    remembers = METHODS[strategy.reply].remembers
    anew_at = max((drop.accepted for drop in drops[: len(drops) - len(to_come)] if drop.anew), default=0)
    heard = {row.participant_id for row in rows[anew_at:accepted]} if remembers else set()
    groups = groups_of(rows)
    weights: tuple[float, ...] = ()
    while True:
        lost = bool(to_come) and (to_come[0].accepted, to_come[0].version) == (accepted, version)
        yield Point(accepted, version, model, weights, lost)
        weights = ()
        if lost:
            drop = to_come.pop(0)
            model.drop(drop)
            if drop.anew:
                heard.clear()
        elif accepted and version_follows(strategy, rows, accepted, version):
            version += 1
            try:
                distilled = distilled_of(version) if isinstance(strategy, Distils) else None
                weights = model.make_version(groups.get(version), distilled=distilled)
                model.unfreeze(version)
            except StrategyFailed as error:
                raise CheckpointError(f"version {version} is not of the ledger's updates: {error}") from error
        elif accepted < (len(rows) if up_to is None else up_to):
            row = rows[accepted]
            first = row.participant_id not in heard
            model.accumulate(
                row,
                payload_of(row.accepted_order),
                row.staleness,
                row.client_weight,
                first=first,
                group=row.arrival_group,
            )
            if remembers:
                heard.add(row.participant_id)
            accepted += 1
        else:
            return


def version_follows(strategy: Strategy[Any], rows: Sequence[UpdateRow], accepted: int, version: int) -> bool:
    """Return True if the version after `version` comes before the next update. At least one must be accepted."""
    following = None if accepted == len(rows) else rows[accepted]
    if arrivals(strategy) is None:
        return rows[accepted - 1].version == version + 1 != (None if following is None else following.version)
    if following is None:
        return any(row.version == version + 1 for row in rows)
    return following.base_version + following.staleness > version


def groups_of(rows: Iterable[UpdateRow]) -> dict[int, int]:
    """Return the arrival group that made each version: version -> group, empty without groups."""
    return {row.version: row.arrival_group for row in rows if row.version is not None and row.arrival_group is not None}


def payloads(folder: RunFolder, ledger: LedgerReader, after: int, up_to: int) -> PayloadOf | None:
    """Return the archive's payloads; None if it does not have all of these updates."""
    found = {row.accepted_order: row for row in ledger.archived(after, up_to)}
    if len(found) < up_to - after:
        return None
    return lambda order: archive.read_update(folder.archive, found[order])


def rebuilt(
    folder: RunFolder, ledger: LedgerReader, strategy: Strategy[Any], frozen: FrozenParts | None = None
) -> tuple[dict[str, Array], str] | None:
    """Rebuild the arrays of the newest state from an older one and the archive; also say what they were made from.
    `frozen` is as in `replay`.

    Returns None if the archive does not have all updates that were accepted since, or if the result is not the state
    that the ledger names.
    """
    newest, *older = ledger.checkpoints()
    rows, drops, distilled = ledger.updates(), drops_in(newest.scalars), DistilledVersions.of(ledger)
    starts: list[Base | CheckpointRow] = [*ledger.bases(), *older]
    for start in sorted(starts, key=lambda one: -one.accepted):
        if start.accepted > newest.accepted:
            continue
        payload_of = payloads(folder, ledger, start.accepted, newest.accepted)
        if payload_of is None:
            return None  # an older start would need even more
        try:
            snapshot = _state_of(folder, start, strategy)
            if snapshot is None:
                continue
            made = partial(distilled.tensors, folder)
            points = replay(strategy, snapshot, rows, payload_of, drops=drops, frozen=frozen, distilled_of=made)
            for point in points:
                if (point.accepted, point.version, point.passing) == (newest.accepted, newest.version, False):
                    if point.digest() == newest.digest:
                        return point.arrays(), f"{start.file} and {newest.accepted - start.accepted} archived updates"
                    break
        except CheckpointError:
            continue
    return None


def _state_of(folder: RunFolder, start: Base | CheckpointRow, strategy: Strategy[Any]) -> Snapshot | None:
    if isinstance(start, Base):
        return archive.read_base(folder.archive, start)
    found = checkpoint.read(folder.checkpoints / start.file, start.digest)
    snapshot = Snapshot(found.arrays, start.scalars)
    # The ledger has the strategy's memories of participants as of the newest checkpoint, and of no older one.
    state = Model.restore(strategy, snapshot).state
    return None if isinstance(state, RemembersParticipants) else snapshot
