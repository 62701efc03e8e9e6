"""The [broker] table of a federation file."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr

from fedmq.broker_config.topology import LEAST_MESSAGE_BYTES, MAX_MESSAGE_BYTES, Topology
from fedmq.schemas.limits import CHUNK_BYTES, MAX_PAYLOAD_BYTES, MAX_TENSORS


def _one_text(value: object) -> object:
    """Return a list of URLs as one text; anything else as it is."""
    if isinstance(value, (list, tuple)) and all(isinstance(url, str) for url in value):
        return ",".join(value)
    return value


class BrokerSettings(BaseModel):
    """The broker's address, and the rules for speaking to it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: Annotated[SecretStr, BeforeValidator(_one_text)] = SecretStr("amqp://guest:guest@127.0.0.1:5672/%2F")
    """An amqp:// or amqps:// URL with user, password, host, port and virtual host; secret because of the password. A
    cluster has a list of URLs, or one text with commas between them."""
    auth: Literal["password", "external"] = "password"
    """Proof of who we are. "external" shows the certificate in `cert_file` over amqps://, and the broker takes the user
    name from the certificate's common name. The URL then needs no user and no password."""
    prefix: str = Field(default="fedmq", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    """First part of every exchange's and queue's name. Each federation has its own prefix."""
    max_message_bytes: int = Field(default=MAX_MESSAGE_BYTES, ge=LEAST_MESSAGE_BYTES)
    """Largest single message. A larger payload travels in chunks."""
    chunk_bytes: int = Field(default=CHUNK_BYTES, ge=4096, le=2**30)
    """Size of one chunk; `max_message_bytes` if that is smaller."""
    max_payload_bytes: int = Field(default=MAX_PAYLOAD_BYTES, ge=65_536, le=MAX_PAYLOAD_BYTES)
    """The largest task or update, in any number of chunks. Both sides refuse larger ones."""
    max_tensors: int = Field(default=MAX_TENSORS, ge=16, le=100_000)
    """The most tensors in one message. Both sides refuse more. Each thousand costs the receiver about 10 ms."""
    participant_queues: Literal["classic", "quorum"] = "classic"
    """Kind of the participants' queues. On a cluster choose "quorum". With "classic", participants wait while the node
    that has their queue is away."""
    heartbeat_s: int = Field(default=30, ge=1)
    publish_timeout_s: float = Field(default=60.0, gt=0)
    """Longest time for the broker to confirm a message that the network has taken, and for the network to take a part
    of a message. A slow upload as a whole may last longer."""
    reconnect_max_s: float = Field(default=30.0, ge=0.1)
    """Longest wait between two tries to connect. The first tries come sooner, each at a random time."""
    ca_file: str | None = None
    """Certificate authority for amqps://; None takes the system's."""
    cert_file: str | None = None
    """Our own certificate and its chain, in PEM. The files are read again for every connection."""
    key_file: str | None = None
    """Key of our certificate; None if `cert_file` holds it too."""

    def topology(self) -> Topology:
        """Return the names that this federation uses on the broker."""
        return Topology(
            prefix=self.prefix,
            payload_max_bytes=self.max_payload_bytes,
            participant_queues=self.participant_queues,
        )
