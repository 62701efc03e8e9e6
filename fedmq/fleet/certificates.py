"""Keys and certificates: the only module that imports `cryptography` (the extra `fleet`).

Rules
1. All keys are of EC P-256, but the coordinator's signing key, which is Ed25519. A request for any other key is
   refused.
2. Everything goes in and out as PEM text. A key's text is a secret: no error text shows it.
3. A certificate names its holder in the common name alone. RabbitMQ takes the user from there
   (`ssl_cert_login_from = common_name`). The name is an argument, and never what a request says.
4. Times are arguments, in seconds since 1970.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from fedmq.schemas.errors import ConfigError, MalformedMessage, shown
from fedmq.schemas.local.extras import require
from fedmq.schemas.signing import Sign, Verify

require("cryptography", "the certificates of a fleet")

from cryptography import x509  # noqa: E402
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm  # noqa: E402
from cryptography.hazmat.primitives import hashes, serialization  # noqa: E402
from cryptography.hazmat.primitives.asymmetric import ec, ed25519  # noqa: E402
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID  # noqa: E402

DAY_S = 24 * 3600.0
CA_LIFETIME_S = 3652 * DAY_S
"""Ten years."""
BACKDATED_S = 3600.0
"""Time by which a certificate begins before it is made: clocks differ."""
_NOT_READABLE = (ValueError, TypeError, UnsupportedAlgorithm)


@dataclass(frozen=True, slots=True)
class Credential:
    """A certificate and its key, both PEM."""

    certificate: str
    key: str = field(repr=False)

    @property
    def pem(self) -> str:
        """The text of one file with both, as OpenSSL reads it."""
        return self.key + self.certificate


@dataclass(frozen=True, slots=True)
class SigningKey:
    """The coordinator's key for its tasks."""

    private: str = field(repr=False)
    """PEM."""
    public: str
    """The 32 bytes of the Ed25519 key, in hexadecimal digits."""


@dataclass(frozen=True, slots=True)
class Facts:
    """The content of a certificate. Times in seconds since 1970."""

    common_name: str
    serial: str
    """Serial number in hexadecimal digits."""
    key_id: str
    not_before_s: float
    not_after_s: float

    def passed(self, part: float) -> float:
        """Return the time at which this part of the lifetime is over. It is counted from when the certificate was
        made."""
        made_s = self.not_before_s + BACKDATED_S
        return made_s + part * (self.not_after_s - made_s)


# Keys


def new_key() -> str:
    """Return a new P-256 key."""
    return _key_text(ec.generate_private_key(ec.SECP256R1()))


def new_signing_key() -> SigningKey:
    """Return a new Ed25519 key."""
    key = ed25519.Ed25519PrivateKey.generate()
    return SigningKey(_key_text(key), key.public_key().public_bytes_raw().hex())


def public_signing_key(private: str) -> str:
    """Return the public part of a signing key, in hexadecimal digits. Raises ConfigError if the text is none."""
    key = _private_key(private, "the signing key")
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise ConfigError("the signing key is not an Ed25519 key")
    return key.public_key().public_bytes_raw().hex()


def signer(private: str) -> Sign:
    """Return the function that signs tasks with this key. Raises ConfigError if the text is no Ed25519 key."""
    key = _private_key(private, "the signing key")
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise ConfigError("the signing key is not an Ed25519 key")
    return lambda content: key.sign(content).hex()


def verifier(public: str) -> Verify:
    """Return the function that checks the signatures of tasks. `public` has the key's 64 hexadecimal digits.

    Raises ConfigError if it is no Ed25519 key.
    """
    try:
        key = ed25519.Ed25519PublicKey.from_public_bytes(bytes.fromhex(public))
    except _NOT_READABLE:
        raise ConfigError("the coordinator's public key is not an Ed25519 key") from None

    def verify(content: bytes, signature: str) -> bool:
        try:
            key.verify(bytes.fromhex(signature), content)
        except (InvalidSignature, ValueError):
            return False
        return True

    return verify


# Certificates


