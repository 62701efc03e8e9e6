"""An ensemble of models in files, as the worker process gives it to the app (fedmq.app.distilling)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedmq.app.distilling import Functions, distilled_by
from fedmq.app.parameter_files import read_parameters, write_parameters
from fedmq.broker_config.faults import fault
from fedmq.schemas.frozen import Frozen, frozen_part
from fedmq.schemas.parameters import Parameters


class EnsembleFiles:
    """The models of an ensemble, (parameters, weight). Each is read when it is reached: one is in memory at a time."""

    def __init__(self, paths: Sequence[Path], weights: Sequence[float], part: Frozen | None) -> None:
        self._files = list(zip(paths, weights, strict=True))
        self._part = part

    def __len__(self) -> int:
        return len(self._files)

    def __iter__(self) -> Iterator[tuple[Parameters, float]]:
        for path, weight in self._files:
            yield whole(read_parameters(path), self._part), weight


def whole(parameters: Parameters, part: Frozen | None) -> Parameters:
    """Return the whole model."""
    return parameters if part is None else part.join(parameters)


def distil(app: Functions, request: Mapping[str, Any]) -> None:
    """Answer a request of fedmq.app.model_distiller: write the version's floating-point tensors. Raises AppError."""
    fault("distil-begun")
    frozen = request["part"]
    part = None if frozen is None else frozen_part(read_parameters(Path(frozen)))
    ensemble = EnsembleFiles([Path(path) for path in request["distil"]], request["weights"], part)
    start = read_parameters(Path(request["start"]))
    names = start.averaged()
    made = distilled_by(app, ensemble, whole(start, part), request["seed"], names)
    fault("distil-made")
    write_parameters(Path(request["to"]), made.select(names))
    fault("distil-written")
