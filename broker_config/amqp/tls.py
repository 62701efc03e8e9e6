"""The files of an amqps:// connection, and the user that our own certificate names.

With auth = "external" the broker takes the user's name from the certificate's common name. We must know that name too:
it goes into every message, and it must be the participant's id. Python's ssl module tells the subject of a peer's
certificate, and not that of our own. So a small reader of DER (ITU-T X.690) walks to the subject. It need not be proof
against a hostile certificate, because the broker checks the name again: it refuses a message of another user.
"""

from __future__ import annotations

import re
import ssl
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple, TypeVar

from fedmq.broker_config.settings import BrokerSettings
from fedmq.schemas.errors import ConfigError
from fedmq.schemas.local.files import decoded, is_marked

T = TypeVar("T")

_PEM = re.compile(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)
_MOST_BYTES = 1024**2
_SEQUENCE, _SET, _OID, _VERSION = 0x30, 0x31, 0x06, 0xA0
_COMMON_NAME = b"\x55\x04\x03"
_TEXTS = {0x0C: "utf-8", 0x13: "ascii", 0x16: "ascii"}
"""Encodings of UTF8String, PrintableString and IA5String."""
_TIMES = {0x17: "%y%m%d%H%M%SZ", 0x18: "%Y%m%d%H%M%SZ"}
"""Forms of UTCTime and GeneralizedTime. Two digits of a year are read as those of 1969 to 2068."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Paths of PEM files; None as in BrokerSettings."""

    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None

    @classmethod
    def of(cls, settings: BrokerSettings) -> TlsFiles:
        return cls(settings.ca_file, settings.cert_file, settings.key_file)

    def __bool__(self) -> bool:
        return any((self.ca_file, self.cert_file, self.key_file))

    def context(self) -> ssl.SSLContext:
        """Read the files. Raises ConfigError if they cannot be used."""
        try:
            context = trusting(self.ca_file)
            if self.cert_file:
                with _without_mark(self.cert_file) as cert, _without_mark(self.key_file) as key:
                    context.load_cert_chain(cert or self.cert_file, key, password=self._no_passphrase)
        except (OSError, UnicodeDecodeError) as error:
            files = ", ".join(repr(name) for name in (self.ca_file, self.cert_file, self.key_file) if name)
            raise ConfigError(f"the TLS files cannot be used ({files}): {error}; expected PEM files") from error
        return context

    def user(self) -> str:
        """Return the common name of our certificate, the first one in `cert_file`. Raises ConfigError."""
        names = self._of_certificate(lambda der: list(common_names(der)))
        if len(names) != 1 or not names[0]:
            raise ConfigError(
                f"the certificate in {self.cert_file} has {len(names) or 'no'} common name(s): expected one, the name "
                "of the broker's user"
            )
        return names[0]

    def lifetime(self) -> tuple[datetime, datetime]:
        """Return the first and the last moment of our certificate. Raises ConfigError."""
        return self._of_certificate(validity)

    def _no_passphrase(self) -> str:
        """Refuse an encrypted key: OpenSSL would ask for its passphrase on the terminal, and wait."""
        raise ConfigError(
            f"the key in {self.key_file or self.cert_file} is encrypted, and nobody is asked for a passphrase: write "
            "it without one, with mode 0600 (openssl pkey -in KEY -out PLAIN)"
        )

    def _of_certificate(self, read: Callable[[bytes], T]) -> T:
        if self.cert_file is None:
            raise ConfigError('auth = "external" needs our certificate: set [broker] cert_file (and key_file)')
        try:
            with Path(self.cert_file).open("rb") as file:
                pem = _PEM.search(decoded(file.read(_MOST_BYTES), "replace"))
            if pem is None:
                raise ConfigError(f"{self.cert_file} holds no certificate: expected a PEM file, the certificate first")
            return read(ssl.PEM_cert_to_DER_cert(pem[0]))
        except (OSError, ValueError) as error:
            raise ConfigError(f"the certificate in {self.cert_file} cannot be read: {error}") from error


NO_FILES = TlsFiles()


def trusting(ca_file: str | None) -> ssl.SSLContext:
    """Return a context that trusts the authorities in a PEM file, or the system's. Raises OSError and ValueError."""
    with _without_mark(ca_file) as plain:
        return ssl.create_default_context(cafile=plain)


@contextmanager
def _without_mark(path: str | None) -> Iterator[str | None]:
    """Yield the path of a PEM file that has no byte order mark: OpenSSL passes over what stands behind one."""
    if path is None or not Path(path).is_file():  # whoever reads it says what is wrong
        yield path
        return
    with Path(path).open("rb") as file:
        written = file.read(_MOST_BYTES)
    if not is_marked(written):
        yield path
        return
    with tempfile.NamedTemporaryFile(suffix=".pem") as copy:  # of this user alone, as a key must be
        copy.write(decoded(written).encode())
        copy.flush()
        yield copy.name


class _Value(NamedTuple):
    tag: int
    content: bytes


def common_names(certificate: bytes) -> Iterator[str]:
    """Yield the common names in the subject of a DER certificate (RFC 5280, 4.1). Raises ValueError for other bytes."""
    for name in _inside(_fields(certificate)[4], _SEQUENCE):
        for attribute in _inside(name, _SET):
            kind, value, *_ = [*_inside(attribute, _SEQUENCE), _Value(0, b"")]
            if kind != (_OID, _COMMON_NAME):
                continue
            if value.tag not in _TEXTS:
                raise ValueError("its common name is no UTF-8, printable or IA5 text")
            yield value.content.decode(_TEXTS[value.tag])


def validity(certificate: bytes) -> tuple[datetime, datetime]:
    """Return the first and the last moment of a DER certificate (RFC 5280, 4.1.2.5). Raises ValueError for other
    bytes."""
    times = [
        datetime.strptime(value.content.decode("ascii"), _TIMES[value.tag]).replace(tzinfo=UTC)
        for value in _inside(_fields(certificate)[3], _SEQUENCE)
        if value.tag in _TIMES
    ]
    if len(times) != 2:
        raise ValueError("it has no validity of two times")
    return times[0], times[1]


def _fields(certificate: bytes) -> list[_Value]:
    """Return serial number, signature, issuer, validity, subject and the rest of a certificate."""
    signed, *_ = _inside(_only(certificate), _SEQUENCE)
    fields = list(_inside(signed, _SEQUENCE))
    if fields and fields[0].tag == _VERSION:
        del fields[0]
    if len(fields) < 5:
        raise ValueError("it has no subject")
    return fields


def _only(data: bytes) -> _Value:
    found = list(_values(data))
    if len(found) != 1:
        raise ValueError(f"{len(found)} DER values, expected one certificate")
    return found[0]


def _inside(value: _Value, tag: int) -> Iterator[_Value]:
    if value.tag != tag:
        raise ValueError(f"a DER value of tag {value.tag}, expected {tag}")
    yield from _values(value.content)


def _values(data: bytes) -> Iterator[_Value]:
    """Yield the DER values that follow each other."""
    at = 0
    while at < len(data):
        if at + 2 > len(data):
            raise ValueError("it ends inside a DER value")
        tag, length, at = data[at], data[at + 1], at + 2
        if length & 0x80:
            size = length & 0x7F
            length, at = int.from_bytes(data[at : at + size], "big"), at + size
        if at + length > len(data):
            raise ValueError("it ends inside a DER value")
        yield _Value(tag, data[at : at + length])
        at += length
