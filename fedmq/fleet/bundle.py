"""The one file that a device needs: a bundle, with its certificate and key, or a token, with which it asks for them.

Both are JSON and secret. A reader takes no unknown field, no other version, and no file of more than some kilobytes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote, unquote, urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, StringConstraints, TypeAdapter, ValidationError

from fedmq.broker_config.settings import BrokerSettings
from fedmq.fleet.folder import read_text, write_secret
from fedmq.schemas.errors import ConfigError
from fedmq.schemas.limits import MAX_PAYLOAD_BYTES
from fedmq.schemas.messages import Identifier

Pem = Annotated[str, StringConstraints(max_length=16_384)]
Secret = Annotated[str, Field(repr=False)]
Url = Annotated[str, StringConstraints(pattern=r"^amqps://[^@\s]+$", max_length=512)]


class Shared(BaseModel):
    """News for every device of a fleet: where the broker is, whom to believe, and the limits of both sides."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    urls: Annotated[tuple[Url, ...], Field(min_length=1, max_length=16)]
    """amqps:// URLs without a user: one, or one for each node of a cluster."""
    prefix: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    coordinator_user: Identifier
    coordinator_key: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    """The coordinator's Ed25519 public key, 32 bytes in hexadecimal digits."""
    ca: Pem
    """Certificate of the authority that vouches for the broker and for all users."""
    max_message_bytes: int = Field(ge=65_536)
    max_payload_bytes: int = Field(ge=65_536, le=MAX_PAYLOAD_BYTES)
    participant_queues: Literal["classic", "quorum"]


class Bundle(Shared):
    """A device that is enrolled."""

    fedmq: Literal["bundle 1"] = "bundle 1"
    participant_id: Identifier
    certificate: Pem
    key: Annotated[Pem, Field(repr=False)]

    @property
    def pem(self) -> str:
        """The text of the file that TLS reads: the key and the certificate."""
        return self.key + self.certificate


class TokenFile(Shared):
    """A device that may join, once: the id that it will have, and a temporary user of the broker."""

    fedmq: Literal["token 1"] = "token 1"
    participant_id: Identifier
    user: Identifier
    password: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{16,128}$"), Field(repr=False)]
    expires_s: float
    """End of the token by the coordinator's clock, in seconds since 1970."""


_EITHER: TypeAdapter[Bundle | TokenFile] = TypeAdapter(Annotated[Bundle | TokenFile, Field(discriminator="fedmq")])


def read(path: Path) -> Bundle | TokenFile:
    """Read a bundle or a token. Raises FleetError if it cannot be read, and ConfigError if it is neither."""
    text = read_text(path)
    try:
        return _EITHER.validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        place = f" ({where}: {first['msg'][:200]})" if where else ""
        raise ConfigError(
            f"{path} is neither a bundle nor a token of this version of fedmq{place}: take the file that "
            "`fedmq fleet enrol` or `fedmq fleet token` has written."
        ) from None


def write(path: Path, content: Bundle | TokenFile) -> None:
    """Write the file with mode 0600, at once. Raises FleetError."""
    write_secret(path, json.dumps(content.model_dump(), indent=1) + "\n")


def broker_settings(shared: Shared, user: str, **more: Any) -> BrokerSettings:
    """Return the [broker] table for a user of the fleet. `more` has its TLS files, or its password."""
    password = more.pop("password", None)
    login = quote(user, safe="") + ("" if password is None else f":{quote(password, safe='')}")
    return BrokerSettings(
        url=SecretStr(",".join(url.replace("amqps://", f"amqps://{login}@", 1) for url in shared.urls)),
        prefix=shared.prefix,
        max_message_bytes=shared.max_message_bytes,
        max_payload_bytes=shared.max_payload_bytes,
        participant_queues=shared.participant_queues,
        **more,
    )


def vhost_of(shared: Shared) -> str:
    """Return the virtual host that a fleet's URLs name."""
    return unquote(urlsplit(shared.urls[0]).path.removeprefix("/")) or "/"


def public_url(url: str) -> str:
    """Return the amqps:// URL of the broker that an amqp:// or amqps:// URL names, without its user and password.

    Without TLS the port is another one, so 5671 is taken in the place of it.
    """
    parts = urlsplit(url)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    port = parts.port if parts.scheme == "amqps" and parts.port else 5671
    vhost = unquote(parts.path.removeprefix("/")) or "/"
    return f"amqps://{host}:{port}/{quote(vhost, safe='')}"
