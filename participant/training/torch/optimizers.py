"""A task's optimizer: made anew by the user's function, with the task's settings; and what may be set on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy.typing as npt

from fedmq.participant.training.torch.backend import torch
from fedmq.participant.training.torch.model import tensor_of
from fedmq.schemas.errors import AppError, shown
from fedmq.schemas.local.event_log import EventLog
from fedmq.schemas.messages import TrainingConfig

log = EventLog(__name__)

MakeOptimizer = Callable[[list[Any]], Any]


class TaskOptimizer:
    """The optimizer of one task, on the trainable tensors by name.

    Raises AppError if a setting of the task would reach no step, or if SCAFFOLD meets steps that are not plain.
    """

    def __init__(
        self,
        make: MakeOptimizer | None,
        trainable: Mapping[str, Any],
        config: TrainingConfig,
        correction: Mapping[str, npt.NDArray[Any]] | None,
    ) -> None:
        if make is None:
            raise AppError("this trainer was given no optimizer: give TorchTrainer one, as in "
                           "optimizer=lambda params: torch.optim.SGD(params, lr=0.1)")  # fmt: skip
        if not trainable:
            raise AppError("the model has no trainable tensors: none of its parameters has requires_grad=True")
        self.optimizer = _made(make, list(trainable.values()))
        self._rate = config.learning_rate if correction is not None else None
        stepped = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        unreached = [name for name, p in trainable.items() if id(p) not in stepped]
        if len(unreached) == len(trainable):
            raise AppError(
                f"the {self.name} of optimizer(params) has none of the model's parameters: give it `params`, which are "
                "those of this task's model"
            )
        if unreached:
            log.warning("weights_without_an_optimizer", weights=", ".join(unreached[:3]), why="it has other parameters")
        if config.learning_rate is not None:
            self._set_rate(config.learning_rate)
        if correction is not None:
            self._check_plain()
        self._pulls = _pulls(trainable, config.proximal_mu, correction)

    @property
    def name(self) -> str:
        return type(self.optimizer).__name__

    def begin(self) -> None:
        """Forget the gradients of the step before."""
        self.optimizer.zero_grad(set_to_none=True)

    def step(self) -> None:
        """Add to each gradient what the task's method asks for, and make the step.

        FedProx (Li et al. 2020) adds ∇(μ/2·‖w - w_base‖²) = μ·(w - w_base), SCAFFOLD its correction. A parameter
        without a gradient gets neither.
        """
        with torch.no_grad():
            for parameter, base, mu, correction in self._pulls:
                if parameter.grad is None:
                    continue
                if parameter.grad.layout != torch.strided:
                    parameter.grad = parameter.grad.to_dense()
                if mu:
                    parameter.grad.add_(parameter - base, alpha=mu)
                if correction is not None:
                    parameter.grad.add_(correction)
        self.optimizer.step()

    def finish(self) -> None:
        """Raise AppError if the training has changed the learning rate, which SCAFFOLD counts on."""
        if self._rate is not None and any(float(group["lr"]) != self._rate for group in self.optimizer.param_groups):
            raise AppError(
                f"SCAFFOLD needs steps of training.learning_rate, and something changed the {self.name}'s: remove it"
            )

    def _set_rate(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            if "lr" not in group:
                raise AppError(
                    f"training.learning_rate is set, and the app's {self.name} has no `lr` in its param_groups: it "
                    "would reach no step. Remove the setting, or take an optimizer with a learning rate"
                )
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def _check_plain(self) -> None:
        options = ("momentum", "weight_decay", "nesterov", "maximize")
        used = [name for name in options if any(group.get(name) for group in self.optimizer.param_groups)]
        if type(self.optimizer) is not torch.optim.SGD or used:
            raise AppError(
                f"this app's optimizer is {self.name}{' with ' + ', '.join(used) if used else ''}, and SCAFFOLD needs "
                "plain gradient steps: take torch.optim.SGD without momentum, weight decay and maximize"
            )


def _made(make: MakeOptimizer, parameters: list[Any]) -> Any:
    optimizer = make(parameters)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise AppError(
            f"optimizer(params) returned {shown(optimizer)}, expected a new torch.optim.Optimizer, such as "
            "torch.optim.SGD(params, lr=0.1)"
        )
    if isinstance(optimizer, torch.optim.LBFGS):
        raise AppError(
            "LBFGS computes a batch's loss several times in a step, which is not supported: take another one"
        )
    return optimizer


def _pulls(
    trainable: Mapping[str, Any], mu: float, correction: Mapping[str, npt.NDArray[Any]] | None
) -> list[tuple[Any, Any, float, Any]]:
    """Return parameter, base, μ and correction of what is added to each gradient."""
    if not mu and correction is None:
        return []
    return [
        (
            parameter,
            parameter.detach().clone() if mu else None,
            mu,
            tensor_of(correction[name]).to(parameter) if correction is not None and name in correction else None,
        )
        for name, parameter in trainable.items()
    ]
