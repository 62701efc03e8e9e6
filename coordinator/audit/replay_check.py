"""The part of `fedmq verify` that needs the archive: do the kept updates make the models that the ledger claims?

The ledger keeps every commit's digest of the whole state. Each of these states is compared with the replay's state at
that point, and each version's weights with the ledger's. Versions between two commits have no digest of their own: it
would cost a pass over the model for every version, and FedAsync makes a version of each update. The next commit's
digest proves them, because a wrong version leads to a wrong state.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedmq.coordinator.audit.replay import DistilledVersions, Point, replay
from fedmq.coordinator.decisions.failures import Drop, drops_in
from fedmq.coordinator.state import archive
from fedmq.coordinator.state.checkpoint_files import CheckpointFiles
from fedmq.coordinator.state.frozen_file import frozen_in
from fedmq.coordinator.state.ledger.reader import LedgerReader
from fedmq.coordinator.state.ledger.rows import ArchivedUpdate, Base, UpdateRow
from fedmq.coordinator.state.run_folder import RunFolder
from fedmq.coordinator.strategies.protocol import Strategy
from fedmq.schemas.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class Kept:
    """The parts of the ledger that a replay needs, read at one moment."""

    rows: Sequence[UpdateRow]
    states: Mapping[tuple[int, int], str]
    bases: Sequence[Base]
    archived: Mapping[int, ArchivedUpdate]
    weights: Mapping[int, list[float | None]]
    """Weights of the updates in each version."""
    drops: Sequence[Drop] = ()
    """Buffers that were lost."""
    scalars: Mapping[str, Any] = field(default_factory=dict)
    """Scalars of the newest checkpoint."""
    distilled: DistilledVersions = field(default_factory=lambda: DistilledVersions({}, {}))

    @classmethod
    def of(cls, ledger: LedgerReader, rows: Sequence[UpdateRow]) -> Kept:
        archived = {row.accepted_order: row for row in ledger.archived(0, len(rows))}
        weights: dict[int, list[float | None]] = {}
        for row in rows:
            if row.version is not None:
                weights.setdefault(row.version, []).append(row.weight)
        scalars, distilled = ledger.checkpoints()[0].scalars, DistilledVersions.of(ledger)
        return cls(rows, ledger.states(), ledger.bases(), archived, weights, drops_in(scalars), scalars, distilled)


@dataclass(slots=True)
class Stretch:
    """The result for the updates `first` to `last`. `why_not` says why they could not be replayed."""

    first: int
    last: int
    versions: int = 0
    states: int = 0
    """Number of states that were equal to the ledger's, bit for bit."""
    wrong: str = ""
    why_not: str = ""


def stretches(folder: RunFolder, ledger: LedgerReader, kept: Kept, strategy: Strategy[Any]) -> Iterator[Stretch]:
    """Replay all accepted updates, in order, and yield a result for each stretch of them."""
    done = 0
    why_not = "their tensors are not kept any more"
    for base in kept.bases:
        if base.accepted < done or (base.accepted == done and done and not why_not):
            continue
        if base.accepted > done:
            yield Stretch(done + 1, base.accepted, why_not=why_not)
            done = base.accepted
        found = _from_base(folder, ledger, kept, base, strategy)
        why_not = "their tensors are not kept"
        if found.wrong and base.accepted not in {now.accepted for now in ledger.bases()}:
            found.wrong, found.why_not = "", "the running coordinator has removed them meanwhile"
        if found.wrong:
            why_not = "the updates before them are damaged"
        yield found
        done = found.last
    if done < len(kept.rows):
        yield Stretch(done + 1, len(kept.rows), why_not=why_not)


def _from_base(folder: RunFolder, ledger: LedgerReader, kept: Kept, base: Base, strategy: Strategy[Any]) -> Stretch:
    up_to = base.accepted
    while up_to + 1 in kept.archived:
        up_to += 1
    found = Stretch(base.accepted + 1, base.accepted)
    try:
        grows = "unfreeze" in kept.scalars
        files = CheckpointFiles.of_run(folder, ledger.run())
        points = replay(
            strategy,
            archive.read_base(folder.archive, base),
            kept.rows,
            lambda order: archive.read_update(folder.archive, kept.archived[order]),
            up_to,
            drops=kept.drops,
            frozen=frozen_in(files, kept.scalars, mend=False) if grows else None,
            distilled_of=lambda version: kept.distilled.tensors(folder, version),
        )
        for point in points:
            found.last = point.accepted
            found.wrong = _difference(point, kept)
            if found.wrong:
                return found
            found.versions += bool(point.weights)
            found.states += not point.passing and (point.accepted, point.version) in kept.states
    except CheckpointError as error:
        found.wrong = str(error)
    return found


def _difference(point: Point, kept: Kept) -> str:
    place = f"after update {point.accepted}, version {point.version}, the replay has"
    if point.weights:
        theirs = kept.weights.get(point.version, [])
        if theirs != list(point.weights):
            return f"{place} the weights {point.weights[:3]}..., the ledger {theirs[:3]}..."
    digest = kept.states.get((point.accepted, point.version))
    if digest is not None and not point.passing and point.digest() != digest:
        return f"{place} a state that differs from the committed one"
    return ""
