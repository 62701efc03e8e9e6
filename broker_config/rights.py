"""The least rights of each role on the broker: the three expressions of `rabbitmqctl set_permissions`.

RabbitMQ takes each expression as a regular expression of Erlang's `re` (PCRE) and searches a name for it. So each one
is anchored, and every character of the prefix and of the id that is not plainly a letter, a digit, `_` or `-` is
escaped. Without the anchors user `sensor` reads the queues of `sensor-2`; without the escapes user `a.b` reads those of
`aXb`.

All devices read the stream of models (`Topology.models`). The right to read a stream is not the right to purge it:
RabbitMQ refuses that for streams.

Publishing to the default exchange asks for the right to write to `amq.default`. A passive declaration asks for no
right: it is how a device looks at the objects that it shares with others.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from fedmq.schemas.errors import ConfigError, shown

_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""Prefixes and participants' ids (`schemas.messages.Identifier`)."""
_KEY = "[0-9a-f]{32}"
"""Key of a payload queue (`Topology.upload`, `Topology.download`)."""


@dataclass(frozen=True, slots=True)
class Rights:
    """The rights of a user in the federation's virtual host: one expression for the names of each right."""

    configure: str
    """Names of the queues and exchanges that the user may declare and delete."""
    write: str
    """Names of the exchanges that it may publish to, and of the queues that it may bind."""
    read: str
    """Names of the queues that it may consume and purge, and of the exchanges that it may bind a queue to."""


def device_rights(prefix: str, participant_id: str) -> Rights:
    """Return the rights of a device whose user has the name of its participant. Raises ConfigError for a prefix or an
    id that fedmq does not allow."""
    p, own = _escaped(prefix, "prefix"), _escaped(participant_id, "participant id")
    payload = rf"payload\.{own}\.{_KEY}"
    return Rights(
        configure=rf"^{p}\.(participant\.{own}|{payload})$",
        write=rf"^{p}\.(updates|control|up\.{own}|{payload})$",
        read=rf"^{p}\.(models|participant\.{own}|up\.{own}|{payload})$",
    )


def coordinator_rights(prefix: str) -> Rights:
    """Return the rights of the coordinators' user: everything of the prefix, and the default exchange. Raises
    ConfigError for a prefix that fedmq does not allow."""
    p = _escaped(prefix, "prefix")
    return Rights(configure=rf"^{p}\..*", write=rf"^(amq\.default|{p}\..*)$", read=rf"^{p}\..*")


def joining_rights(prefix: str, user: str) -> Rights:
    """Return the rights of the temporary user of a token: to ask on the control exchange, and to read the answer from a
    queue of its own. Raises ConfigError as `device_rights` does."""
    p, own = _escaped(prefix, "prefix"), _escaped(user, "user")
    queue = rf"^{p}\.participant\.{own}$"
    return Rights(configure=queue, write=rf"^{p}\.control$", read=queue)


def _escaped(name: str, what: str) -> str:
    if not _PLAIN.fullmatch(name):
        raise ConfigError(
            f"{what} {shown(name)} cannot be in an expression of rights: expected a letter or digit, then at most 63 "
            "letters, digits, '.', '_' or '-'"
        )
    return name.replace(".", r"\.")
