"""fedmq: asynchronous federated learning over RabbitMQ.

This module has all the names that a user's code needs. Each is imported on first use: `import fedmq` loads neither
TensorFlow nor pika, nor numpy. An app file or a trainer may also import nothing of fedmq.
"""

from __future__ import annotations

from importlib import import_module

TYPE_CHECKING = False  # checkers of types take it for True; `typing` takes a while to import
if TYPE_CHECKING:
    from fedmq.config.file import FederationConfig, load_config
    from fedmq.coordinator.settings import (
        CommitSettings,
        DownlinkSettings,
        Patience,
        RunSettings,
        StopSettings,
        TargetMetric,
        UplinkSettings,
    )
    from fedmq.coordinator.strategies import (
        Area,
        Ca2fl,
        Distillation,
        Fadas,
        FedAsync,
        FedAvg,
        FedBuff,
        FedCompass,
        FedDf,
        FedNova,
        FedStaleWeight,
        ParticipationCorrection,
        Port,
        Scaffold,
    )
    from fedmq.coordinator.strategies.protocol import ClientUpdate, Strategy
    from fedmq.coordinator.strategies.weighted_mean import WeightedMean
    from fedmq.demo.data import load_mnist
    from fedmq.participant.trainer import Trainer, TrainResult
    from fedmq.participant.training.distillation import DistillationTrainer
    from fedmq.participant.training.ensembles import Distiller
    from fedmq.participant.training.keras.trainer import KerasTrainer
    from fedmq.participant.training.torch.trainer import TorchTrainer
    from fedmq.schemas.codecs.codec import Codec, Encoded, Part, Places
    from fedmq.schemas.errors import (
        AppError,
        BrokerError,
        BrokerRefused,
        BrokerUnavailable,
        ConfigError,
        FedmqError,
        InputError,
        MissingExtra,
        PeerError,
        StateError,
        TrainerError,
    )
    from fedmq.schemas.messages import TrainingConfig
    from fedmq.schemas.parameters import Parameters
    from fedmq.studies.engine.outcome import Evaluation, Outcome, ParticipantResult, Stuck
    from fedmq.studies.engine.replay import replay
    from fedmq.studies.engine.settings import StudyRun
    from fedmq.studies.population.population import Member, Population
    from fedmq.studies.problems.classification import Softmax
    from fedmq.studies.problems.keras.problem import KerasProblem
    from fedmq.studies.problems.lazy_training import Job, Trained
    from fedmq.studies.problems.problem import Problem
    from fedmq.studies.problems.quadratics import Quadratics
    from fedmq.studies.problems.synthetic import Synthetic
    from fedmq.studies.simulate import simulate
    from fedmq.studies.study import Contender, Study
    from fedmq.studies.sweep.cell import CellResult
    from fedmq.studies.sweep.tuning import Tuning
    from fedmq.study.app_problem import AppProblem

__version__ = "0.1.0"

_ERRORS = (
    "AppError", "BrokerError", "BrokerRefused", "BrokerUnavailable", "ConfigError", "FedmqError", "InputError",
    "MissingExtra", "PeerError", "StateError", "TrainerError",
)  # fmt: skip
_STRATEGIES = (
    "Area", "Ca2fl", "Distillation", "Fadas", "FedAsync", "FedAvg", "FedBuff", "FedCompass", "FedDf", "FedNova",
    "FedStaleWeight", "ParticipationCorrection", "Port", "Scaffold",
)  # fmt: skip
_HOMES = {
    **dict.fromkeys(
        (
            "CommitSettings",
            "DownlinkSettings",
            "Patience",
            "RunSettings",
            "StopSettings",
            "TargetMetric",
            "UplinkSettings",
        ),
        "fedmq.coordinator.settings",
    ),
    **dict.fromkeys(_STRATEGIES, "fedmq.coordinator.strategies"),
    **dict.fromkeys(("ClientUpdate", "Strategy"), "fedmq.coordinator.strategies.protocol"),
    "WeightedMean": "fedmq.coordinator.strategies.weighted_mean",
    **dict.fromkeys(("FederationConfig", "load_config"), "fedmq.config.file"),
    "load_mnist": "fedmq.demo.data",
    **dict.fromkeys(("Contender", "Study"), "fedmq.studies.study"),
    "AppProblem": "fedmq.study.app_problem",
    "KerasProblem": "fedmq.studies.problems.keras.problem",
    "Quadratics": "fedmq.studies.problems.quadratics",
    "Softmax": "fedmq.studies.problems.classification",
    "Synthetic": "fedmq.studies.problems.synthetic",
    **dict.fromkeys(("Evaluation", "Outcome", "ParticipantResult", "Stuck"), "fedmq.studies.engine.outcome"),
    **dict.fromkeys(("Member", "Population"), "fedmq.studies.population.population"),
    **dict.fromkeys(("Job", "Trained"), "fedmq.studies.problems.lazy_training"),
    "Problem": "fedmq.studies.problems.problem",
    "CellResult": "fedmq.studies.sweep.cell",
    "replay": "fedmq.studies.engine.replay",
    "simulate": "fedmq.studies.simulate",
    "StudyRun": "fedmq.studies.engine.settings",
    "Tuning": "fedmq.studies.sweep.tuning",
    "DistillationTrainer": "fedmq.participant.training.distillation",
    "Distiller": "fedmq.participant.training.ensembles",
    "KerasTrainer": "fedmq.participant.training.keras.trainer",
    "TorchTrainer": "fedmq.participant.training.torch.trainer",
    **dict.fromkeys(("TrainResult", "Trainer"), "fedmq.participant.trainer"),
    **dict.fromkeys(_ERRORS, "fedmq.schemas.errors"),
    "TrainingConfig": "fedmq.schemas.messages",
    "Parameters": "fedmq.schemas.parameters",
    **dict.fromkeys(("Codec", "Encoded", "Part", "Places"), "fedmq.schemas.codecs.codec"),
}

__all__ = [
    "AppError", "AppProblem", "Area", "BrokerError", "BrokerRefused", "BrokerUnavailable", "Ca2fl", "CellResult",
    "ClientUpdate", "Codec", "CommitSettings", "ConfigError", "Contender", "Distillation", "DistillationTrainer",
    "Distiller", "DownlinkSettings", "Encoded", "Evaluation", "Fadas", "FedAsync", "FedAvg", "FedBuff",
    "FedCompass", "FedDf", "FedNova", "FedStaleWeight", "FederationConfig", "FedmqError", "InputError", "Job",
    "KerasProblem", "KerasTrainer", "Member", "MissingExtra", "Outcome", "Parameters", "Part", "ParticipantResult",
    "ParticipationCorrection", "Patience", "PeerError", "Places", "Population", "Port", "Problem", "Quadratics",
    "RunSettings", "Scaffold", "Softmax", "StateError", "StopSettings", "Strategy", "Stuck", "Study", "StudyRun",
    "Synthetic", "TargetMetric", "TorchTrainer", "TrainResult", "Trained", "Trainer", "TrainerError",
    "TrainingConfig", "Tuning", "UplinkSettings", "WeightedMean", "__version__", "load_config", "load_mnist",
    "replay", "simulate",
]  # fmt: skip


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return sorted(__all__)
