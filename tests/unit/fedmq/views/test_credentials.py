"""Findings on certificates and modes, with their exact texts."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from fedmq.broker_config.amqp.tls import TlsFiles
from fedmq.broker_config.settings import BrokerSettings
from fedmq.views.credentials import certificate, identity, modes
from fedmq.views.finding import Finding
from tests.support.certificates import Authority


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> BrokerSettings:
    """The certificate of `sensor-1`, of a day before now and 89 after."""
    pem = Authority(tmp_path_factory.mktemp("ca")).certify("sensor-1", days=89)
    return BrokerSettings(cert_file=str(pem.certificate), key_file=str(pem.key))


def test_the_lifetime_of_a_certificate_is_that_of_its_two_times(settings: BrokerSettings) -> None:
    begin, end = TlsFiles.of(settings).lifetime()
    assert end - begin == timedelta(days=90)
    assert abs(begin + timedelta(days=1) - datetime.now(UTC)) < timedelta(minutes=5)


@pytest.mark.parametrize(
    ("passed_days", "level", "text"),
    [
        (59, "ok", "certificate: user 'sensor-1' until {end}; a connection that is open then goes on"),
        (61, "warning", "certificate: user 'sensor-1' until {end}; a connection that is open then goes on"),
        (91, "wrong", "certificate: that of 'sensor-1' ended at {end}. The broker takes no new connection with it"),
        (-1, "wrong", "certificate: that of 'sensor-1' begins at {begin}"),
    ],
)
def test_a_certificates_end_is_told_before_and_after(
    settings: BrokerSettings, passed_days: int, level: str, text: str
) -> None:
    begin, end = TlsFiles.of(settings).lifetime()
    (found,) = certificate(settings, "participant", begin + timedelta(days=passed_days))
    shown = {"begin": f"{begin:%Y-%m-%d %H:%M} UTC", "end": f"{end:%Y-%m-%d %H:%M} UTC"}
    assert (found.level, found.what) == (level, text.format(**shown))
    assert ("fedmq fleet enrol sensor-1 --again" in found.advice) == (passed_days > 60)


def test_there_is_no_finding_without_a_certificate() -> None:
    assert list(certificate(BrokerSettings(), None, datetime.now(UTC))) == []


def test_the_rule_of_identity_is_told() -> None:
    assert identity("user").level == "ok"
    assert identity("open") == Finding(
        "warning",
        "identity: open. Whoever may publish on the broker is believed",
        'leave it so for a demo on one machine; else set [security] identity = "user" (docs/security.md)',
    )


def test_files_that_others_can_read_are_named_with_their_modes(tmp_path: Path) -> None:
    key, spool = tmp_path / "key.pem", tmp_path / "spool"
    key.touch(0o600)
    spool.mkdir(0o700)
    assert [one.level for one in modes([key, spool, tmp_path / "none"])] == ["ok"]
    key.chmod(0o640)
    spool.chmod(0o755)
    assert list(modes([key, spool])) == [
        Finding("warning", f"modes: {key} is open to other users (0640)", f"chmod 600 {key}"),
        Finding("warning", f"modes: {spool} is open to other users (0755)", f"chmod -R go-rwx {spool}"),
    ]
    assert list(modes([tmp_path / "none"])) == []