def new_ca(name: str, now_s: float, lifetime_s: float = CA_LIFETIME_S) -> Credential:
    """Return a new certificate authority, which can sign certificates of devices and no further authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _name(name)
    made = (
        _builder(subject, subject, key.public_key(), now_s, now_s + lifetime_s)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return Credential(_certificate_text(made), _key_text(key))


def server_certificate(ca: Credential, names: Sequence[str], now_s: float, lifetime_s: float) -> Credential:
    """Return a credential for the broker. `names` are its host names and addresses, the first one the common name."""
    key = ec.generate_private_key(ec.SECP256R1())
    alternatives = x509.SubjectAlternativeName([_alternative(name) for name in names])
    purpose = ExtendedKeyUsageOID.SERVER_AUTH
    made = _issued(ca, names[0], key.public_key(), now_s, lifetime_s, purpose=purpose, alternatives=alternatives)
    return Credential(made, _key_text(key))


def client_certificate(ca: Credential, common_name: str, now_s: float, lifetime_s: float) -> Credential:
    """Return a credential, with a new key, for a user of the broker."""
    key = ec.generate_private_key(ec.SECP256R1())
    purpose = ExtendedKeyUsageOID.CLIENT_AUTH
    made = _issued(ca, common_name, key.public_key(), now_s, lifetime_s, purpose=purpose)
    return Credential(made, _key_text(key))


def request(key: str, common_name: str) -> str:
    """Return a request (CSR) for a certificate of this key. Raises ConfigError if the key cannot be read."""
    private = _private_key(key, "the device's key")
    if not isinstance(private, ec.EllipticCurvePrivateKey):
        raise ConfigError("the device's key is not an EC key")
    made = x509.CertificateSigningRequestBuilder().subject_name(_name(common_name)).sign(private, hashes.SHA256())
    return made.public_bytes(serialization.Encoding.PEM).decode()


def key_id_of_request(text: str) -> str:
    """Return the id of the key that a request is for (`key_id`).

    Raises MalformedMessage if it is no request, if its sender does not have the key, or if the key is not P-256.
    """
    return _key_id(_requested_key(text))


def signed_request(ca: Credential, text: str, common_name: str, now_s: float, lifetime_s: float) -> str:
    """Return the certificate that a request asks for. `common_name` is its subject, whatever the request says.

    Raises MalformedMessage as `key_id_of_request` does.
    """
    purpose = ExtendedKeyUsageOID.CLIENT_AUTH
    return _issued(ca, common_name, _requested_key(text), now_s, lifetime_s, purpose=purpose)


def facts(certificate: str) -> Facts:
    """Return what a certificate says. Raises ConfigError if the text is no certificate."""
    read = _certificate(certificate)
    return Facts(
        common_name=_common_name(read),
        serial=f"{read.serial_number:x}",
        key_id=_key_id(read.public_key()),
        not_before_s=read.not_valid_before_utc.timestamp(),
        not_after_s=read.not_valid_after_utc.timestamp(),
    )


def server_names(certificate: str) -> tuple[str, ...]:
    """Return the host names and addresses of a broker's certificate. Raises ConfigError if the text is none."""
    try:
        found = _certificate(certificate).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    return (*found.get_values_for_type(x509.DNSName), *(str(ip) for ip in found.get_values_for_type(x509.IPAddress)))


def key_id(key: str) -> str:
    """Return the SHA-256 of a key's public part, in hexadecimal digits. Raises ConfigError if the text is no key."""
    private = _private_key(key, "the key")
    if not isinstance(private, ec.EllipticCurvePrivateKey):
        raise ConfigError("the key is not an EC key")
    return _key_id(private.public_key())


def is_issued_by(certificate: str, ca_certificate: str) -> bool:
    """True if this authority signed the certificate. Raises ConfigError if either text is no certificate."""
    try:
        _certificate(certificate).verify_directly_issued_by(_certificate(ca_certificate))
    except (InvalidSignature, *_NOT_READABLE):
        return False
    return True


def fits(credential: Credential) -> bool:
    """True if key and certificate belong together. Raises ConfigError if either cannot be read."""
    return key_id(credential.key) == facts(credential.certificate).key_id


# Parts


def _issued(
    ca: Credential,
    common_name: str,
    key: ec.EllipticCurvePublicKey,
    now_s: float,
    lifetime_s: float,
    *,
    purpose: x509.ObjectIdentifier,
    alternatives: x509.SubjectAlternativeName | None = None,
) -> str:
    issuer, signer = _certificate(ca.certificate), _private_key(ca.key, "the authority's key")
    if not isinstance(signer, ec.EllipticCurvePrivateKey) or signer.public_key() != issuer.public_key():
        raise ConfigError("the authority's key does not belong to its certificate: expected the key made with it")
    until_s = min(now_s + lifetime_s, issuer.not_valid_after_utc.timestamp())
    builder = (
        _builder(_name(common_name), issuer.subject, key, now_s, until_s)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    if alternatives is not None:
        builder = builder.add_extension(alternatives, critical=False)
    return _certificate_text(builder.sign(signer, hashes.SHA256()))


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now_s: float, until_s: float
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.fromtimestamp(now_s - BACKDATED_S, UTC))
        .not_valid_after(datetime.fromtimestamp(until_s, UTC))
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _requested_key(text: str) -> ec.EllipticCurvePublicKey:
    try:
        read = x509.load_pem_x509_csr(text.encode())
        key = read.public_key()
        signed = read.is_signature_valid
    except (*_NOT_READABLE, InvalidSignature):
        raise MalformedMessage(f"expected a certificate request in PEM, got {shown(text)}") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise MalformedMessage("the request is for a key of another kind: expected an EC key on P-256")
    if not signed:
        raise MalformedMessage("the request is not signed with its own key")
    return key


def _certificate(text: str) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(text.encode())
    except _NOT_READABLE:
        raise ConfigError(f"expected a certificate in PEM, got {shown(text)}") from None


def _private_key(text: str, what: str) -> object:
    try:
        return serialization.load_pem_private_key(text.encode(), password=None)
    except _NOT_READABLE:
        raise ConfigError(f"{what} cannot be read: expected a key without a passphrase, in PEM") from None


def _common_name(certificate: x509.Certificate) -> str:
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if names else ""


def _key_id(key: object) -> str:
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ConfigError("the certificate is for a key of another kind: expected an EC key")
    spki = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(spki).hexdigest()


def _key_text(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


def _certificate_text(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()
