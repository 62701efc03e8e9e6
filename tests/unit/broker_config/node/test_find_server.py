from pathlib import Path

import pytest

from fedmq.broker_config.node import node
from fedmq.schemas.errors import ConfigError


def _server(folder: Path) -> Path:
    sbin = folder / "sbin"
    sbin.mkdir(parents=True)
    for name in ("rabbitmq-server", "rabbitmq-env"):
        (sbin / name).write_text("")
    return sbin


def test_the_environment_variable_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sbin = _server(tmp_path / "rabbitmq_server-9.9.9")
    monkeypatch.setenv("FEDMQ_RABBITMQ_SBIN", str(sbin))
    assert node.find_server() == sbin


def test_a_wrong_environment_variable_is_an_error_not_a_skip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDMQ_RABBITMQ_SBIN", str(tmp_path))
    with pytest.raises(ConfigError, match="no rabbitmq-server with rabbitmq-env beside it"):
        node.find_server()


def test_of_several_servers_the_newest_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FEDMQ_RABBITMQ_SBIN", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    for version in ("3.9.13", "3.10.8", "3.10.10"):
        _server(tmp_path / f"rabbitmq_server-{version}")
    monkeypatch.setattr(node, "_PLACES", (f"{tmp_path}/rabbitmq_server-*/sbin",))
    assert node.find_server() == tmp_path / "rabbitmq_server-3.10.10" / "sbin"


def test_a_wrapper_on_the_path_is_no_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FEDMQ_RABBITMQ_SBIN", raising=False)
    wrapper = tmp_path / "rabbitmq-server"
    wrapper.write_text("#!/bin/sh\n")
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(node, "_PLACES", ())
    assert node.find_server() is None


def test_without_a_server_the_node_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node, "find_server", lambda: None)
    with pytest.raises(ConfigError, match="install the package rabbitmq-server"):
        node.PrivateNode(tmp_path)
