"""The ledger's order through the pure strategy again: what the archived updates make, bit for bit.

    state = the model and the strategy's state that a base or a checkpoint holds
    for each accepted update after it, in the ledger's order:
        accumulate(state, update, staleness), with the staleness and the client weight that the ledger has
        where the ledger begins the next version: aggregate(state, parameters)

With arrival groups it is close_group(state, group) before that, and a version comes where the next update's base
version and staleness say that it met it: what a version holds need not be what was accepted last.

Nothing here decides: neither the time nor the buffer is asked, only the ledger. So what comes out is what the ledger
claims, and the digests of the commits (`states`) say whether that is what was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fedmq.coordinator.decisions.model import Model
from fedmq.coordinator.decisions.records import Snapshot
from fedmq.coordinator.state import archive, checkpoint
from fedmq.coordinator.state.ledger.reader import LedgerReader
from fedmq.coordinator.state.ledger.rows import Base, CheckpointRow, UpdateRow
from fedmq.coordinator.state.run_folder import RunFolder
from fedmq.coordinator.strategies.protocol import RemembersParticipants, Strategy, arrivals
from fedmq.schemas.errors import CheckpointError
from fedmq.schemas.methods import METHODS
from fedmq.schemas.parameters import Array, Parameters

PayloadOf = Callable[[int], Parameters]
"""An accepted update's tensors, by its order. Raises CheckpointError where they are damaged or gone."""


@dataclass(frozen=True, slots=True)
class Point:
    """A state on the way. The arrays are live: compare or copy them before the next one is asked for."""

    accepted: int
    version: int
    model: Model
    weights: tuple[float, ...] = ()
    """Of the updates that made the version, just after it was made."""

    def arrays(self) -> dict[str, Array]:
        """As its checkpoint has them."""
        return self.model.arrays()

    def digest(self) -> str:
        """Its checkpoint's, if it has one."""
        return checkpoint.digest_of(self.arrays(), checkpoint_meta(self.accepted, self.version))


def checkpoint_meta(accepted: int, version: int) -> dict[str, Any]:
    """What a commit writes beside the arrays."""
    return {"version": version, "accepted": accepted}


def replay(
    strategy: Strategy[Any],
    snapshot: Snapshot,
    rows: Sequence[UpdateRow],
    payload_of: PayloadOf,
    up_to: int | None = None,
) -> Iterator[Point]:
    """Every state from the snapshot's on, until `up_to` updates are inside. `rows`: all of the run's accepted updates,
    from the first."""
    accepted, version = snapshot.scalars["accepted"], snapshot.scalars["version"]
    model = Model.restore(strategy, snapshot)
    remembers = METHODS[strategy.reply].remembers
    heard = {row.participant_id for row in rows[:accepted]} if remembers else set()
    groups = groups_of(rows)
    weights: tuple[float, ...] = ()
    while True:
        yield Point(accepted, version, model, weights)
        weights = ()
        if accepted and version_follows(strategy, rows, accepted, version):
            version += 1
            try:
                weights = model.make_version(groups.get(version))
            except ValueError as error:
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
    """Whether the version after this one comes before the next update. At least one was accepted."""
    following = None if accepted == len(rows) else rows[accepted]
    if arrivals(strategy) is None:
        return rows[accepted - 1].version == version + 1 != (None if following is None else following.version)
    if following is None:
        return any(row.version == version + 1 for row in rows)
    return following.base_version + following.staleness > version


def groups_of(rows: Iterable[UpdateRow]) -> dict[int, int]:
    """version -> the arrival group that made it, where there are any."""
    return {row.version: row.arrival_group for row in rows if row.version is not None and row.arrival_group is not None}


def payloads(folder: RunFolder, ledger: LedgerReader, after: int, up_to: int) -> PayloadOf | None:
    """Of the archive; None where it has not all of these updates."""
    found = {row.accepted_order: row for row in ledger.archived(after, up_to)}
    if len(found) < up_to - after:
        return None
    return lambda order: archive.read_update(folder.archive, found[order])


def rebuilt(folder: RunFolder, ledger: LedgerReader, strategy: Strategy[Any]) -> tuple[dict[str, Array], str] | None:
    """The arrays of the newest state from an older one and the archive, and from where; None where the archive does
    not have all that was accepted since, or where what comes out is not the state that the ledger names."""
    newest, *older = ledger.checkpoints()
    rows = ledger.updates()
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
            for point in replay(strategy, snapshot, rows, payload_of):
                if (point.accepted, point.version) == (newest.accepted, newest.version):
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
    # What is remembered of participants is in the ledger, as of the newest checkpoint and of no older one.
    state = Model.restore(strategy, snapshot).state
    return None if isinstance(state, RemembersParticipants) else snapshot
