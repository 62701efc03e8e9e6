"""The [run], [strategy], [training] and [commit] tables of a federation file."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal, Protocol, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fedmq.schemas.codecs.names import BUILT_IN, CUSTOM, DOWNLINKS, FITTING, NEEDS_FEEDBACK
from fedmq.schemas.messages import MOST_EXTRA, UNFROZEN, Identifier, Reply, TrainingConfig, Uplink
from fedmq.schemas.nearest import near
from fedmq.schemas.told import Told


class Replies(Protocol):
    """A strategy, as the tables of codecs see it.

    It may say by itself which of them it is known to work with, in the optional attributes `uplinks` and `downlinks`.
    Without these, those that fit its reply count.
    """

    @property
    def reply(self) -> Reply: ...


def _known(strategy: Replies, attribute: str, by_reply: Mapping[Reply, tuple[str, ...]]) -> tuple[str, str]:
    """Return which codecs a strategy is known to work with, "none" first, and what that rests on, in words."""
    own = getattr(strategy, attribute, None)
    allowed = ", ".join(("none", *(by_reply[strategy.reply] if own is None else own)))
    if own is not None:
        return allowed, f"the strategy {getattr(strategy, 'name', type(strategy).__name__)}"
    return allowed, f"a strategy whose updates carry {strategy.reply!r}"


class Settings(BaseModel, metaclass=Told):
    model_config = ConfigDict(frozen=True, extra="forbid")


_LOW_IS_BETTER = re.compile(
    r"(.*[^a-z])?(loss|error|distance|mse|mae|rmse|mape|msle|perplexity|crossentropy|divergence)", re.IGNORECASE
)


def is_better_low(metric: str) -> bool:
    """Return True for the names of losses, errors and distances. Other metrics are taken to be better high."""
    return _LOW_IS_BETTER.fullmatch(metric) is not None


class Goal(Settings):
    """A metric that should be high (`max`) or low (`min`). Without a `mode` the names of losses and errors mean low."""

    @model_validator(mode="before")
    @classmethod
    def _low_by_name(cls, data: Any) -> Any:
        if isinstance(data, dict) and "mode" not in data and is_better_low(str(data.get("name"))):
            return {**data, "mode": "min"}
        return data


class TargetMetric(Goal):
    """Stop when a central evaluation reaches a value."""

    name: str
    value: float = Field(allow_inf_nan=False)
    mode: Literal["max", "min"] = "max"


class Patience(Goal):
    """Stop after `evaluations` central evaluations without an improvement of `min_delta`."""

    name: str
    evaluations: int = Field(ge=1)
    min_delta: float = Field(default=0.0, ge=0)
    mode: Literal["max", "min"] = "max"


class StopSettings(Settings):
    """Limits and goals that end the run, whichever comes first. At least one must be set."""

    max_versions: int | None = Field(default=None, ge=1)
    max_updates: int | None = Field(default=None, ge=1)
    max_time_s: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    target: TargetMetric | None = None
    patience: Patience | None = None


class StepAssignment(Settings):
    """Optimiser steps of a task: as many as its participant makes in `target_s`, by its measured speed.

    This works with any strategy but FedCompass, which assigns steps by arrival groups
    (coordinator.decisions.participants.arrival_groups). There the updates of unequal participants come at one
    moment and make a version together. Here every task is meant to last `target_s`, the strategy alone decides when it
    makes a version, and nobody waits. The updates come at the same pace, not at the same moment.
    """

    target_s: float = Field(gt=0, allow_inf_nan=False)
    min_steps: int = Field(default=1, ge=1, le=2**53)
    """Fewest steps of a task. A participant of unknown speed gets this number too."""
    max_steps: int = Field(default=1000, ge=1, le=2**53)

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.min_steps > self.max_steps:
            raise ValueError(f"min_steps = {self.min_steps} is more than max_steps = {self.max_steps}: swap them")
        return self

    def steps(self, step_s: float | None) -> int:
        """Return the steps for a participant that takes `step_s` seconds a step; None means not known yet."""
        if step_s is None:
            return self.min_steps
        if step_s * self.max_steps <= self.target_s:
            return self.max_steps
        return max(self.min_steps, int(self.target_s / step_s))


class RunSettings(Settings):
    """Settings of the decision core, apart from the strategy."""

    run_id: Identifier
    seed: int = Field(default=0, ge=0, lt=2**63)
    concurrency: int = Field(default=16, ge=1)
    """Number of tasks out at one time, for asynchronous strategies. A cohort sets its own."""
    min_participants: int = Field(default=1, ge=1)
    """No task goes out before this many participants are here."""
    selection: Literal["uniform", "least_used"] = "uniform"
    client_weights: Literal["equal", "examples", "sqrt", "log", "quality"] = "equal"
    max_client_weight: float = Field(default=10.0, ge=1, allow_inf_nan=False)
    """Most that one participant counts for, as a multiple of the mean of those that count for less. It cuts down what
    participants claim; `equal` needs none."""
    max_examples: int = Field(default=10_000_000, ge=1, le=2**53)
    """Largest number of training examples that a participant may claim. A larger claim counts as this number."""
    max_staleness: int | None = Field(default=None, ge=0)
    lease_s: float = Field(default=600.0, gt=0)
    participant_timeout_s: float = Field(default=60.0, gt=0)
    """A participant that was not heard from for this long is away. It gets no tasks until its next hello."""
    decline_backoff_s: float = Field(default=30.0, ge=0)
    """A participant that declined is asked again after this long, or at its next accepting hello."""
    lapse_backoff_s: float = Field(default=30.0, ge=0)
    """A participant that let a task lapse is asked again after this long, and after twice as long each time in a row,
    up to ten minutes. 0 asks it again at its next hello."""
    max_participants: int = Field(default=10_000, ge=1)
    """Number of participants that are known at the same time. Further ones are turned away."""
    max_per_user: int | None = Field(default=None, ge=1)
    """Number of participants of one user of the broker. None sets no limit while there is one user; if there are
    several, no user holds more slots than the median one has participants (decisions.participants.users)."""
    hellos_per_s: float = Field(default=100.0, gt=0)
    """Hellos and declines of one user of the broker that are read per second (service.control_rate)."""
    evaluate_interval_s: float = Field(default=1.0, ge=0)
    """Least time between the starts of two central evaluations. Each is of the newest version."""
    evaluate_every_updates: int | None = Field(default=None, ge=1)
    """Accepted updates between two central evaluations; `evaluate_interval_s` holds as well. None sets no number."""
    steps: StepAssignment | None = None
    """None asks all participants for the same training."""
    stop: StopSettings

    @model_validator(mode="after")
    def _enough_can_come(self) -> Self:
        if self.min_participants > self.max_participants:
            raise ValueError(
                f"min_participants = {self.min_participants} is more than max_participants = {self.max_participants}, "
                "so the run would never begin: raise max_participants"
            )
        return self


class UplinkSettings(Settings):
    """The [uplink] table: the codec in which updates are asked for (schemas.codecs).

    Participants that lack the codec send plain tensors.
    """

    codec: str = Field(default="none", max_length=64)
    """none, bf16, int8, int4, topk, powersgd, or custom."""
    error_feedback: bool | None = None
    """Carry what an update left out to the next one. None: for topk, powersgd and no other."""
    lossless: Literal["none", "zstd"] = "none"
    """Compression of what the codec made; zstd takes the extra `zstd` on both sides."""
    fraction: float | None = Field(default=None, gt=0, le=1)
    """topk: part of the values that are sent; None is 0.01."""
    values: Literal["float32", "bf16", "int8"] | None = None
    """topk: form of the values that are sent; None is float32."""
    rank: int | None = Field(default=None, ge=1, le=256)
    """powersgd: rank of the matrices; None is 2."""
    file: str | None = None
    """custom: Python file with `build_codec(**options)`, for the coordinator and all participants."""
    options: dict[str, Any] = Field(default_factory=dict)
    """custom: arguments of `build_codec`."""

    @model_validator(mode="after")
    def _belong_together(self) -> Self:
        if self.codec not in CODECS:
            raise ValueError(f"codec is {self.codec!r}, allowed: {', '.join(CODECS)}{near(self.codec, CODECS)}")
        for name, codec in _CODEC_OF_KEY.items():
            if getattr(self, name) not in (None, {}) and self.codec != codec:
                raise ValueError(f"{name} belongs to codec = {codec!r}, and codec is {self.codec!r}: take it out")
        if self.codec == "custom" and self.file is None:
            raise ValueError("codec = 'custom' needs file, a Python file with build_codec(**options)")
        if self.codec == "none" and (self.error_feedback or self.lossless != "none"):
            raise ValueError("codec is 'none', which leaves nothing to feed back or to compress: set a codec")
        return self

    def unmet(self, strategy: Replies) -> Iterator[tuple[str, str]]:
        """Yield each setting that does not go with a strategy: its place, and what to do."""
        reply = strategy.reply
        allowed, who = _known(strategy, "uplinks", FITTING)
        if self.codec not in allowed.split(", "):
            yield "uplink.codec", f"got {self.codec!r}, allowed with {who}: {allowed}"
        if self.error_feedback and reply != "delta":
            yield (
                "uplink.error_feedback",
                f"works with a strategy whose updates carry 'delta', and this one's carry {reply!r}: take it out",
            )

    def order(self, reply: Reply, name: str | None = None) -> Uplink | None:
        """Return the order that tasks carry; None for plain updates. `name` is that of a custom codec."""
        if self.codec == "none":
            return None
        feedback = self.codec in NEEDS_FEEDBACK if self.error_feedback is None else self.error_feedback
        given = {"fraction": self.fraction, "values": self.values, "rank": self.rank}
        return Uplink(
            codec=name or self.codec,
            error_feedback=feedback and reply == "delta",
            # Only a contractive codec may be fed back, and rounding to the nearest is.
            rounding="nearest" if feedback or reply == "change" else "stochastic",
            lossless=self.lossless,
            **{key: value for key, value in given.items() if value is not None},  # type: ignore[arg-type]
        )


CODECS = ("none", *BUILT_IN, CUSTOM)
_CODEC_OF_KEY = {"fraction": "topk", "values": "topk", "rank": "powersgd", "file": CUSTOM, "options": CUSTOM}


class DownlinkSettings(Settings):
    """The [downlink] table: the form in which tasks carry the model. A run keeps `codec`, `step_codec`, `fraction` and
    `step_every` for life."""

    codec: Literal["none", "bf16", "hidden"] = "none"
    """none: the model as it is. bf16: rounded to bfloat16. hidden: steps of a hidden state (schemas.codecs.hidden)."""
    step_codec: Literal["int8", "int4", "topk"] | None = None
    """hidden: codec of the steps; None is int8. It rounds to the nearest."""
    fraction: float | None = Field(default=None, gt=0, le=1)
    """hidden with topk: part of the values that a step moves; None is 0.01."""
    step_every: int = Field(default=1, ge=1, le=1000)
    """hidden: versions from one step to the next. Tasks between two steps train from the hidden state of the first."""
    reference: Literal["auto", "never"] = "auto"
    """auto: a model that several tasks carry is published once, to a stream, and the tasks refer to it. never: each
    task carries it."""
    reference_bytes: int = Field(default=1024**2, ge=4096)
    """Smallest model, in bytes, that tasks refer to. A smaller one is cheaper beside each task."""
    reference_keep: int = Field(default=8, ge=2, le=1000)
    """Number of models that the stream keeps on the broker's disk."""

    @model_validator(mode="after")
    def _belong_together(self) -> Self:
        if self.step_codec is not None and self.codec != "hidden":
            raise ValueError(f"step_codec belongs to codec = 'hidden', and codec is {self.codec!r}: take it out")
        if self.step_every != 1 and self.codec != "hidden":
            raise ValueError(f"step_every belongs to codec = 'hidden', and codec is {self.codec!r}: take it out")
        if self.fraction is not None and self.step_codec != "topk":
            step = repr(self.step_codec) if self.step_codec is not None else "not set"
            raise ValueError(f"fraction belongs to step_codec = 'topk', and step_codec is {step}: take it out")
        return self

    def unmet(self, strategy: Replies) -> Iterator[tuple[str, str]]:
        """Yield each setting that does not go with a strategy: its place, and what to do."""
        reply = strategy.reply
        allowed, who = _known(strategy, "downlinks", DOWNLINKS)
        if self.codec not in allowed.split(", "):
            yield "downlink.codec", f"got {self.codec!r}, allowed with {who}: {allowed}"
        elif self.step_codec == "topk" and reply != "delta":
            yield (
                "downlink.step_codec",
                f"got 'topk', allowed with a strategy whose updates carry {reply!r}: int8, int4",
            )

    @property
    def step(self) -> Uplink:
        """Order of the codec of the hidden state's steps."""
        given = {} if self.fraction is None else {"fraction": self.fraction}
        return Uplink(codec=self.step_codec or "int8", rounding="nearest", **given)  # type: ignore[arg-type]


