"""The plan of one episode of a coordinator: its strategy, its codec, and who sends the noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fedmq.coordinator.settings import DownlinkSettings
from fedmq.coordinator.strategies.fedasync import FedAsync
from fedmq.coordinator.strategies.fedbuff import FedBuff
from fedmq.coordinator.strategies.fednova import FedNova
from fedmq.coordinator.strategies.fedstaleweight import FedStaleWeight
from fedmq.coordinator.strategies.participation import ParticipationCorrection
from fedmq.coordinator.strategies.protocol import Strategy
from fedmq.schemas.codecs.known import UplinkCodec
from tests.security.fuzzing.coded import uplink_of

DOWNLINKS = (
    DownlinkSettings(), DownlinkSettings(codec="hidden"), DownlinkSettings(),
    DownlinkSettings(codec="hidden", step_codec="topk", fraction=0.3),
    DownlinkSettings(codec="hidden", step_codec="int4"),
)  # fmt: skip
EPISODE_KINDS = 6
"""Kinds of episodes, in turn (fuzz.py)."""


def strategies() -> list[Strategy[Any]]:
    return [FedBuff(buffer_size=3), FedAsync(), FedNova(buffer_size=3), FedStaleWeight(buffer_size=3),
            ParticipationCorrection(buffer_size=3)]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Plan:
    """One episode of a coordinator."""

    seed: int
    episode: int
    messages: int
    limit_s: float
    inside: bool = False
    chunked: bool = False
    coded: bool = False
    only: tuple[tuple[str, bytes, bytes], ...] | None = None
    """Messages in the place of the noise: an attempt to repeat a failure."""

    @property
    def strategy(self) -> Strategy[Any]:
        return strategies()[self.episode // EPISODE_KINDS % len(strategies())]

    @property
    def mixed(self) -> bool:
        """True if the model has tensors of several kinds."""
        return self.coded and self.episode // EPISODE_KINDS % 3 == 1

    @property
    def downlink(self) -> DownlinkSettings:
        """Form of the model in tasks."""
        if not self.coded:
            return DownlinkSettings()
        return DOWNLINKS[self.episode // EPISODE_KINDS % len(DOWNLINKS)]

    @property
    def frozen(self) -> tuple[str, ...]:
        """Names of the model's frozen tensors."""
        return ("001/bias",) if self.coded and self.episode // EPISODE_KINDS % 4 == 2 else ()

    @property
    def uplink(self) -> UplinkCodec | None:
        """The codec of the run; None for plain updates."""
        return uplink_of(self.episode // EPISODE_KINDS) if self.coded else None
