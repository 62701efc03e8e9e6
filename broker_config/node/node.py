"""A private RabbitMQ: one node on free ports of the loopback interface, with its own data, cookie, epmd and password.

The tests, the demo and the benchmarks run against it. It reads and touches nothing of a RabbitMQ that the machine may
already run. It calls the server's own scripts (`rabbitmq_server-*/sbin`), because the wrappers that distributions put
on the PATH switch to another user. It works with RabbitMQ 3.10 and 4.x.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

from fedmq.broker_config.amqp.address import BrokerAddress
from fedmq.broker_config.amqp.handshake import try_login
from fedmq.broker_config.definitions import password_hash
from fedmq.broker_config.node.ctl import Ctl, write_file
from fedmq.broker_config.node.processes import PortMapper, Watchdog, end, free_port, listens, spawn
from fedmq.broker_config.node.tls import PLUGIN, TLS_CONFIG, NodeTls
from fedmq.schemas.errors import BrokerError, BrokerUnavailable, ConfigError, shown
from fedmq.schemas.local.files import make_folder, open_log, tail, write_private
from fedmq.schemas.redaction import keep_secret

_HERE = Path(__file__).parent.parent
DEFAULT_CONFIG = _HERE / "rabbitmq.conf"
DEFAULT_DEFINITIONS = _HERE / "definitions.json"

_PLACES = (
    "/usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin",
    "/usr/local/lib/rabbitmq/lib/rabbitmq_server-*/sbin",
    "/usr/local/rabbitmq_server-*/sbin",
    "/opt/rabbitmq_server-*/sbin",
    "/opt/*/rabbitmq_server-*/sbin",
    "/opt/rabbitmq/sbin",
    "/opt/homebrew/opt/rabbitmq/sbin",
    "/usr/local/opt/rabbitmq/sbin",
)
_USER = "fedmq"
_FOLDERS = ("home", "log", "mnesia", "conf.d", "generated")
_POLL_S = 0.05
_STARTUP_S = 30.0
_LOG_TAIL_BYTES = 4000
_IN_PATHS = "/._-,+@=:~$% ()"
"""Characters of paths, beside letters and digits, with which RabbitMQ was seen to start."""
_MOST_PATH_BYTES = 512
"""RabbitMQ's own files lie deeper, and the system's limit is 4096 bytes for each."""
_NO_TCP = "listeners.tcp = none"


def find_server() -> Path | None:
    """Return the newest installed server's sbin directory, or None. FEDMQ_RABBITMQ_SBIN overrides the search.

    Raises ConfigError if FEDMQ_RABBITMQ_SBIN is set but names no server.
    """
    if named := os.environ.get("FEDMQ_RABBITMQ_SBIN"):
        if not _is_sbin(Path(named)):
            raise ConfigError(
                f"FEDMQ_RABBITMQ_SBIN is {named!r}, which has no rabbitmq-server with rabbitmq-env beside it: "
                "name the sbin directory of an unpacked server, or unset it"
            )
        return Path(named)
    found = [sbin for place in _PLACES for sbin in Path("/").glob(place.lstrip("/")) if _is_sbin(sbin)]
    if on_path := shutil.which("rabbitmq-server"):
        sbin = Path(on_path).resolve().parent
        if _is_sbin(sbin):
            found.append(sbin)
    return max(found, key=_version, default=None)


def _usable(folder: Path) -> Path:
    """Return the folder. Raises ConfigError if RabbitMQ cannot take its name: its scripts and its configuration quote
    nothing, and a start would hang or fail with a page of Erlang."""
    path = str(folder)
    wrong = sorted({c for c in path if not (c.isalnum() or c in _IN_PATHS)})
    if wrong:
        allowed = f"letters, digits, spaces and {_IN_PATHS.replace(' ', '')}"
        raise ConfigError(
            f"RabbitMQ cannot keep its data in {shown(path, 200)}, because of {' '.join(map(shown, wrong))} in it. A "
            f"path may have {allowed} . Name another folder (--dir)"
        )
    if (size := len(os.fsencode(path))) > _MOST_PATH_BYTES:
        raise ConfigError(
            f"RabbitMQ cannot keep its data in a folder whose path has {size} bytes, expected at most "
            f"{_MOST_PATH_BYTES}. Name another folder (--dir)"
        )
    return folder


def _is_sbin(path: Path) -> bool:
    # A wrapper has no rabbitmq-env beside it.
    return (path / "rabbitmq-server").is_file() and (path / "rabbitmq-env").is_file()


def _version(sbin: Path) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", sbin.parent.name))


class PrivateNode:
    """One RabbitMQ node of our own. It keeps data, ports and password over stop() or kill() and the next start().

    The node goes down with this process, even if the process is killed (`processes.Watchdog`).
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        port: int | None = None,
        password: str | None = None,
        config: Path | None = None,
        definitions: Path | None = None,
        overrides: Mapping[str, str] | None = None,
        name: str = _USER,
        mapper: PortMapper | None = None,
        cookie: str | None = None,
        tls: NodeTls | None = None,
        plugins: Sequence[str] = (),
    ) -> None:
        """`config` and `definitions` default to fedmq's own. `overrides` are rabbitmq.conf keys that win over `config`.
        Nodes that are to form a cluster share `mapper`, `cookie` and `password`, and differ in `name`. A node with
        `tls` has no port without TLS, and no user: `ctl` makes them.

        Raises ConfigError if no rabbitmq-server is installed.
        """
        sbin = find_server()
        if sbin is None:
            raise ConfigError(
                "no rabbitmq-server found: install the package rabbitmq-server (its service need not run), "
                "or set FEDMQ_RABBITMQ_SBIN to the sbin directory of an unpacked server"
            )
        self._sbin = sbin
        self.data_dir = _usable(data_dir.resolve())
        self.port = port or free_port()
        self._dist_port = free_port()
        self.name = f"{name}@localhost"
        self._mapper = mapper or PortMapper()
        self._owns_mapper = mapper is None
        self._cookie = cookie
        self._password = password or secrets.token_urlsafe(18)
        keep_secret(self._password)
        self._config = config or DEFAULT_CONFIG
        self._definitions = definitions or DEFAULT_DEFINITIONS
        self._overrides = dict(overrides or {})
        self._tls = tls
        self._plugins = [*([PLUGIN] if tls else []), *plugins]
        self._server: subprocess.Popen[bytes] | None = None
        self._watchdog: Watchdog | None = None

    @property
    def url(self) -> str:
        """AMQP URL of the user `fedmq`, who has all permissions in the virtual host "/". With `tls` it names no user:
        the certificate does."""
        return f"amqps://127.0.0.1:{self.port}/%2F" if self._tls else self.url_for()

    def url_for(self, user: str = _USER, password: str | None = None, vhost: str = "/", port: int | None = None) -> str:
        """Return the URL with other parts, for tests of refusals and for users that ctl("add_user", ...) made."""
        secret = self._password if password is None else password
        scheme, place = "amqps" if self._tls else "amqp", f"127.0.0.1:{port or self.port}"
        return f"{scheme}://{quote(user)}:{quote(secret, safe='')}@{place}/{quote(vhost, safe='')}"

    @property
    def pid(self) -> int | None:
        """Process id of the Erlang machine; None while it is not running."""
        return self._server.pid if self._server and self._server.poll() is None else None

    def start(self, timeout_s: float = 60.0) -> None:
        """Start, and return when the node accepts a login.

        Raises BrokerUnavailable with the log's tail, and ConfigError if the folder or a certificate does not fit `tls`.
        """
        if self.pid is not None:
            return
        self._end_processes()
        self._write_files()
        env = self._environment()
        console = self.data_dir / "log" / "console.log"
        with open_log(console) as out:
            epmd = self._mapper.start(self._sbin, env, out)
            self._await(lambda: listens(self._mapper.port), epmd, time.monotonic() + timeout_s, "epmd")
            self._server = spawn([str(self._sbin / "rabbitmq-server")], env, out)
            self._watchdog = Watchdog(self._server.pid)
        deadline = time.monotonic() + timeout_s
        self._await(self._serves_tls if self._tls else self._takes_login, self._server, deadline, "rabbitmq-server")

    def stop(self, timeout_s: float = 30.0) -> None:
        """Shut down cleanly (SIGTERM; SIGKILL after timeout_s). Does nothing if the node is not running."""
        if self._server is not None and self._server.poll() is None:
            self._server.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._server.wait(timeout_s)
        self._end_processes()

    def kill(self) -> None:
        """End the node by SIGKILL, as a power cut would. Return when the process is gone."""
        self._end_processes()

    def ctl(self, *args: str, timeout_s: float = 60.0) -> str:
        """Run rabbitmqctl against this node and return its output. Raises BrokerError if it fails, without `args`."""
        return self.rabbitmqctl.run(*args, "--quiet", timeout_s=timeout_s)

    @property
    def rabbitmqctl(self) -> Ctl:
        """The node's rabbitmqctl. Another process has it by `Ctl.of_node(data_dir)`."""
        return Ctl(self._sbin / "rabbitmqctl", self._environment(), "start the node first")

    def flush_new_queues(self) -> None:
        """Make RabbitMQ write its list of quorum queues to disk at once.

        By itself it does so some seconds late. A kill before that loses a queue that was just declared, with its
        confirmed messages, and leaves it without a leader for good (seen with 3.10.8). A test that declares, publishes
        and kills within seconds calls this after declaring.
        """
        self.ctl("eval", "[dets:sync(Table) || Table <- dets:all()].")

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self._end_processes()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # -- files -------------------------------------------------------------------------------------------------

    def _write_files(self) -> None:
        text = self._config_text()
        self._check_folder()
        for folder in (self.data_dir, *(self.data_dir / name for name in _FOLDERS)):
            make_folder(folder)
        write_private(self.data_dir / "enabled_plugins", f"[{','.join(self._plugins)}].\n")
        write_private(self.data_dir / "advanced.config", "[].\n")
        write_private(self.data_dir / "rabbitmq-env.conf", "")
        cookie = self.data_dir / "home" / ".erlang.cookie"
        if self._cookie is not None and not cookie.exists():
            write_private(cookie, self._cookie)
            cookie.chmod(0o400)
        write_private(self.data_dir / "rabbitmq.conf", text)
        write_file(self.data_dir, self._sbin / "rabbitmqctl", self._environment())
        # It holds the hash of the password, so nobody else may read it.
        write_private(self.data_dir / "definitions.json", json.dumps(self._definitions_with_user(), indent=1))

    def _config_text(self) -> str:
        ours = {
            "load_definitions": str(self.data_dir / "definitions.json"),
            # The alarm of a full disk has its own tests. A small disk must not fail the others.
            "disk_free_limit.absolute": "50MB",
            **(self._tls.settings(self.port) if self._tls else {}),
            **self._overrides,
        }
        base = self._config.read_text() + (TLS_CONFIG.read_text() if self._tls else "")
        kept = [line for line in base.splitlines() if line.split("=")[0].strip() not in ours]
        return "\n".join([*kept, *(f"{key} = {value}" for key, value in ours.items()), ""])

    def _check_folder(self) -> None:
        """Refuse a folder of passwords for a node of certificates. Its administrator `fedmq` would let in whoever has a
        certificate with that name."""
        before = self.data_dir / "rabbitmq.conf"
        if self._tls and before.exists() and _NO_TCP not in before.read_text().splitlines():
            raise ConfigError(
                f"{self.data_dir} holds a broker with an administrator's password: choose another folder for a broker "
                "with certificates"
            )

    def _definitions_with_user(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._definitions.read_text())
        if self._tls:
            return found
        user = {
            "name": _USER,
            "password_hash": password_hash(self._password),
            "hashing_algorithm": "rabbit_password_hashing_sha256",
            "tags": ["administrator"],
        }
        permission = {"user": _USER, "vhost": "/", "configure": ".*", "write": ".*", "read": ".*"}
        found["users"] = [*found.get("users", []), user]
        found["permissions"] = [*found.get("permissions", []), permission]
        return found

    def _environment(self) -> dict[str, str]:
        # A server needs no setting of ours. One of them is the URL of another broker, with its password.
        left_out = ("RABBITMQ_", "ERL_", "ERLANG_", "FEDMQ_")
        kept = {key: value for key, value in os.environ.items() if not key.startswith(left_out)}
        return {
            **kept,
            "HOME": str(self.data_dir / "home"),  # holds the Erlang cookie, which Erlang makes if we give none
            "LC_ALL": "C.UTF-8",
            "ERL_EPMD_PORT": str(self._mapper.port),
            "RABBITMQ_NODENAME": self.name,  # names are unique per epmd, and the epmd is ours
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            # The variable would open a port without TLS, whatever rabbitmq.conf says.
            **({} if self._tls else {"RABBITMQ_NODE_PORT": str(self.port)}),
            "RABBITMQ_DIST_PORT": str(self._dist_port),
            "RABBITMQ_MNESIA_BASE": str(self.data_dir / "mnesia"),
            "RABBITMQ_LOG_BASE": str(self.data_dir / "log"),
            "RABBITMQ_PID_FILE": str(self.data_dir / "node.pid"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.data_dir / "enabled_plugins"),
            "RABBITMQ_CONFIG_FILE": str(self.data_dir / "rabbitmq.conf"),
            "RABBITMQ_CONFIG_FILES": str(self.data_dir / "conf.d"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(self.data_dir / "advanced.config"),
            "RABBITMQ_CONF_ENV_FILE": str(self.data_dir / "rabbitmq-env.conf"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(self.data_dir / "generated"),
            # A server that refuses its configuration leaves a crash dump, by default in the working directory.
            "ERL_CRASH_DUMP": str(self.data_dir / "log" / "erl_crash.dump"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            # The script becomes the Erlang machine instead of watching over it, so we may signal its pid.
            "RUNNING_UNDER_SYSTEMD": "true",
        }

    # -- processes ---------------------------------------------------------------------------------------------

    def _takes_login(self) -> bool:
        return try_login(BrokerAddress.parse(self.url))

    def _serves_tls(self) -> bool:
        """True if the node has started. No login tells, because we have no certificate of a user."""
        if not listens(self.port):
            return False
        with contextlib.suppress(BrokerError):
            self.ctl("await_startup", timeout_s=_STARTUP_S)
            return True
        return False

    def _await(self, ready: Callable[[], bool], process: subprocess.Popen[bytes], deadline: float, what: str) -> None:
        while not ready():
            if (code := process.poll()) is not None:
                self._end_processes()
                raise BrokerUnavailable(f"{what} ended with code {code} while starting; its log ends:\n{self._tail()}")
            if time.monotonic() > deadline:
                self._end_processes()
                raise BrokerUnavailable(f"{what} was not ready in time; its log ends:\n{self._tail()}")
            time.sleep(_POLL_S)

    def _tail(self) -> str:
        logs = sorted((self.data_dir / "log").glob("*.log"), key=lambda path: path.lstat().st_mtime)
        return "\n".join(tail(path, _LOG_TAIL_BYTES) for path in logs[-2:])

    def _end_processes(self) -> None:
        if self._watchdog is not None:
            self._watchdog.dismiss()
        end(self._server)
        self._server = self._watchdog = None
        if self._owns_mapper:
            self._mapper.stop()
