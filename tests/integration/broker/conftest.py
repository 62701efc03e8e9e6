"""A node that the tests of this folder may kill, stop, freeze and use over TLS."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fedmq.broker_config.node.node import PrivateNode
from fedmq.broker_config.node.processes import free_port
from tests.support.rabbitmq import require_server


@dataclass(frozen=True)
class Tls:
    """A self-signed certificate for 127.0.0.1, and the port that presents it."""

    certificate: Path
    key: Path
    port: int


@pytest.fixture(scope="package")
def certified(tmp_path_factory: pytest.TempPathFactory) -> Tls | None:
    """A certificate and its port; None if there is no openssl to make one."""
    folder = tmp_path_factory.mktemp("tls")
    found = Tls(folder / "certificate.pem", folder / "key.pem", free_port())
    if shutil.which("openssl") is None:
        return None
    name = ("-subj", "/CN=fedmq test", "-addext", "subjectAltName=IP:127.0.0.1")
    files = ("-keyout", str(found.key), "-out", str(found.certificate))
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *name, *files],
        check=True,
        capture_output=True,
    )
    return found


@pytest.fixture
def tls(certified: Tls | None) -> Tls:
    if certified is None:
        pytest.skip("no openssl: TLS is not tested")
    return certified


@pytest.fixture(scope="package")
def node(tmp_path_factory: pytest.TempPathFactory, certified: Tls | None) -> Iterator[PrivateNode]:
    """A node that every test leaves running."""
    require_server()
    overrides = {}
    if certified is not None:
        overrides = {
            "listeners.ssl.1": f"127.0.0.1:{certified.port}",
            "ssl_options.cacertfile": str(certified.certificate),
            "ssl_options.certfile": str(certified.certificate),
            "ssl_options.keyfile": str(certified.key),
        }
    with PrivateNode(tmp_path_factory.mktemp("faults"), overrides=overrides) as node:
        yield node
