"""A broker's administration by rabbitmqctl, for a private node and for the RabbitMQ of this machine.

rabbitmqctl cannot declare or delete an exchange, and it takes up to two seconds for one queue. Its `eval` can do both
for many, and it reads its program from standard input. So a thousand devices come in with one call, and names need no
quoting: they travel in base64. Each function that is called here is in RabbitMQ 3.10 and 4.0 alike.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Collection
from typing import Any

from fedmq.broker_config.admin.admin import ByDocuments
from fedmq.broker_config.admin.documents import Document
from fedmq.broker_config.node.ctl import NO_USER, Ctl, CtlFailed
from fedmq.schemas.errors import BrokerError, ConfigError, shown

TIMEOUT_S = 60.0
_PER_NAME_S = 0.2
"""Time that RabbitMQ may take for one user, exchange or queue more."""
_PLAIN = re.compile(r"[A-Za-z0-9/][A-Za-z0-9/._@-]{0,254}")
"""Arguments of rabbitmqctl. Debian's command hands them to a shell."""
_MAX_WORDS = 500

_IMPORT = "rabbit_definitions:import_raw({document})."
_DELETE_QUEUES = """
Delete = fun(Name) ->
    case rabbit_amqqueue:lookup(rabbit_misc:r({vhost}, queue, Name)) of
        {{ok, Queue}} ->
            case rabbit_amqqueue:delete(Queue, false, false, <<"fedmq">>) of
                {{ok, _}} -> ok;
                Other -> {{Name, Other}}
            end;
        {{error, not_found}} -> ok
    end
end,
case [Result || Name <- {names}, (Result = Delete(Name)) =/= ok] of [] -> ok; Failed -> Failed end.
"""
_DELETE_EXCHANGE = """
case rabbit_exchange:delete(rabbit_misc:r({vhost}, exchange, {name}), false, <<"fedmq">>) of
    {{error, not_found}} -> ok;
    Other -> Other
end.
"""


class RabbitmqctlAdmin(ByDocuments):
    """The administration of the node that a `Ctl` reaches."""

    def __init__(self, ctl: Ctl, vhost: str = "/") -> None:
        """Raises ConfigError for a virtual host that cannot be an argument of a command."""
        self._ctl = ctl
        self.vhost = _argument(vhost, "virtual host")

    def users(self) -> Collection[str]:
        return frozenset(row["user"] for row in self._rows("list_users"))

    def delete_user(self, name: str) -> None:
        try:
            self._ctl.run("delete_user", _argument(name, "user"), "--quiet", timeout_s=TIMEOUT_S)
        except CtlFailed as error:
            if error.code != NO_USER:  # RabbitMQ 4.0 says nothing of a user that is not there
                raise

    def delete_exchange(self, name: str) -> None:
        self._eval(_DELETE_EXCHANGE.format(vhost=_binary(self.vhost), name=_binary(name)), f"exchange {shown(name)}")

    def queues(self) -> Collection[str]:
        return frozenset(row["name"] for row in self._rows("list_queues", "-p", self.vhost, "name"))

    def delete_queues(self, names: Collection[str]) -> None:
        if names:
            listed = f"[{', '.join(_binary(name) for name in sorted(names))}]"
            program = _DELETE_QUEUES.format(vhost=_binary(self.vhost), names=listed)
            self._eval(program, f"{len(names)} queues", timeout_s=TIMEOUT_S + _PER_NAME_S * len(names))

    def connections_of(self, user: str) -> Collection[str]:
        rows = self._rows("list_connections", "user", "name")
        return frozenset(row["name"] for row in rows if row["user"] == user)

    def _import(self, document: Document, secrets: Collection[str] = ()) -> None:
        count = sum(len(rows) for rows in document.values())
        what = ", ".join(f"{len(rows)} {kind}" for kind, rows in document.items() if rows)
        program = _IMPORT.format(document=_binary(json.dumps(document)))
        self._eval(program, what, secrets, timeout_s=TIMEOUT_S + _PER_NAME_S * count)

    def _eval(self, program: str, what: str, secrets: Collection[str] = (), timeout_s: float = TIMEOUT_S) -> None:
        """Run a program whose value is `ok` if it has succeeded."""
        said = self._ctl.run("eval", stdin=program, secrets=[*secrets, program], timeout_s=timeout_s).strip()
        if said != "ok":
            for secret in secrets:
                said = said.replace(secret, "***")
            raise BrokerError(
                f"RabbitMQ did not do as told with {what} in virtual host {self.vhost!r}: it said "
                f"{shown(said, _MAX_WORDS)}; if it lacks the virtual host, make it (rabbitmqctl add_vhost)"
            )

    def _rows(self, *arguments: str) -> list[dict[str, Any]]:
        text = self._ctl.run(*arguments, "--formatter", "json", "--quiet", timeout_s=TIMEOUT_S)
        try:
            rows = json.loads(text or "[]")
            if isinstance(rows, list) and all(isinstance(row, dict) for row in rows):
                return rows
        except ValueError:
            pass
        raise BrokerError(f"rabbitmqctl {arguments[0]} answered with something else than a table in JSON")


def _argument(text: str, what: str) -> str:
    if not _PLAIN.fullmatch(text):
        raise ConfigError(
            f"{what} {shown(text)} cannot be an argument of rabbitmqctl: expected at most 255 letters, digits, '.', "
            "'_', '-', '@' or '/'; or use the management API"
        )
    return text


def _binary(text: str) -> str:
    """Return an Erlang expression for a binary of this text."""
    return f'base64:decode(<<"{base64.b64encode(text.encode()).decode()}">>)'
