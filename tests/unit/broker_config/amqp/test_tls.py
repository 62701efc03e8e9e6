from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.name import _ASN1Type
from cryptography.x509.oid import NameOID

from fedmq.broker_config.amqp.address import Addresses, certificate_refusal, connection_refusal
from fedmq.broker_config.amqp.driver import PikaDriver
from fedmq.broker_config.amqp.tls import NO_FILES, TlsFiles, common_names, trusting
from fedmq.broker_config.amqp.transport import addresses_for
from fedmq.schemas.errors import ConfigError
from tests.support.certificates import Authority, Pem

URL = "amqps://broker.example/v"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "ca")


def files(pem: Pem, authority: Authority) -> TlsFiles:
    return TlsFiles(str(authority.file), str(pem.certificate), str(pem.key))


def name(*attributes: tuple[x509.ObjectIdentifier, str]) -> x509.Name:
    return x509.Name([x509.NameAttribute(kind, value) for kind, value in attributes])


@pytest.mark.parametrize("common_name", ["sensor-1", "a.b", "x" * 64])
def test_the_user_is_the_certificates_common_name(authority: Authority, common_name: str) -> None:
    assert files(authority.certify(common_name), authority).user() == common_name


def test_the_issuer_and_the_other_parts_of_the_subject_are_no_users(authority: Authority) -> None:
    subject = name(
        (NameOID.COUNTRY_NAME, "NL"), (NameOID.ORGANIZATION_NAME, "fedmq"), (NameOID.COMMON_NAME, "sensor-1"),
        (NameOID.EMAIL_ADDRESS, "me@home"),
    )  # fmt: skip
    assert files(authority.certify("any", name=subject), authority).user() == "sensor-1"


def test_a_printable_common_name_is_read_as_well(authority: Authority) -> None:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "sensor-1", _type=_ASN1Type.PrintableString)])
    assert files(authority.certify("any", name=subject), authority).user() == "sensor-1"


def test_key_chain_and_certificate_may_be_in_one_file(authority: Authority, tmp_path: Path) -> None:
    pem, one = authority.certify("sensor-1"), tmp_path / "one.pem"
    one.write_bytes(pem.key.read_bytes() + pem.certificate.read_bytes() + authority.file.read_bytes())
    tls = TlsFiles(str(authority.file), str(one))
    tls.context()
    assert tls.user() == "sensor-1"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_pem_files_that_an_editor_has_put_a_byte_order_mark_into_are_read(authority: Authority, encoding: str) -> None:
    tls = files(authority.certify("sensor-1"), authority)
    for path in (tls.ca_file, tls.cert_file, tls.key_file):
        assert path is not None
        Path(path).write_bytes(Path(path).read_text().encode(encoding))
    assert [entry["subject"] for entry in tls.context().get_ca_certs()] == [
        ((("commonName", "fedmq test authority"),),)
    ]
    assert tls.user() == "sensor-1"
    assert trusting(tls.ca_file).cert_store_stats()["x509_ca"] == 1


def test_an_encrypted_key_is_refused_and_no_passphrase_is_waited_for(authority: Authority) -> None:
    pem = authority.certify("sensor-1")
    key = serialization.load_pem_private_key(pem.key.read_bytes(), None)
    locked = serialization.BestAvailableEncryption(b"secret")
    pem.key.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, locked))
    with pytest.raises(ConfigError, match=r"sensor-1\.key is encrypted.*openssl pkey"):
        files(pem, authority).context()


@pytest.mark.parametrize("common_names", [(), ("a", "b")])
def test_a_certificate_without_one_common_name_is_refused(authority: Authority, common_names: tuple[str, ...]) -> None:
    subject = name((NameOID.ORGANIZATION_NAME, "o"), *((NameOID.COMMON_NAME, one) for one in common_names))
    with pytest.raises(ConfigError, match=r"common name\(s\): expected one"):
        files(authority.certify("any", name=subject), authority).user()


def test_a_common_name_in_an_odd_encoding_is_refused(authority: Authority) -> None:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ab", _type=_ASN1Type.BMPString)])
    with pytest.raises(ConfigError, match="no UTF-8, printable or IA5 text"):
        files(authority.certify("any", name=subject), authority).user()


