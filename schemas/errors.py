"""Every error that fedmq raises on purpose, split by who is to blame.

FedmqError
├── InputError                the user's: fix the file, the flag or the code, then start again
│   ├── ConfigError           the federation file, an environment variable or a flag
│   │   └── InvalidValue      a value that a script made, of a setting or a study
│   ├── AppError              the app file: a missing function, a model that does not fit
│   │   └── StrategyError     the strategy raised, or made what is not finite
│   ├── TrainerError          the trainer raised, or returned what the protocol does not allow
│   └── MissingExtra          a package that a plain install leaves out: the message has the command
├── PeerError                 what a peer sent: discarded with `reason`, dead-lettered, never retried
│   ├── MalformedMessage      not a fedmq envelope, or a field that fails validation
│   ├── UnsupportedVersion    an envelope of a schema version that this build does not speak
│   ├── LimitExceeded         larger than the limits allow (checked before allocation)
│   ├── NotFinite             NaN or Inf among the values
│   ├── Overflow              a finite number that is far too large for any sum of updates
│   ├── SpecMismatch          tensor names, dtypes or shapes that differ from the model's
│   ├── WrongCodec            an update in another codec than the run's
│   └── BadSignature          a task that the fleet's coordinator has not signed as it is
├── BrokerError               RabbitMQ's, or the network's on the way to it
│   ├── BrokerUnavailable     no connection now; trying again may help
│   ├── BrokerRefused         credentials, virtual host, permissions: trying again cannot help
│   ├── TopologyConflict      a queue or exchange exists with other arguments
│   ├── PublishError          a message that the broker did not take over
│   │   ├── Unroutable        no queue is bound for its routing key
│   │   ├── PublishRejected   the broker said nack (a full queue)
│   │   └── PublishTimeout    no confirm within the deadline; the message may or may not have arrived
│   └── TransportClosed       used after close()
└── StateError                our own files
    ├── CheckpointError       torn, truncated, corrupt, or of another run
    ├── LedgerError           the SQLite ledger
    │   └── LedgerLocked      another process is in the middle of a transaction, and stands still
    ├── Deposed               another coordinator has taken the run over: nothing more may be committed or acked
    ├── SpoolError            the participant's spool and outbox
    └── FleetError            the fleet's folder: its inventory and its keys
"""

from __future__ import annotations

import re
from collections.abc import Sized
from typing import ClassVar

from fedmq.schemas.redaction import redacted
from fedmq.schemas.texts import escaped


def shown(value: object, max_chars: int = 80) -> str:
    """Return a foreign value for an error text: always short, and never its whole contents."""
    if isinstance(value, str):
        return repr(value) if len(value) <= max_chars else f"{value[:max_chars]!r}... ({len(value)} characters)"
    if value is None or isinstance(value, bool | int | float):
        text = repr(value)
        return text if len(text) <= max_chars else f"{text[:max_chars]}..."
    try:
        size = f" of {len(value)}" if isinstance(value, Sized) else ""
    except TypeError:  # an array without dimensions has a len() that raises
        size = ""
    return f"a {type(value).__name__}{size}"


_MOST_SAID_CHARS = 1000
_SEQUENCE = re.compile(r"\x1b\[[0-9;]*m|\{\{function_node [^}]*\}\}|\[\[\{\{[^\]]*\]\]|\[Op:[^\]]*\]( name: ?)?")
_FRAMES = re.compile(
    r"(Exception encountered when calling |Graph execution error|Detected at node |File \")|Stack trace"
)
_ARGUMENTS = "Arguments received by "


def in_short(error: BaseException) -> str:
    """Return what an error says, in one line with its type, for a peer or a log.

    Our own errors speak for themselves. Keras puts the sentence first and a list of arguments after it, TensorFlow puts
    it after the places where an operation was made: both are left out.
    """
    if isinstance(error, FedmqError):
        return str(error)
    text = _SEQUENCE.sub("", str(error)).partition(_ARGUMENTS)[0]
    lines = [line.strip() for line in text.splitlines()]
    said = " ".join(line for line in lines if line and not _FRAMES.match(line)) or " ".join(filter(None, lines))
    if len(said) > _MOST_SAID_CHARS:
        half = _MOST_SAID_CHARS // 2
        said = f"{said[:half]} ... {said[-half:]}"
    return f"{type(error).__name__}: {said}".rstrip(": ")


