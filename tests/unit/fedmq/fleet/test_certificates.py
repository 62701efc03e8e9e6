"""Keys, certificates and requests."""

import ssl

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from fedmq.fleet import certificates
from fedmq.fleet.certificates import BACKDATED_S, CA_LIFETIME_S, DAY_S, Credential
from fedmq.schemas.errors import ConfigError, MalformedMessage
from tests.support.fleet import NOW_S

CA = certificates.new_ca("fedmq test", NOW_S)
OTHER_CA = certificates.new_ca("fedmq test", NOW_S)


def request_with(key, name="sensor-1"):
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    made = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return made.public_bytes(serialization.Encoding.PEM).decode()


def test_the_authority_lasts_ten_years_and_signs_devices_alone():
    facts = certificates.facts(CA.certificate)
    assert (facts.not_before_s, facts.not_after_s) == (NOW_S - BACKDATED_S, NOW_S + CA_LIFETIME_S)
    constraints = x509.load_pem_x509_certificate(CA.certificate.encode()).extensions.get_extension_for_class(
        x509.BasicConstraints
    )
    assert (constraints.critical, constraints.value.ca, constraints.value.path_length) == (True, True, 0)


def test_a_devices_certificate_names_it_and_ends_in_time():
    made = certificates.client_certificate(CA, "sensor-1", NOW_S, 90 * DAY_S)
    facts = certificates.facts(made.certificate)
    assert (facts.common_name, facts.not_after_s) == ("sensor-1", NOW_S + 90 * DAY_S)
    assert facts.key_id == certificates.key_id(made.key)
    assert certificates.fits(made)
    assert certificates.is_issued_by(made.certificate, CA.certificate)
    assert not certificates.is_issued_by(made.certificate, OTHER_CA.certificate)


def test_no_certificate_outlives_its_authority():
    made = certificates.client_certificate(CA, "sensor-1", NOW_S, 2 * CA_LIFETIME_S)
    assert certificates.facts(made.certificate).not_after_s == NOW_S + CA_LIFETIME_S


def test_a_device_cannot_pass_for_the_broker_nor_the_broker_for_a_device():
    def purposes(credential):
        read = x509.load_pem_x509_certificate(credential.certificate.encode())
        return [one.dotted_string for one in read.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value]

    assert purposes(certificates.client_certificate(CA, "a", NOW_S, DAY_S)) == ["1.3.6.1.5.5.7.3.2"]
    assert purposes(certificates.server_certificate(CA, ["a"], NOW_S, DAY_S)) == ["1.3.6.1.5.5.7.3.1"]


def test_the_broker_has_all_its_names(tmp_path):
    made = certificates.server_certificate(CA, ["broker.test", "127.0.0.1", "::1"], NOW_S, DAY_S)
    assert certificates.server_names(made.certificate) == ("broker.test", "127.0.0.1", "::1")
    assert certificates.server_names(CA.certificate) == ()
    file = tmp_path / "server.pem"
    file.write_text(made.pem)
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(file)  # one file with both is enough


def test_a_request_gets_the_subject_that_we_say_and_keeps_its_key():
    key = certificates.new_key()
    request = certificates.request(key, "coordinator")
    assert certificates.key_id_of_request(request) == certificates.key_id(key)
    signed = certificates.signed_request(CA, request, "sensor-1", NOW_S, DAY_S)
    assert certificates.facts(signed).common_name == "sensor-1"
    assert certificates.fits(Credential(signed, key))


def test_a_request_that_its_sender_did_not_sign_is_refused():
    lines = certificates.request(certificates.new_key(), "sensor-1").splitlines()
    lines[-2] = "A" * len(lines[-2].rstrip("=")) + "=" * lines[-2].count("=")
    with pytest.raises(MalformedMessage):
        certificates.key_id_of_request("\n".join(lines))


@pytest.mark.parametrize(
    "key", [rsa.generate_private_key(65537, 2048), ec.generate_private_key(ec.SECP384R1())], ids=["rsa", "p-384"]
)
def test_a_request_for_a_key_of_another_kind_is_refused(key):
    with pytest.raises(MalformedMessage, match="expected an EC key on P-256"):
        certificates.signed_request(CA, request_with(key), "sensor-1", NOW_S, DAY_S)


@pytest.mark.parametrize(
    "text", ["", "x", "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----", "\0", "é" * 9]
)
def test_text_that_is_no_request_is_our_own_error(text):
    with pytest.raises(MalformedMessage):
        certificates.key_id_of_request(text)


def test_a_key_of_another_authority_signs_nothing():
    with pytest.raises(ConfigError, match="does not belong to its certificate"):
        certificates.client_certificate(Credential(CA.certificate, OTHER_CA.key), "a", NOW_S, DAY_S)


def test_no_error_and_no_repr_shows_a_key():
    secret = CA.key.splitlines()[1]
    assert secret not in repr(CA)
    assert certificates.new_signing_key().private not in repr(certificates.new_signing_key())
    for broken in (CA.key[:-40], f"x{secret}"):
        with pytest.raises(ConfigError) as caught:
            certificates.client_certificate(Credential(CA.certificate, broken), "a", NOW_S, DAY_S)
        assert secret[:20] not in str(caught.value)
        with pytest.raises(ConfigError) as caught:
            certificates.key_id(broken)
        assert secret[:20] not in str(caught.value)


def test_the_public_signing_key_is_that_of_the_private_one():
    key = certificates.new_signing_key()
    assert certificates.public_signing_key(key.private) == key.public
    assert len(bytes.fromhex(key.public)) == 32
    with pytest.raises(ConfigError, match="not an Ed25519 key"):
        certificates.public_signing_key(CA.key)
