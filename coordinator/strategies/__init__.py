"""The strategies: small frozen values, one file for each.

`pydantic.TypeAdapter(AnyStrategy)` makes one from a table such as
{name = "fedbuff", buffer_size = 5, staleness = {name = "polynomial", a = 0.5}}, and names every mistake in the table.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fedmq.coordinator.strategies.area import Area
from fedmq.coordinator.strategies.ca2fl import Ca2fl
from fedmq.coordinator.strategies.distillation import Distillation
from fedmq.coordinator.strategies.fadas import Fadas
from fedmq.coordinator.strategies.fedasync import FedAsync
from fedmq.coordinator.strategies.fedavg import FedAvg
from fedmq.coordinator.strategies.fedbuff import FedBuff
from fedmq.coordinator.strategies.fedcompass import FedCompass
from fedmq.coordinator.strategies.feddf import FedDf
from fedmq.coordinator.strategies.fednova import FedNova
from fedmq.coordinator.strategies.fedstaleweight import FedStaleWeight
from fedmq.coordinator.strategies.math.server_optimizers import AnyServerOptimizer
from fedmq.coordinator.strategies.math.staleness_weights import AnyStalenessWeight
from fedmq.coordinator.strategies.participation import ParticipationCorrection
from fedmq.coordinator.strategies.port import Port
from fedmq.coordinator.strategies.scaffold import Scaffold

BuiltIn = (
    FedAsync | FedBuff | FedAvg | Fadas | FedNova | FedStaleWeight | ParticipationCorrection | Port | Ca2fl | Area
    | Scaffold | FedCompass | Distillation | FedDf
)  # fmt: skip
AnyStrategy = Annotated[BuiltIn, Field(discriminator="name")]

__all__ = [
    "AnyServerOptimizer",
    "AnyStalenessWeight",
    "AnyStrategy",
    "Area",
    "BuiltIn",
    "Ca2fl",
    "Distillation",
    "Fadas",
    "FedAsync",
    "FedAvg",
    "FedBuff",
    "FedCompass",
    "FedDf",
    "FedNova",
    "FedStaleWeight",
    "ParticipationCorrection",
    "Port",
    "Scaffold",
]
