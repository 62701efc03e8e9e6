"""A device's side: its bundle, the files that TLS reads, and the renewal of its certificate.

Rules
1. The bundle is the truth. The files of TLS are beside it, in a folder of mode 0700, and are written from it at each
   start.
2. A renewed certificate is in the bundle first, then in the one file with key and certificate. Each is replaced at
   once. So a device that is killed in between has the new certificate after its next start, and never half of one.
3. The key for a renewal is on disk before anybody hears of it. The same request is made again after a crash.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fedmq.broker_config.faults import fault
from fedmq.broker_config.settings import BrokerSettings
from fedmq.fleet import bundle, certificates
from fedmq.fleet.bundle import Bundle
from fedmq.fleet.certificates import Credential
from fedmq.fleet.folder import read_text, write_secret
from fedmq.fleet.setup import due
from fedmq.schemas.errors import ConfigError, FleetError
from fedmq.schemas.local.event_log import EventLog
from fedmq.schemas.messages import Certificate, CertificateInstalled, CertificateRequest

log = EventLog(__name__)


class Device:
    """An enrolled device. It keeps its participant's certificate new (`participant.service.renewal.Credentials`)."""

    def __init__(self, path: Path, content: Bundle, wall_s: Callable[[], float]) -> None:
        """Write the files of TLS. Raises ConfigError if the bundle's parts do not belong together, and FleetError."""
        self.path = path
        self.bundle = content
        self._wall_s = wall_s
        self._files = files_of(path)
        check_bundle(content)
        make_private(self._files)
        write_secret(self._files / "ca.pem", content.ca)
        write_secret(self._files / "device.pem", content.pem)
        self._forget_used_key()

    @property
    def participant_id(self) -> str:
        return self.bundle.participant_id

    def broker_settings(self) -> BrokerSettings:
        """Return the [broker] table for this device."""
        files = {"ca_file": str(self._files / "ca.pem"), "cert_file": str(self._files / "device.pem")}
        return bundle.broker_settings(self.bundle, self.participant_id, auth="external", **files)

    # Credentials

    def request(self) -> CertificateRequest | None:
        """Return the request to send if a third of the certificate's lifetime is over. Raises FleetError."""
        if not due(self.bundle.certificate, self._wall_s()):
            return None
        if not self._new_key.exists():
            write_secret(self._new_key, certificates.new_key())
            fault("renewal-key")
        text = certificates.request(read_text(self._new_key), self.participant_id)
        return CertificateRequest(participant_id=self.participant_id, request=text)

    def install(self, answer: Certificate) -> CertificateInstalled | None:
        """Keep the certificate in the bundle and in the file of TLS. None if it is not for the key that we asked with,
        or not from our authority. Raises FleetError."""
        if answer.certificate is None or not self._new_key.exists():
            return None
        key = read_text(self._new_key)
        content = self.bundle.model_copy(update={"certificate": answer.certificate, "key": key})
        try:
            check_bundle(content)
        except ConfigError as error:
            log.warning("certificate_refused", participant=self.participant_id, detail=error)
            return None
        bundle.write(self.path, content)
        fault("renewal-bundle")
        write_secret(self._files / "device.pem", content.pem)
        fault("renewal-file")
        self.bundle = content
        self._forget_used_key()
        return CertificateInstalled(participant_id=self.participant_id, key_id=certificates.key_id(key))

    @property
    def _new_key(self) -> Path:
        return self._files / "renewal.key"

    def _forget_used_key(self) -> None:
        if self._new_key.exists() and read_text(self._new_key) == self.bundle.key:
            self._new_key.unlink()


def files_of(path: Path) -> Path:
    """Return the folder of the TLS files beside a bundle."""
    return path.with_name(path.name + ".d")


def make_private(folder: Path) -> None:
    """Make a folder that is its owner's alone. Raises FleetError."""
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        folder.chmod(0o700)
    except OSError as error:
        raise FleetError(
            f"{folder} cannot be made: {error}. A device keeps its certificate beside its bundle: put the bundle "
            "into a folder that it may write."
        ) from error


def tighten(path: Path) -> None:
    """Take a secret file from everybody but its owner. Copies often have the mode of the copier's habits."""
    try:
        if path.stat().st_mode & 0o077:
            log.warning("bundle_was_readable", file=path, detail="others could read it; its mode is 0600 now")
            path.chmod(0o600)
    except OSError as error:
        raise FleetError(f"{path} cannot be read: {error}.") from error


def check_bundle(content: Bundle) -> None:
    """Raise ConfigError if certificate, key, authority and id do not belong together."""
    facts = certificates.facts(content.certificate)
    if facts.common_name != content.participant_id:
        raise ConfigError(
            f"the certificate is that of {facts.common_name!r}, expected {content.participant_id!r}: take the file "
            "that `fedmq fleet enrol` has written"
        )
    if not certificates.fits(Credential(content.certificate, content.key)):
        raise ConfigError("the certificate is for another key than the bundle's")
    if not certificates.is_issued_by(content.certificate, content.ca):
        raise ConfigError("the certificate is not from the authority of this fleet")
