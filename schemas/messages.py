"""The messages between coordinator and participants: the wire contract.

Every message is frozen and refuses unknown fields. Tensors are not fields: they travel beside the message in the same
envelope (`schemas.codec`). A message is therefore small and printable, and has a JSON Schema.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping
from functools import cache, lru_cache
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

SCHEMA_VERSION = 1

_IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
Identifier = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", max_length=64)]
"""A run_id, participant_id, session_id, task_id or update_id: safe in a routing key and in a file name."""

Metrics = Annotated[dict[Annotated[str, StringConstraints(max_length=64)], float], Field(max_length=64)]
Text = Annotated[str, StringConstraints(max_length=4000)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Reply = Literal["delta", "parameters", "change", "scaffold"]
"""The form of an update: local - base, the local parameters, local - the sum of what the participant sent before
(AREA), or local - base beside the change of its control variate (SCAFFOLD). See `schemas.methods`."""
Count = Annotated[int, Field(ge=0, le=2**53)]
"""A count, bounded so that SQLite, msgpack and a float64 all hold it exactly."""
RUN_ID_HEADER = "run_id"
"""AMQP header of a task's message: a participant that cannot read the body still knows what to decline."""
_DIGEST = re.compile(r"[0-9a-f]{64}")
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$", max_length=64)]
"""A SHA-256."""
ConfigValue = bool | Annotated[int, Field(ge=-(2**63), lt=2**63)] | Annotated[float, Field(allow_inf_nan=False)] | Text

DeclineReason = Literal[
    "busy", "not_idle", "no_data", "unsupported", "trainer_error", "lease_over", "payload_lost", "unreadable",
    "bad_signature", "frozen_lost", "model_differs",
]  # fmt: skip
"""`unreadable`: the task's message, which its correlation_id names, could not be read. `bad_signature`: the task is not
signed by the fleet's coordinator, as the device's bundle demands. `frozen_lost`: the frozen part that the task names
is not here, or is another one, so it has to come with the next task. `model_differs`: the model that the task is to
train from cannot be made here, because the participant has another hidden state or none."""


_set = object.__setattr__


@cache
def _all_fields(message: type[BaseModel]) -> set[str]:
    """Return one set for all messages of a type: pydantic copies it before it changes it."""
    return set(message.model_fields)


class Message(BaseModel):
    """Base of all messages."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    @classmethod
    def trusted(cls, values: dict[str, Any]) -> Self:
        """Make a message from a valid value for every field, `kind` included. Nothing is checked, which saves most of
        the time, so only our own code's values may come here. The message keeps the dictionary."""
        made = cls.__new__(cls)
        _set(made, "__dict__", values)
        _set(made, "__pydantic_fields_set__", _all_fields(cls))
        _set(made, "__pydantic_extra__", None)
        _set(made, "__pydantic_private__", None)
        return made


