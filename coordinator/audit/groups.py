"""The audit's checks for strategies with arrival groups, whose versions need not hold the updates that came next.

A group's version may come long after its updates, at the group's latest time. The row of the next update tells that the
version came before it: the row's base version plus its staleness is the version that the update met.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import numpy as np

from fedmq.coordinator.audit.replay import groups_of, version_follows
from fedmq.coordinator.decisions.failures import Drop
from fedmq.coordinator.decisions.versions.model import dropped
from fedmq.coordinator.state.ledger.rows import UpdateRow
from fedmq.coordinator.strategies.protocol import ClientUpdate, Grouped, Strategy
from fedmq.schemas.parameters import Parameters


def has_groups(rows: Sequence[UpdateRow]) -> bool:
    """Return True if an update came in time for an arrival group."""
    return any(row.arrival_group is not None for row in rows)


def other_versions(rows: Sequence[UpdateRow]) -> Iterator[str]:
    """Yield faults in the versions of groups. A group is in one version and a version has one group; late updates are
    in the version that came next."""
    versions: dict[int, set[int | None]] = {}
    groups: dict[int, set[int]] = {}
    late = []
    for row in rows:
        if row.arrival_group is None:
            late.append(math.inf if row.version is None else row.version)
            continue
        versions.setdefault(row.arrival_group, set()).add(row.version)
        if row.version is not None:
            groups.setdefault(row.version, set()).add(row.arrival_group)
    for group, found in versions.items():
        if len(found) > 1:
            yield f"updates of arrival group {group} are in several versions"
    for version, several in groups.items():
        if len(several) > 1:
            yield f"version {version} was made of several arrival groups"
    if late != sorted(late):
        yield "late updates are in other versions than the order of their acceptance gives"


def other_staleness(rows: Sequence[UpdateRow], newest: int) -> Iterator[str]:
    """Yield faults in staleness. Each update met a version that is older than its own, and no older than the versions
    that earlier updates met."""
    before = 0
    for row in rows:
        met, most = row.base_version + row.staleness, newest if row.version is None else row.version - 1
        if not before <= met <= most:
            yield f"update {row.update_id} has staleness {row.staleness}: met {met}, expected {before} to {most}"
        before = max(before, met)


def other_weights(
    strategy: Strategy[Any],
    rows: Sequence[UpdateRow],
    update_of: Callable[[UpdateRow], ClientUpdate],
    lost_at: Callable[[int, int], Iterator[Drop]],
) -> Iterator[str]:
    """Yield faults in the weights, by sending the ledger's updates through the strategy over a model of one number.

    `lost_at(accepted, version)` gives the buffers that were lost there.
    """
    parameters = Parameters({"one": np.zeros(1, np.float32)})
    state, version, groups = strategy.init(parameters), 0, groups_of(rows)
    waiting: dict[int | None, list[UpdateRow]] = {}
    for accepted, row in enumerate(rows, start=1):
        state = strategy.accumulate(state, update_of(row), row.staleness)
        waiting.setdefault(row.version, []).append(row)
        for drop in lost_at(accepted, version):
            state = dropped(strategy, state, parameters, drop)
        while version_follows(strategy, rows, accepted, version):
            version += 1
            held, group = waiting.pop(version, []), groups.get(version)
            if group is None or group not in {one.arrival_group for one in held}:
                yield f"version {version} has no arrival group whose updates came before it"
                return
            state = cast(Grouped[Any], strategy).close_group(state, group)
            weights = strategy.weights(state)
            if len(weights) != len(held):
                yield f"version {version} has {len(weights)} updates by the groups, the ledger has {len(held)}"
                return
            for one, weight in zip(held, weights, strict=True):
                if one.weight != weight:
                    yield f"update {one.update_id} has weight {one.weight} in version {version}, not {weight}"
            state, parameters = strategy.aggregate(state, parameters)
            for drop in lost_at(accepted, version):
                state = dropped(strategy, state, parameters, drop)