class Unfreeze(Settings):
    """An entry of [training] unfreeze: at `version` the frozen tensors with these names begin to move."""

    version: int = Field(ge=1)
    tensors: tuple[str, ...] = Field(min_length=1)
    """Patterns over the names of tensors, as in "backbone/block_16*"; * stands for any letters, ? for one."""


class TrainingSettings(TrainingConfig):
    """The [training] table: what tasks ask for, and the versions at which frozen tensors begin to move."""

    unfreeze: tuple[Unfreeze, ...] = Field(default=(), strict=False)

    @model_validator(mode="after")
    def _has_room_for_the_version(self) -> Self:
        if self.unfreeze and (UNFROZEN in self.extra or len(self.extra) >= MOST_EXTRA):
            raise ValueError(
                f"unfreeze adds the key {UNFROZEN!r} to extra, which has {len(self.extra)} of {MOST_EXTRA} keys"
                f"{', and this one among them' if UNFROZEN in self.extra else ''}: rename it, or take one out"
            )
        return self

    @model_validator(mode="after")
    def _versions_rise(self) -> Self:
        versions = [one.version for one in self.unfreeze]
        for one, other in itertools.pairwise(versions):
            if other <= one:
                raise ValueError(
                    f"unfreeze has the versions {', '.join(map(str, versions))}: each must be above the one before it"
                )
        return self