class FedmqError(Exception):
    """Root of the tree. The message says what was got, what was expected and what to do. It holds no secret."""

    def __init__(self, *args: object) -> None:
        super().__init__(*(redacted(argument) if isinstance(argument, str) else argument for argument in args))


class InputError(FedmqError):
    """A mistake that the user has to fix."""


class ConfigError(InputError):
    """A mistake in the federation file, an environment variable or a flag."""


class InvalidValue(ConfigError, ValueError):
    """A mistake in a value that a script made. It is a ValueError too, as pydantic's own errors are."""


class AppError(InputError):
    """A mistake in the app file."""


class StrategyError(AppError):
    """A function of the strategy raised, or what it made is not finite."""


class TrainerError(InputError):
    """The trainer raised, or returned what the trainer protocol does not allow."""


class MissingExtra(InputError):
    """A package that a plain install leaves out is not there. The message has the command that installs it."""


class PeerError(FedmqError):
    """A message from a peer that cannot be used. `reason` is the stable word that the ledger counts."""

    reason: ClassVar[str] = "malformed"

    def __init__(self, text: str = "") -> None:
        super().__init__(escaped(text))  # it quotes what the peer wrote


class MalformedMessage(PeerError):
    """A body that is no fedmq envelope, or a field that fails validation."""


class UnsupportedVersion(PeerError):
    """An envelope of a schema version that this build does not speak."""

    reason = "unsupported_version"


class LimitExceeded(PeerError):
    """A message larger than the limits allow."""

    reason = "oversized"


class Overflow(PeerError):
    """A number among the values that is finite, and far too large for any sum of updates."""

    reason = "overflow"


class NotFinite(PeerError):
    """NaN or Inf among the values."""

    reason = "not_finite"


class SpecMismatch(PeerError):
    """Tensor names, dtypes or shapes that differ from the model's."""

    reason = "wrong_shape"


class WrongCodec(PeerError):
    """An update in another codec than the one that the run asks for."""

    reason = "wrong_payload"


class BadSignature(PeerError):
    """A task without the coordinator's signature, or with one for something else."""

    reason = "bad_signature"


class BrokerError(FedmqError):
    """A failure of RabbitMQ, or of the network on the way to it."""


class BrokerUnavailable(BrokerError):
    """No connection now; trying again may help."""


class BrokerRefused(BrokerError):
    """Credentials, virtual host or permissions: trying again cannot help."""


class TopologyConflict(BrokerError):
    """A queue or exchange exists with other arguments than ours."""


class PublishError(BrokerError):
    """A message that the broker did not take over."""


class Unroutable(PublishError):
    """No queue is bound for the routing key."""


class PublishRejected(PublishError):
    """The broker answered nack, as a full queue with reject-publish does."""


class PublishTimeout(PublishError):
    """No confirm within the deadline: the message may or may not have arrived."""


class TransportClosed(BrokerError):
    """A transport that was used after close()."""


class StateError(FedmqError):
    """A failure of our own files."""


class CheckpointError(StateError):
    """A checkpoint that is torn, truncated, corrupt, or of another run."""


class LedgerError(StateError):
    """The ledger cannot be read or written."""


class Deposed(StateError):
    """Another coordinator has taken the run over: this one may commit and ack nothing any more."""


class LedgerLocked(LedgerError):
    """Another process is in the middle of a transaction and does not end it. Trying again may help."""


class SpoolError(StateError):
    """The participant's spool or outbox cannot be read or written."""


class FleetError(StateError):
    """The fleet's folder, with its inventory and its keys, cannot be read or written."""