def test_bytes_that_are_no_certificate_raise_and_nothing_else(authority: Authority) -> None:
    pem = authority.certify("sensor-1").certificate.read_bytes()
    der = x509.load_pem_x509_certificate(pem).public_bytes(encoding=_der())
    assert list(common_names(der)) == ["sensor-1"]
    for end in range(len(der)):
        with pytest.raises(ValueError, match=r"DER value|expected one certificate"):
            list(common_names(der[:end]))
    for at in range(len(der)):
        for byte in (0x00, 0x30, 0x80, 0xFF):
            try:
                list(common_names(der[:at] + bytes([byte]) + der[at + 1 :]))
            except ValueError:
                continue


def _der():
    from cryptography.hazmat.primitives.serialization import Encoding

    return Encoding.DER


@pytest.mark.parametrize(
    "content", [None, "no certificate", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"]
)
def test_a_file_without_a_certificate_is_named(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "mine.pem"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=r"mine\.pem"):
        TlsFiles(cert_file=str(path)).user()


def test_a_login_by_certificate_has_its_user_and_no_password(authority: Authority) -> None:
    tls = files(authority.certify("sensor-1"), authority)
    for url in (URL, "amqps://sensor-1@broker.example/v"):
        (address,) = addresses_for(url, "external", tls)
        assert (address.user, address.password, address.by_certificate) == ("sensor-1", "", True)
        assert (address.host, address.port, address.vhost) == ("broker.example", 5671, "v")


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("amqp://broker.example/v", "takes TLS"),
        ("amqps://bob@broker.example/v", "names user 'bob', and the certificate that we log in by names 'sensor-1'"),
        ("amqps://sensor-1:sesame@broker.example/v", "has a password"),
        ("amqps://guest:sesame@broker.example/v", "names user 'guest'"),
    ],
)
def test_a_url_that_does_not_fit_the_certificate_is_refused(authority: Authority, url: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why) as raised:
        addresses_for(url, "external", files(authority.certify("sensor-1"), authority))
    assert "sesame" not in str(raised.value)


def test_external_without_a_certificate_is_a_mistake() -> None:
    with pytest.raises(ConfigError, match="cert_file"):
        addresses_for(URL, "external", NO_FILES)


def test_a_renewed_certificate_is_taken_for_the_next_connection_and_a_spoilt_one_is_not(authority: Authority) -> None:
    pem = authority.certify("sensor-1")
    tls = files(pem, authority)
    addresses = addresses_for(URL, "external", tls)
    driver = PikaDriver(addresses, "t", 30, tls)
    first = driver.parameters("consume", addresses.current).ssl_options.context
    renewed = authority.certify("sensor-1")
    assert renewed.certificate == pem.certificate
    second = driver.parameters("consume", addresses.current).ssl_options.context
    assert second is not first
    pem.certificate.write_bytes(authority.certify("bob").certificate.read_bytes())
    assert driver.parameters("consume", addresses.current).ssl_options.context is second
    pem.certificate.unlink()
    assert driver.parameters("consume", addresses.current).ssl_options.context is second
    driver.loop.close()


def test_messages_name_the_certificates_user(authority: Authority) -> None:
    from fedmq.broker_config.transport import Message

    tls = files(authority.certify("sensor-1"), authority)
    driver = PikaDriver(addresses_for(URL, "external", tls), "t", 30, tls)
    assert driver.properties(Message("e", "k", b"", "1")).user_id == "sensor-1"
    driver.loop.close()


def test_refusals_of_a_certificate_say_what_to_do() -> None:
    (address,) = Addresses(URL, "sensor-1")
    assert "cert_file and key_file" in str(certificate_refusal(address, "CERTIFICATE_REQUIRED"))
    assert "renew it" in str(certificate_refusal(address, "CERTIFICATE_EXPIRED"))
    assert "an authority that the broker trusts" in str(certificate_refusal(address, "UNKNOWN_CA"))
    refused = str(connection_refusal(address, 403, "ACCESS_REFUSED"))
    assert "'sensor-1' by its certificate" in refused
    assert "password" not in refused
