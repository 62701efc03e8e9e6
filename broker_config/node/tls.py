"""The settings of a private node that serves TLS alone. rabbitmq-tls.conf says why each is there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedmq.schemas.errors import ConfigError

TLS_CONFIG = Path(__file__).parent.parent / "rabbitmq-tls.conf"
PLUGIN = "rabbitmq_auth_mechanism_ssl"


@dataclass(frozen=True, slots=True)
class NodeTls:
    """Certificates of a node that serves TLS alone, and whom it lets in."""

    ca: Path
    """Certificate of the authority that signs the devices' certificates."""
    certificate: Path
    """The broker's certificate. It may be in one file with its key."""
    key: Path
    passwords: bool = False
    """True lets clients without a certificate in, with a password, as a device needs that joins by a token. It holds
    for all users that have a password."""

    def settings(self, port: int) -> dict[str, str]:
        """Return the keys of rabbitmq.conf that differ from rabbitmq-tls.conf, for a port of 127.0.0.1.

        Raises ConfigError for a file that is not there, or whose name rabbitmq.conf cannot hold.
        """
        found = {"listeners.ssl.default": f"127.0.0.1:{port}"}
        for key, path in (("cacertfile", self.ca), ("certfile", self.certificate), ("keyfile", self.key)):
            if not path.is_file():
                raise ConfigError(f"the broker's TLS needs {path}, which is no file: check the path")
            if "#" in str(path) or "\n" in str(path):
                raise ConfigError(f"RabbitMQ's configuration cannot name {str(path)!r}: use a path without # in it")
            found[f"ssl_options.{key}"] = str(path.resolve())
        if self.passwords:
            found |= {"ssl_options.fail_if_no_peer_cert": "false", "auth_mechanisms.2": "PLAIN"}
        return found
