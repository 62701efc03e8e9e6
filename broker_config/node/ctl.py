"""rabbitmqctl: for a private node of this user, or for the RabbitMQ that this machine runs.

Rules
1. A secret goes through standard input, never through an argument: `ps` shows those to everybody.
2. An error names the command and repeats RabbitMQ's words. It repeats no argument and no input.
3. A call that takes too long is ended with all its processes.

Only three forms of rabbitmqctl read standard input on 3.10 and 4.0 alike, because the script of 4.0 counts its
arguments: `eval`, `add_user NAME` and `change_password NAME`, with nothing before or behind. In any other form 4.0
waits for ever. `eval` alone takes many orders at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import stat
import subprocess
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fedmq.schemas.errors import BrokerError, BrokerRefused, BrokerUnavailable, ConfigError

FILE = "rabbitmqctl.json"
"""File in a private node's data folder with which another process of this user speaks to the node. Its secret, the
Erlang cookie, is not in it."""
NO_USER = 67
"""rabbitmqctl's exit code if the user is not there."""
_UNAVAILABLE, _NO_PERMISSION = 69, 77
_MAX_FILE_BYTES = 64 * 1024
_MAX_WORDS = 2000
_COMMAND = re.compile(r"[a-z_]{1,64}")
_ECHO = re.compile(r"^(Arguments given:|\S*Usage\S*$|DIAGNOSTICS)", re.MULTILINE)
"""Beginning of the part of an error in which rabbitmqctl repeats its arguments, or describes the machine."""


class CtlFailed(BrokerError):
    """rabbitmqctl ended with another exit code than 0. RabbitMQ's words are in the text."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Ctl:
    """One way to run rabbitmqctl."""

    command: Path
    environment: Mapping[str, str] = field(repr=False)
    hint: str = ""
    """Advice for when the node does not answer."""

    @classmethod
    def of_system(cls) -> Ctl:
        """Return the rabbitmqctl of the RabbitMQ that this machine runs. Raises ConfigError if there is none."""
        found = shutil.which("rabbitmqctl")
        if found is None:
            raise ConfigError(
                "there is no rabbitmqctl on the PATH: run this on the broker's machine, or give the address of its "
                "management API"
            )
        return cls(Path(found), dict(os.environ), "start it (systemctl start rabbitmq-server)")

    @classmethod
    def of_node(cls, data_dir: Path) -> Ctl:
        """Return the rabbitmqctl of a private node, from the file that the node writes when it starts.

        Raises ConfigError if there is no such file, or if it is not a file of this user alone: it names a program.
        """
        path = data_dir / FILE
        try:
            handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            with os.fdopen(handle, "rb") as file:
                found = os.fstat(handle)
                if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
                    raise ConfigError(f"{path} has to be a file that belongs to this user and that only it may write")
                told = json.loads(file.read(_MAX_FILE_BYTES))
            command, environment = Path(told["command"]), told["environment"]
            texts = all(isinstance(text, str) for pair in environment.items() for text in pair)
        except FileNotFoundError:
            raise ConfigError(
                f"{data_dir} is not the folder of a private node (it has no {FILE}): start one there with "
                "`fedmq broker --dir`"
            ) from None
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            texts = False
        if not texts:
            raise ConfigError(f"{path} does not describe a private node: start the node again, which writes it anew")
        return cls(command, _outer_environment() | environment, f"start the node again (its folder is {data_dir})")

    def run(
        self, *arguments: str, stdin: str | None = None, secrets: Collection[str] = (), timeout_s: float = 60.0
    ) -> str:
        """Run one command and return its output. `secrets` are texts of `stdin` that no error may repeat.

        Raises CtlFailed, BrokerUnavailable if the node does not answer or the command takes longer than timeout_s, and
        BrokerRefused if this user may not run rabbitmqctl.
        """
        name = arguments[0] if arguments and _COMMAND.fullmatch(arguments[0]) else "rabbitmqctl"
        try:
            process = subprocess.Popen(  # noqa: S603  no shell, and the program is the broker's own
                [str(self.command), *arguments],
                env=dict(self.environment),
                stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        except OSError as error:
            raise BrokerUnavailable(f"{self.command} cannot be started: {error.strerror}") from None
        with process:
            try:
                out, err = process.communicate(stdin, timeout=timeout_s)
            except BaseException as error:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                if not isinstance(error, subprocess.TimeoutExpired):
                    raise
                raise BrokerUnavailable(
                    f"rabbitmqctl {name} did not end within {timeout_s:g} s: is the node overloaded, or the machine?"
                ) from None
        if process.returncode != 0:
            raise self._failed(name, process.returncode, _words(f"{err}\n{out}", secrets))
        return out

    def call(self, *arguments: str) -> int:
        """Run one command for a person, with this process's own standard streams. Return its exit code.

        Raises BrokerUnavailable if rabbitmqctl cannot be started.
        """
        try:
            return subprocess.call([str(self.command), *arguments], env=dict(self.environment))  # noqa: S603
        except OSError as error:
            raise BrokerUnavailable(f"{self.command} cannot be started: {error.strerror}") from None

    def _failed(self, name: str, code: int, words: str) -> BrokerError:
        if "Only root or rabbitmq" in words or code == _NO_PERMISSION:
            return BrokerRefused(
                f"rabbitmqctl {name} was refused ({words}): run this as root or as the user rabbitmq, or give the "
                "address of the management API"
            )
        if code == _UNAVAILABLE and "unable to perform an operation on node" in words:
            return BrokerUnavailable(f"rabbitmqctl {name}: the RabbitMQ node does not answer: {self.hint or words}")
        return CtlFailed(f"rabbitmqctl {name} failed ({code}): {words}", code)


def running_here() -> list[Path]:
    """Return the folders of the private nodes of this user that run on this machine, in order of their names."""
    import psutil

    found = set()
    for process in psutil.process_iter(["name", "uids"]):
        with contextlib.suppress(psutil.Error):
            if (process.info["name"] or "").startswith("beam") and process.info["uids"].real == os.getuid():
                folder = Path(process.environ().get("RABBITMQ_PID_FILE", "")).parent
                if folder.is_absolute() and (folder / FILE).exists():
                    found.add(folder)
    return sorted(found)


def write_file(data_dir: Path, command: Path, environment: Mapping[str, str]) -> None:
    """Write the file that `Ctl.of_node` reads: what `environment` has beside this process's own variables."""
    ours = {name: text for name, text in environment.items() if _outer_environment().get(name) != text}
    beside = data_dir / f"{FILE}.tmp"
    beside.unlink(missing_ok=True)
    with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w") as file:
        json.dump({"command": str(command), "environment": ours}, file, indent=1)
    beside.replace(data_dir / FILE)


def _outer_environment() -> dict[str, str]:
    """Return this process's environment without a word about another RabbitMQ or Erlang."""
    return {name: text for name, text in os.environ.items() if not name.startswith(("RABBITMQ_", "ERL_", "ERLANG_"))}


def _words(text: str, secrets: Collection[str]) -> str:
    """Return rabbitmqctl's words without what it was told."""
    found = _ECHO.split(text, maxsplit=1)[0]
    for secret in secrets:
        found = found.replace(secret, "***")
    return found.strip()[-_MAX_WORDS:]
