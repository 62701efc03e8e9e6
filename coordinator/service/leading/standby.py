"""A standby: it waits for the token, and says for which coordinator it waits."""

from __future__ import annotations

from fedmq.broker_config.transport import Delivery, TransportState
from fedmq.coordinator.service.incoming.inbox import Inbox
from fedmq.coordinator.service.leading.leadership import Leadership
from fedmq.coordinator.state.ledger import epochs
from fedmq.coordinator.state.ledger.reader import open_if_made
from fedmq.coordinator.state.ledger.rows import EpochRow
from fedmq.coordinator.state.run_folder import RunFolder
from fedmq.schemas.errors import LedgerError
from fedmq.schemas.local.event_log import EventLog

log = EventLog(__name__)

SURE_AFTER = 2
"""Tokens in vain after which another coordinator is taken to be active."""
REFUSED_AFTER = 2
"""Further tokens in vain after which the active coordinator is taken to be of another folder, if this folder's ledger
knows of none. A coordinator that is about to begin or to end an epoch has the token a moment longer."""


class Stop:
    """The item in the inbox that says: commit and leave."""


def wait_to_lead(leadership: Leadership, inbox: Inbox, folder: RunFolder) -> bool:
    """Block until this coordinator is the active one; False if a Stop comes first.

    Raises LedgerError if the active coordinator has another folder.
    """
    leadership.begin()
    waits_for: EpochRow | None = None
    refused_at = 0
    while not leadership.active:
        leadership.pass_time()
        if leadership.in_vain >= SURE_AFTER:
            active = _active(folder)
            if active is None:
                refused_at = refused_at or leadership.in_vain + REFUSED_AFTER
                if leadership.in_vain >= refused_at:
                    raise _of_another_folder(folder)
            else:
                refused_at = 0
                if active != waits_for:
                    log.info("standby", waits_for=epochs.shown(active))
                    waits_for = active
        item = inbox.wait(leadership.wait_s())
        if isinstance(item, Stop):
            return False
        if isinstance(item, Delivery):
            leadership.on_token(item)
        elif isinstance(item, TransportState):
            _changed(leadership, item)
    return True


def _changed(leadership: Leadership, state: TransportState) -> None:
    if state.name in ("disconnected", "consumer_lost"):
        log.warning(f"broker_{state.name}", detail=state.detail)
        leadership.doubt()


def _active(folder: RunFolder) -> EpochRow | None:
    """Return the coordinator that holds the token by this folder's ledger; None if it knows of none.

    The ledger of a copy knows of the coordinator at work on the original. That one does not keep this folder.
    """
    if folder.alone():
        return None
    reader, found = open_if_made(folder.ledger), None
    if reader is not None:
        with reader as ledger:
            found = ledger.newest_epoch()
    return None if found is None or found.ended_wall_s is not None else found


def _of_another_folder(folder: RunFolder) -> LedgerError:
    return LedgerError(
        f"another coordinator is active on this broker and prefix, and the run in {folder.path} is not its run: it "
        "works on another run, or on another copy of this folder. Give each run a broker.prefix of its own. A standby "
        "needs the folder of the active coordinator itself, not a copy"
    )