def of_table(table: TrainingSettings) -> TrainingConfig:
    """Return a [training] table as it was before it had a schedule, if it has none: a study without one is the same."""
    return table if table.unfreeze else what_tasks_ask(table)


def what_tasks_ask(training: TrainingConfig) -> TrainingConfig:
    """Return what tasks ask for, without the schedule."""
    if type(training) is TrainingConfig:
        return training
    return TrainingConfig.trusted({name: getattr(training, name) for name in TrainingConfig.model_fields})


def unfreezing(training: TrainingConfig) -> tuple[Unfreeze, ...]:
    """Return the entries of [training] unfreeze."""
    return training.unfreeze if isinstance(training, TrainingSettings) else ()


class CommitSettings(Settings):
    """The [commit] table: how many updates one commit holds, and how its checkpoints are kept.

    Commits are grouped, so that throughput does not pay for one per update.
    """

    commit_interval_s: float = Field(default=1.0, gt=0)
    """An update waits at most this long for its commit; an idle coordinator commits sooner."""
    commit_every_updates: int = Field(default=256, ge=1)
    memory_budget_bytes: int = Field(default=192 * 1024**2, ge=1024**2)
    """Bytes of unacked updates held in memory. It sets the prefetch, at least 1 and at most 512."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """Number of checkpoints to keep: the newest one and older ones."""
    checkpoint_copies: int = Field(default=2, ge=1, le=2)
    """Number of files of the newest checkpoint. With 2, damage to one of them costs nothing."""
    copy_dir: str | None = None
    """Folder of the second file, for example on another disk; None keeps it in the run's folder."""

    @model_validator(mode="after")
    def _copy_has_a_use(self) -> Self:
        if self.copy_dir is not None and self.checkpoint_copies == 1:
            raise ValueError("copy_dir is set and checkpoint_copies is 1: leave one of the two out")
        return self


class ArchiveSettings(Settings):
    """The [archive] table: how many of the updates' tensors are kept for replays (coordinator.state.archive).

    The archive is off without a limit. It takes disk, and a participant's single update says more about its data than
    any version does.
    """

    max_bytes: int | None = Field(default=None, ge=1024**2)
    """Limit on everything in the archive, in bytes. A state and the updates since it stay in any case."""
    max_age_s: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Limit on the age of its content, in seconds, checked at commits. schemas.local.clocks says by which clock."""

    @property
    def on(self) -> bool:
        return self.max_bytes is not None or self.max_age_s is not None
