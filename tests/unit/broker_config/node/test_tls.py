from pathlib import Path

import pytest

from fedmq.broker_config.node.tls import TLS_CONFIG, NodeTls
from fedmq.schemas.errors import ConfigError


def keys(text: str) -> dict[str, str]:
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return dict(line.split(" = ") for line in lines)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    found = (tmp_path / "ca.pem", tmp_path / "server.pem")
    for path in found:
        path.touch()
    return found


def test_the_shipped_file_lets_certificates_in_and_nothing_else() -> None:
    found = keys(TLS_CONFIG.read_text())
    assert found.pop("ssl_options.cacertfile").startswith("/etc/rabbitmq/")
    assert found.pop("ssl_options.certfile") == found.pop("ssl_options.keyfile")
    assert found == {
        "listeners.tcp": "none",
        "listeners.ssl.default": "5671",
        "ssl_options.verify": "verify_peer",
        "ssl_options.fail_if_no_peer_cert": "true",
        "ssl_options.versions.1": "tlsv1.3",
        "ssl_options.versions.2": "tlsv1.2",
        "auth_mechanisms.1": "EXTERNAL",
        "ssl_cert_login_from": "common_name",
    }


def test_a_private_node_has_its_own_port_and_files(files: tuple[Path, Path]) -> None:
    ca, own = files
    assert NodeTls(ca, own, own).settings(5) == {
        "listeners.ssl.default": "127.0.0.1:5",
        "ssl_options.cacertfile": str(ca),
        "ssl_options.certfile": str(own),
        "ssl_options.keyfile": str(own),
    }


def test_passwords_are_let_in_beside_certificates_while_devices_join(files: tuple[Path, Path]) -> None:
    ca, own = files
    strict, joining = NodeTls(ca, own, own).settings(5), NodeTls(ca, own, own, passwords=True).settings(5)
    assert dict(joining.items() - strict.items()) == {
        "ssl_options.fail_if_no_peer_cert": "false",
        "auth_mechanisms.2": "PLAIN",
    }


def test_a_certificate_that_is_not_there_is_told_before_the_node_starts(files: tuple[Path, Path]) -> None:
    ca, own = files
    own.unlink()
    with pytest.raises(ConfigError, match=r"server\.pem, which is no file"):
        NodeTls(ca, own, own).settings(5)


def test_a_path_that_the_configuration_would_cut_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a #b.pem"
    path.touch()
    with pytest.raises(ConfigError, match="without #"):
        NodeTls(path, path, path).settings(5)
