"""A service context over fakes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fedmq.broker_config.topology import Topology
from fedmq.participant.service.context import ServiceContext
from fedmq.participant.spool.spool import Spool
from fedmq.schemas.limits import DEFAULT_LIMITS


def make_context(transport: Any, spool: Spool, participant_id: str, put: Callable[[Any], None]) -> ServiceContext:
    return ServiceContext(
        participant_id=participant_id,
        transport=transport,
        topology=Topology("x"),
        spool=spool,
        limits=DEFAULT_LIMITS,
        payload_limits=DEFAULT_LIMITS,
        chunk_bytes=1024,
        publish_timeout_s=1.0,
        put=put,
    )