class ChunkedPayload(Message):
    """The description of a message that travels in chunks. The message with this field is then a manifest. Its encoding
    without this field lies, cut into chunks, in a queue of its own (schemas.chunks, Topology.upload and download)."""

    payload_id: Identifier
    """An id that every chunk repeats, so that chunks of an earlier try, with other bytes, are told apart."""
    num_bytes: int = Field(ge=1, le=2**33)
    chunk_bytes: int = Field(ge=1024, le=2**30)
    """Size of every chunk but the last."""
    count: int = Field(ge=1, le=65_000)
    digest: Digest
    """SHA-256 of the chunks' SHA-256 digests, in their order."""

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        expected = -(-self.num_bytes // self.chunk_bytes)
        if self.count != expected:
            raise ValueError(f"{self.num_bytes} bytes in chunks of {self.chunk_bytes} are {expected}, not {self.count}")
        return self


MOST_EXTRA = 64
"""Keys of `TrainingConfig.extra`."""
UNFROZEN = "unfrozen"
"""Key of `TrainingConfig.extra` in tasks after an unfreezing (coordinator.decisions.versions.unfreezing): the last
version at which frozen tensors of the model began to move. A trainer then trains all tensors that the task says are
trainable, also those that the app freezes."""


class TrainingConfig(Message):
    """The training that the coordinator asks for, the same for all participants of a task."""

    epochs: int = Field(default=1, ge=1, le=10_000)
    batch_size: int = Field(default=32, ge=1, le=1_000_000)
    learning_rate: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """None keeps the learning rate that the app's model was compiled with."""
    proximal_mu: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """μ of FedProx (Li et al. 2020, "Federated Optimization in Heterogeneous Networks"): adds μ/2·‖w - w_base‖² to the
    loss."""
    max_steps: int | None = Field(default=None, ge=1, le=2**53)
    seed: int = Field(default=0, ge=0, lt=2**63)
    """The task's own seed: the core derives it from the run's seed and the task."""
    extra: dict[Annotated[str, StringConstraints(max_length=64)], ConfigValue] = Field(
        default_factory=dict, max_length=MOST_EXTRA
    )
    """Passed to the trainer as it is."""


class Uplink(Message):
    """The codec that an update is asked for in (schemas.codecs), with its settings."""

    codec: Identifier
    error_feedback: bool = False
    """True if the participant adds what its accepted updates left out to the next one (Karimireddy et al. 2019)."""
    rounding: Literal["stochastic", "nearest"] = "stochastic"
    """Rounding of int8 and int4."""
    lossless: Literal["none", "zstd"] = "none"
    """Compression of what the codec made."""
    fraction: float = Field(default=0.01, gt=0, le=1)
    """topk: part of the values that are sent."""
    values: Literal["float32", "bf16", "int8"] = "float32"
    """topk: form of the values that are sent."""
    rank: int = Field(default=2, ge=1, le=256)
    """powersgd: rank of the matrices."""

    @property
    def remembers(self) -> bool:
        """True if a participant keeps something of its accepted updates for the next one."""
        return self.error_feedback or self.codec == "powersgd"

    def lacking(self, codecs: Collection[str]) -> str | None:
        """Return the first thing that a participant with these codecs, from its hello, lacks; None if it has all."""
        needed = (self.codec, *([] if self.lossless == "none" else [self.lossless]))
        return next((name for name in needed if name not in codecs), None)


class Downlink(Message):
    """The form in which a task's model travels (schemas.codecs.hidden and rounded), and the digest of what is trained
    from."""

    codec: Literal["bf16", "hidden"]
    digest: Digest
    """Digest of the tensors that the participant trains from (schemas.signing.tensors_digest)."""
    held: Count | None = None
    """hidden: the version of the participant's own hidden state that the steps beside the task begin from. None: the
    whole hidden state is beside the task."""
    step: Uplink | None = None
    """hidden: the codec of the steps."""
    version: Count | None = None
    """hidden: the version that the newest step leads to, if that is older than the task's base version."""


class ModelReference(Message):
    """The place of a task's tensors in the stream of models (schemas.chunks)."""

    offset: Annotated[int, Field(ge=0, lt=2**63)]
    """Offset before that of the first chunk."""
    digest: Digest
    """Digest of the tensors (schemas.signing.tensors_digest)."""


class HeldModel(Message):
    """The newest hidden state that a participant has on its disk."""

    version: Count
    digest: Digest


class Hello(Message):
    """News of a participant that is here: on connecting, on a change of its state, and every `hello_interval_s`."""

    kind: Literal["hello"] = "hello"
    participant_id: Identifier
    session_id: Identifier
    """An id per process: a new one tells the coordinator that the participant restarted."""
    num_examples: Count
    accepting: bool = True
    """False while it holds a task or its conditions do not hold."""
    replies: tuple[Reply, ...] = ("delta", "parameters")
    """Forms of update that this participant can send back (its capabilities)."""
    codecs: tuple[Identifier, ...] = Field(default=(), max_length=64)
    """Codecs that it can send them in, "zstd" if it can compress them, "downlink" if it reads tasks with a `Downlink`,
    and "reference" if it reads those with a `ModelReference` (schemas.codecs.known)."""
    frozen: tuple[Digest, ...] | None = Field(default=None, max_length=64)
    """Frozen parts of models that it has on its disk (schemas.frozen); None if it does not know of frozen parts, and
    needs whole models."""
    model: HeldModel | None = None
    """The hidden state that it has; None if it has none."""
    task_ids: tuple[Identifier, ...] = Field(default=(), max_length=64)
    """Tasks it still holds: spooled, training, in the outbox, or sent and without a receipt."""
    last_task: Identifier | None = None
    """The task that was over last: it has a verdict, or was withdrawn. It would not be trained again."""
    software: Text = ""
    leaving: bool = False
    """True if this is the session's last hello: the process ends."""


class Task(Message):
    """An order to one participant: train from (or evaluate) the parameters beside this message."""

    kind: Literal["task"] = "task"
    task_id: Identifier
    run_id: Identifier
    participant_id: Identifier
    work: Literal["train", "evaluate"] = "train"
    base_version: Count
    reply: Reply
    training: TrainingConfig
    lease_s: float = Field(gt=0, allow_inf_nan=False)
    uplink: Uplink | None = None
    """Codec that the update is asked for in; None asks for the plain tensors."""
    frozen: Digest | None = None
    """The frozen part of the model (schemas.frozen), beside the other tensors or on the participant's disk; None if the
    tensors are the whole model."""
    downlink: Downlink | None = None
    """Form of the tensors beside this message; None if they are the model as it is."""
    former: tuple[Identifier, ...] | None = Field(default=None, max_length=16)
    """Earlier ids of this run (`run_uid`), newest first: its folder was restored from a backup, and its tasks have a
    new id. A participant goes on with what a codec left out under one of these. None if there are none, or no such
    codec."""
    chunks: ChunkedPayload | None = None
    """Set if the parameters travel in chunks, and not beside this message."""
    reference: ModelReference | None = None
    """Set if the chunks are in the stream of models, where other tasks refer to them too. They are a `Model`."""
    signature: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{128}$")] | None = None
    """The coordinator's Ed25519 signature (schemas.signing); None if the coordinator has no fleet."""

    @model_validator(mode="after")
    def _a_reference_has_chunks(self) -> Self:
        if self.reference is not None and self.chunks is None:
            raise ValueError("a task that refers to a model says in which chunks it is")
        return self


class Model(Message):
    """The tensors beside this message, which several tasks of a version refer to."""

    kind: Literal["model"] = "model"
    run_id: Identifier
    base_version: Count
    digest: Digest
    """Digest of the tensors (schemas.signing.tensors_digest)."""


class Update(Message):
    """A participant's answer to one task; the tensors beside it are its `payload`."""

    kind: Literal["update"] = "update"
    update_id: Identifier
    task_id: Identifier
    run_id: Identifier
    participant_id: Identifier
    base_version: Count
    payload: Reply | Literal["none"]
    """"none" answers an evaluate task: metrics only."""
    codec: Identifier | None = None
    """Codec of the tensors (schemas.codecs.wire); None if they are plain."""
    memory: Identifier | None = None
    """Mark of the method's memory that this update was made from; None if the participant had none, or if the method
    has no memory. The coordinator discards an update that was made from any other memory than the last accepted update
    left."""
    next_memory: Identifier | None = None
    """Mark of the method's memory once this update is accepted, new with every training."""
    num_examples: int = Field(ge=1, le=2**53)
    num_steps: Count
    metrics: Metrics = Field(default_factory=dict)
    """Metrics that the trainer reports. The `quality` client weight reads "loss", if it is there."""
    train_s: Seconds
    chunks: ChunkedPayload | None = None
    """Set if the payload travels in chunks, and not beside this message."""

    @model_validator(mode="after")
    def _chunks_are_of_a_payload(self) -> Self:
        if self.chunks is not None and self.payload == "none":
            raise ValueError("an update with payload 'none' has nothing to send in chunks")
        return self


class Decline(Message):
    """A participant's refusal of a task; the task's slot is free again."""

    kind: Literal["decline"] = "decline"
    task_id: Identifier
    run_id: Identifier
    participant_id: Identifier
    reason: DeclineReason
    detail: Text = ""
    retry_after_s: Seconds | None = None
    """Time until the participant would like to be asked again; None leaves that to the coordinator or to the next
    hello."""


class Receipt(Message):
    """The verdict on one update, sent after the commit that holds it."""

    kind: Literal["receipt"] = "receipt"
    update_id: Identifier
    task_id: Identifier
    run_id: Identifier
    participant_id: Identifier
    verdict: Literal["accepted", "discarded"]
    version: int | None = Field(default=None, ge=1, le=2**53)
    """The version that holds the update; None if it is not known yet, because the update is buffered."""
    reason: Text = ""


class Notice(Message):
    """News from the coordinator to a participant that asks for no training."""

    kind: Literal["notice"] = "notice"
    run_id: Identifier
    participant_id: Identifier
    event: Literal["run_finished", "task_withdrawn", "say_hello", "send_again"]
    """"send_again": chunks of this task's update are missing or damaged; upload it once more."""
    task_id: Identifier | None = None
    detail: Text = ""


Pem = Annotated[str, StringConstraints(min_length=1, max_length=4096)]
"""A certificate of a device, or a request for one: text, a tenth of this size for a P-256 key."""
KeyId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
"""SHA-256 of a key's public part (its SubjectPublicKeyInfo)."""


class CertificateRequest(Message):
    """A device's request for a certificate, to join with a token or to renew its own. It is sent again until there is
    an answer, and the same key gets the same certificate."""

    kind: Literal["certificate_request"] = "certificate_request"
    participant_id: Identifier
    request: Pem
    """A PKCS #10 request. Its subject counts for nothing: the sender's user, or the user's token, says who it is."""


class CertificateInstalled(Message):
    """News that a device has its certificate on disk."""

    kind: Literal["certificate_installed"] = "certificate_installed"
    participant_id: Identifier
    key_id: KeyId


class Certificate(Message):
    """The coordinator's answer to a request for a certificate."""

    kind: Literal["certificate"] = "certificate"
    participant_id: Identifier
    verdict: Literal["issued", "waiting", "refused"]
    """"waiting": the authority's key is elsewhere, and a person has to sign. The device asks again."""
    key_id: KeyId | None = None
    """The key of the request, because two devices with one token read one queue. None if the request was none."""
    certificate: Pem | None = None
    detail: Text = ""

    @model_validator(mode="after")
    def _is_there_if_issued(self) -> Self:
        if (self.certificate is not None) != (self.verdict == "issued"):
            raise ValueError("a certificate comes with the verdict 'issued', and with no other")
        return self


AnyMessage = (
    Hello | Task | Model | Update | Decline | Receipt | Notice | CertificateRequest | CertificateInstalled | Certificate
)

MESSAGE_TYPES: Mapping[str, type[AnyMessage]] = MappingProxyType(
    {
        m.model_fields["kind"].default: m
        for m in (
            Hello,
            Task,
            Model,
            Update,
            Decline,
            Receipt,
            Notice,
            CertificateRequest,
            CertificateInstalled,
            Certificate,
        )
    }
)
"""Every message class by its kind."""


def is_identifier(value: object) -> bool:
    """Return True if a foreign value, such as a header's, is an Identifier."""
    return isinstance(value, str) and _IDENTIFIER.fullmatch(value) is not None


def is_digest(value: str) -> bool:
    """Return True if a text, such as a file's name, is a Digest."""
    return _DIGEST.fullmatch(value) is not None


def run_uid(task_id: str) -> str:
    """Return the run's own id (docs/decisions/0007), which begins the ids of its tasks."""
    return task_id.rpartition("-")[0] or task_id


@lru_cache(maxsize=64)  # the maker of an update asks first, its checker in the same process asks next
def update_id(run_id: str, task_id: str, participant_id: str) -> str:
    """Return the id of the update for this task: the same however often it is computed or sent."""
    text = "\0".join((run_id, task_id, participant_id))
    return hashlib.sha256(text.encode()).hexdigest()[:32]
