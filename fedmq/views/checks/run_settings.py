"""The doctor's findings on settings that a coordinator takes, and with which a run stands still or makes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fedmq.config.file import FederationConfig
from fedmq.coordinator.decisions.requirements import unmet
from fedmq.coordinator.decisions.versions.rounds import asked
from fedmq.coordinator.settings import RunSettings
from fedmq.coordinator.strategies.protocol import Strategy, arrivals, max_participants
from fedmq.schemas.errors import ConfigError
from fedmq.views.finding import Finding


def look(config: FederationConfig, strategy: Strategy[Any]) -> Iterator[Finding]:
    """Yield what is wrong with the settings of this run and this strategy together."""
    wrong = [
        *unmet(config.run.client_weights, strategy, config.training, config.run.steps),
        *_too_few(config.run, strategy),
        *_versionless(config.run, strategy),
        *_away(config),
    ]
    for place, text in wrong:
        yield Finding("wrong", f"{place}: {text}", "correct it in the federation file", ConfigError(f"{place}: {text}"))
    room = max_participants(strategy)
    if room is not None and not wrong:
        what = f"places: {strategy.name} has room for {room} participants, and counts on all of them"
        yield Finding("ok", f"{what}: further ones get no tasks")


def _too_few(run: RunSettings, strategy: Strategy[Any]) -> Iterator[tuple[str, str]]:
    """Find limits that keep participants away that the strategy needs."""
    number = getattr(strategy, "num_participants", None)
    if arrivals(strategy) is not None and isinstance(number, int) and run.concurrency < number:
        yield (
            "run.concurrency",
            f"got {run.concurrency}, expected {number} or more: {strategy.name} divides by num_participants = "
            f"{number}, and only those with a task out are in its groups",
        )
    room = max_participants(strategy) or (number if isinstance(number, int) else None)
    if room is not None and run.max_participants < room:
        text = f"got {run.max_participants}, expected {room} or more: {strategy.name} counts on so many participants"
        yield "run.max_participants", text
    places = max_participants(strategy)
    if places is not None and run.min_participants > places:
        yield (
            "run.min_participants",
            f"got {run.min_participants}, expected {places} or less: {strategy.name} has room for "
            f"num_participants = {places}",
        )
    cohort = strategy.cohort
    if cohort is not None and run.max_participants < max(cohort.min_updates, 1):
        text = f"got {run.max_participants}, expected {asked(cohort)} or more: a round takes {cohort.min_updates}"
        yield "run.max_participants", f"{text} updates at least, and asks {asked(cohort)} participants"


def _versionless(run: RunSettings, strategy: Strategy[Any]) -> Iterator[tuple[str, str]]:
    """Find runs that end before their first version: their model would be the initial one."""
    by_time = getattr(strategy, "buffer_timeout_s", None) is not None
    key = "min_updates" if by_time else "buffer_size"
    size, most = getattr(strategy, key, None), run.stop.max_updates
    if isinstance(size, int) and most is not None and size > most:
        yield (
            f"strategy.{key}",
            f"got {size}, and the run ends after run.stop.max_updates = {most}: no version is made",
        )


def _away(config: FederationConfig) -> Iterator[tuple[str, str]]:
    """Find hellos that are so rare that participants seem to be away between them."""
    run, interval_s = config.run, config.participant.hello_interval_s
    if interval_s >= run.participant_timeout_s:
        yield (
            "participant.hello_interval_s",
            f"got {interval_s:g}, expected less than run.participant_timeout_s = {run.participant_timeout_s:g}: "
            "between two hellos a participant would be away, and get no tasks",
        )
