"""The [broker] table of a federation file."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr

from fedmq.broker_config.topology import MAX_MESSAGE_BYTES, Topology
from fedmq.schemas.limits import CHUNK_BYTES, MAX_PAYLOAD_BYTES


def _one_text(value: object) -> object:
    """A list of URLs as one text; anything else as it is."""
    if isinstance(value, (list, tuple)) and all(isinstance(url, str) for url in value):
        return ",".join(value)
    return value


class BrokerSettings(BaseModel):
    """Where the broker is and how to speak to it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: Annotated[SecretStr, BeforeValidator(_one_text)] = SecretStr("amqp://guest:guest@127.0.0.1:5672/%2F")
    """amqp:// or amqps:// URL with user, password, host, port and virtual host; secret because of the password. For the
    nodes of a cluster a list of them, or one text with commas between."""
    prefix: str = Field(default="fedmq", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    """First part of every exchange's and queue's name: one federation, one prefix."""
    max_message_bytes: int = Field(default=MAX_MESSAGE_BYTES, ge=65_536)
    """What is larger travels in chunks."""
    chunk_bytes: int = Field(default=CHUNK_BYTES, ge=4096, le=2**30)
    """One chunk, where `max_message_bytes` lets it be so large."""
    max_payload_bytes: int = Field(default=MAX_PAYLOAD_BYTES, ge=65_536, le=MAX_PAYLOAD_BYTES)
    """The largest task or update, in however many chunks; larger ones are refused on both sides."""
    participant_queues: Literal["classic", "quorum"] = "classic"
    """On a cluster choose "quorum", or participants wait while the node that has their queue is away."""
    heartbeat_s: int = Field(default=30, ge=1)
    publish_timeout_s: float = Field(default=60.0, gt=0)
    """How long the broker may take to confirm a message once the network has taken it, and the network to take a part
    of it: a slow upload may last longer."""
    reconnect_max_s: float = Field(default=30.0, ge=0.1)
    """The longest wait between two tries to connect; the first ones come sooner, each at a random time."""
    ca_file: str | None = None
    """For amqps://: the certificate authority; None takes the system's."""
    cert_file: str | None = None
    key_file: str | None = None

    def topology(self) -> Topology:
        """The names that this federation uses on the broker."""
        return Topology(
            prefix=self.prefix,
            payload_max_bytes=self.max_payload_bytes,
            participant_queues=self.participant_queues,
        )
