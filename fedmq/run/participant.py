"""Put the parts of a participant together, as a federation file or a bundle asks. No other module does.

It imports nothing of the coordinator's service, so that a device pays for its own role alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedmq.app.app import load_app, trainer_of
from fedmq.app.needed_files import check_files
from fedmq.app.threads import prepare_tensorflow
from fedmq.app.trainer_process import TrainerProcess
from fedmq.broker_config.transport import Transport
from fedmq.config.device import DeviceConfig
from fedmq.config.file import FederationConfig
from fedmq.coordinator.uplink import codec_here
from fedmq.participant.conditions import UserCondition, checker
from fedmq.participant.service.renewal import Credentials
from fedmq.participant.service.service import ParticipantService
from fedmq.run.broker_user import amqp, check_user, log_identity
from fedmq.schemas.codecs.codec import Codec
from fedmq.schemas.local.event_log import EventLog
from fedmq.schemas.signing import Verify

log = EventLog(__name__)


def participant_for(
    config: FederationConfig | DeviceConfig,
    participant_id: str,
    transport: Transport | None = None,
    credentials: Credentials | None = None,
    verify: Verify | None = None,
    *,
    in_process: bool = False,
) -> ParticipantService:
    """Return the service around the app's trainer. `credentials` are those of a device of a fleet, and `verify` checks
    that its tasks are signed. The trainer has a process of its own, unless it is to be `in_process`.

    Raises AppError if the app cannot be loaded, and ConfigError if this is not the participant's user on the broker, or
    if a file that the app needs is not the federation's.
    """
    kind = config.security.kind(config.broker.auth)
    log_identity(kind, participant_id, config.security.coordinator_user)
    if transport is None:
        check_user(config, kind, participant_id, "the participant's id (--id)")
    check_files(config.files)
    trainer, own = _in_process(config.app, participant_id) if in_process else _elsewhere(config, participant_id)
    return ParticipantService(
        participant_id=participant_id,
        settings=config.participant,
        trainer=trainer,
        transport=transport or amqp(config.broker, f"participant {participant_id}"),
        topology=config.broker.topology(),
        spool_dir=Path(config.participant.spool_dir),
        conditions=checker(config.participant.conditions, own),
        max_message_bytes=config.broker.max_message_bytes,
        chunk_bytes=config.broker.chunk_bytes,
        max_payload_bytes=config.broker.max_payload_bytes,
        max_tensors=config.broker.max_tensors,
        publish_timeout_s=config.broker.publish_timeout_s,
        coordinator_user=config.security.coordinator_user if kind == "user" else None,
        credentials=credentials,
        verify=verify,
        own_codec=_own_codec(config, participant_id),
    )


def _own_codec(config: FederationConfig | DeviceConfig, participant_id: str) -> Codec | None:
    """Return the codec of the federation's own file. Without what [uplink] asks for, the participant sends plain
    updates, and its log says why."""
    own, lacking = codec_here(config.uplink)
    if lacking is not None:
        detail = f"{lacking} Until then this participant sends plain updates."
        log.warning("codec_not_there", participant=participant_id, codec=config.uplink.codec, detail=detail)
    return own


def _in_process(path: str, participant_id: str) -> tuple[Any, UserCondition | None]:
    """Return the trainer of an app that is loaded here, and the app's condition. Raises AppError."""
    prepare_tensorflow()
    log.info("app_loading", app=path)
    app = load_app(path)
    own = app.get("conditions")
    return trainer_of(app, participant_id), None if own is None else lambda: bool(own(participant_id))


def _elsewhere(config: FederationConfig | DeviceConfig, participant_id: str) -> tuple[Any, UserCondition]:
    """Return the trainer in a process of its own, and the app's condition, which is asked there."""
    process = TrainerProcess(Path(config.app), participant_id, config.participant.keep_trainer_s)
    return process, process.conditions
