"""The doctor's findings on a run that its folder has already: can a coordinator go on with it?"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from fedmq.config.file import FederationConfig
from fedmq.coordinator.service.startup import committed_parameters, refuse_changes, settings_of
from fedmq.coordinator.state.ledger.reader import open_if_made
from fedmq.coordinator.state.ledger.trust import believed
from fedmq.coordinator.state.run_folder import RunFolder
from fedmq.coordinator.strategies.protocol import Strategy
from fedmq.schemas.errors import FedmqError
from fedmq.schemas.local.files import check_plain, read_text
from fedmq.schemas.local.locks import FileLock, holders
from fedmq.schemas.parameters import Parameters
from fedmq.views.finding import Finding

MOST_PLACE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class PastRun:
    """The state of the run's folder."""

    finished: str | None = None
    """Reason of its end; None if the run goes on."""
    version: int = 0
    parameters: Parameters | None = None
    """Parameters of its newest version; None if the run is over, or its state could not be read."""


def look(config: FederationConfig, strategy: Strategy[Any] | None) -> tuple[PastRun | None, list[Finding]]:
    """Return the run that the folder has, and what is wrong with it; None if a coordinator would begin a new run."""
    folder = RunFolder(config.run_dir)
    try:
        reader = open_if_made(folder.ledger)
        if reader is None:
            return None, []
        with reader as ledger:
            if ledger.is_new():
                return None, []
            with believed(folder.ledger):
                run = ledger.run()
                if strategy is not None:
                    settings = settings_of(
                        config.run,
                        strategy,
                        config.training,
                        config.commit,
                        config.uplink.order(strategy.reply),
                        config.downlink,
                    )
                    refuse_changes(run.settings, settings, folder)
                if run.finished is not None:
                    return PastRun(run.finished, ledger.version()), [_over(config, run.finished)]
                parameters = committed_parameters(folder, ledger)
                return PastRun(None, ledger.version(), parameters), []
    except FedmqError as error:
        return PastRun(), [
            Finding("wrong", f"run: {error}", "do what the message says, or choose another run_id", error)
        ]


class Held(NamedTuple):
    """A run folder that a coordinator keeps now."""

    place: str
    """Broker and prefix over which it works."""
    holders: str
    """The processes, as they can be seen from here."""


def held(config: FederationConfig) -> Held | None:
    """Return who keeps the run's folder; None if nobody does. Nothing is made and nothing is kept."""
    path = RunFolder(config.run_dir).lock
    try:
        if not check_plain(path):
            return None
        with contextlib.closing(FileLock(path)) as lock:
            if lock.take():
                return None
        return Held(read_text(path, MOST_PLACE_BYTES, errors="replace"), holders(path))
    except OSError:  # the finding on the folder says it
        return None


def live(config: FederationConfig, found: Held, place: str | None) -> Finding:
    """Return the finding on a live coordinator. `place` is that of a coordinator which would start from here; None if
    it is not known."""
    what = f"run: {found.holders} coordinates {config.run.run_id} in {config.run_dir} now"
    if place in (None, found.place):
        return Finding("warning", what, "leave it so, and do not start another one unless as its standby")
    return Finding(
        "wrong",
        f"{what}, over {found.place}, and this file says {place}: a coordinator would refuse to start",
        "stop that one first, use the same [broker] table, or choose another run.run_id",
    )


def _over(config: FederationConfig, reason: str) -> Finding:
    what = f"run: {config.run.run_id} is over ({reason}): the coordinator would show its summary and end"
    return Finding("warning", what, "choose another run.run_id for a new run")


def fits(run: PastRun, check: Callable[[Parameters], None]) -> Iterator[Finding]:
    """Yield the finding on the app's model beside that of the run. `check` raises AppError if they differ."""
    if run.parameters is None:
        return
    try:
        check(run.parameters)
    except FedmqError as error:
        yield Finding("wrong", f"run: {error}", "do what the message says", error)
    else:
        yield Finding("ok", f"run: it goes on from version {run.version}, and the app builds its model")
