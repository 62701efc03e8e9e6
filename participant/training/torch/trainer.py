"""The PyTorch trainer: it makes a trainer (`participant.trainer`) of a model, its loss, its data and an optimizer.

Rules
1. Nothing of one task is left in the next. All tensors of the state_dict come from the task. Buffers outside of it go
   back to their start. The optimizer is made anew for each task.
2. The same parameters, config (with its seed) and data give the same result, bit for bit, on one machine's CPU. The
   task's seed decides the order of examples, and what is drawn from the generators of torch, numpy and Python, which
   are the process's: run one trainer in it at a time.
3. The trainer never writes to the arrays that it is given. The arrays that it returns belong to the caller.
4. Parts of the model that `build_model` puts into eval() stay so in training, as a frozen BatchNorm must.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from fedmq.participant.trainer import TrainResult
from fedmq.participant.training.environment import threads_from_environment
from fedmq.participant.training.generators import seeded_generators, word_of
from fedmq.participant.training.torch.backend import torch
from fedmq.participant.training.torch.data import Collate, Data, LazyData, batch_length, mapped
from fedmq.participant.training.torch.model import Travelling, built_model, made_to_train
from fedmq.participant.training.torch.optimizers import MakeOptimizer, TaskOptimizer
from fedmq.schemas.errors import AppError, FedmqError, TrainerError, in_short, shown
from fedmq.schemas.messages import UNFROZEN, TrainingConfig
from fedmq.schemas.parameters import Parameters

Loss = Callable[[Any, Any], Any]
Metrics = Callable[[Any, Any], Mapping[str, Any]]


class TorchTrainer:
    """A trainer of the model of `build_model()` on `data`.

    loss(output, y) returns one number, the mean over the batch. data: (x, y), a map-style Dataset, or a function
    without arguments that returns one; called once, on first use (participant.training.torch.data). A tuple x is
    model(*x), a dict model(**x). optimizer(params) returns a new torch.optim.Optimizer; it is called for each task.
    evaluation_data: as data, for `evaluate`. metrics(output, y) returns numbers by name, means over the batch; without
    it there is "accuracy" for class scores [batch, classes] and class numbers [batch]. collate makes (x, y) of a list
    of a Dataset's items. device: such as "cuda"; None leaves the model where `build_model` put it. threads: None reads
    FEDMQ_TF_THREADS, or leaves the choice to PyTorch. Raises AppError if the model cannot be used.
    """

    def __init__(
        self,
        build_model: Callable[[], Any],
        loss: Loss,
        data: Data | Callable[[], Data] | None = None,
        optimizer: MakeOptimizer | None = None,
        *,
        evaluation_data: Data | Callable[[], Data] | None = None,
        metrics: Metrics | None = None,
        collate: Collate | None = None,
        device: str | None = None,
        threads: int | None = None,
    ) -> None:
        for name, function in (("loss", loss), ("optimizer", optimizer), ("metrics", metrics)):
            if not callable(function) and (function is not None or name == "loss"):
                raise AppError(f"TorchTrainer got {shown(function)} as {name}, expected a function")
        threads = threads if threads is not None else threads_from_environment()
        if threads is not None:
            torch.set_num_threads(threads)
        self.model = _placed(built_model(build_model), device)
        self._travelling = Travelling(self.model)
        self._frozen_here = {name: p for name, p in made_to_train(self.model).items() if not p.requires_grad}
        self._modes = [(module, module.training) for module in self.model.modules()]
        norms = torch.nn.modules.batchnorm._BatchNorm
        self._least = 2 if any(isinstance(module, norms) and mode for module, mode in self._modes) else 1
        """Examples that a last batch needs: a BatchNorm that trains cannot train on one."""
        self._device = next((p.device for p in self.model.parameters()), torch.device("cpu"))
        floats = [p.dtype for p in self.model.parameters() if p.is_floating_point()]
        self._dtype = floats[0] if floats else torch.float32
        self._loss, self._make_optimizer, self._collate = loss, optimizer, collate
        self._metrics = metrics or _accuracy
        self._cancelled = threading.Event()
        self._data = self._lazy(data, "data")
        self._evaluation_data = self._lazy(evaluation_data, "evaluation_data")

    @property
    def num_examples(self) -> int:
        """Number of training examples. The first use loads them."""
        return self._data.num_examples

    def use_data(self, data: Data | Callable[[], Data]) -> None:
        """Train on other data from the next task on. Studies use this: one model trains for many participants."""
        self._data = self._lazy(data, "data")

    def use_evaluation_data(self, data: Data | Callable[[], Data]) -> None:
        """Evaluate on other data from now on."""
        self._evaluation_data = self._lazy(data, "evaluation_data")

    def train(
        self,
        parameters: Mapping[str, npt.NDArray[Any]],
        config: TrainingConfig,
        correction: Mapping[str, npt.NDArray[Any]] | None = None,
    ) -> TrainResult:
        """Train from `parameters` for `config.epochs` passes over the data, or for `config.max_steps` steps.

        `correction` is added to the gradient of every step (`participant.trainer`). It needs plain SGD; other
        optimizers get AppError. Metrics are means over the last epoch, "loss" (without FedProx's term) among them. If
        the model has a BatchNorm, a last batch of a single example is left out. Raises AppError if the parameters do
        not fit the model, or if a setting of `config` would reach none of its steps, and TrainerError if there is
        nothing to train on, if a step fails, or after `cancel()`.
        """
        self._cancelled.clear()
        if self.num_examples == 0:
            raise TrainerError("there are no training examples: `data` is empty")
        self._unfreeze(parameters, config)
        self._travelling.put(parameters)
        steps, seen = 0, 0
        means = Means()
        with seeded_generators(word_of(config.seed)):
            optimizer = TaskOptimizer(self._make_optimizer, self._travelling.trainable, config, correction)
            for module, mode in self._modes:
                module.training = mode
            for batches in self._data.epochs(config, self._least):
                means = Means()
                for batch in batches:
                    if self._cancelled.is_set():
                        raise TrainerError(f"training was cancelled after {steps} steps")
                    with self._explained(self._data):
                        self._step(batch, optimizer, means)
                    steps += 1
                    seen += batch_length(batch)
        optimizer.finish()
        optimizer.begin()  # gradients take as much memory as the model
        trained = self._travelling.values()
        if not all(np.isfinite(a).all() for a in trained.values() if a.dtype.kind == "f"):
            self._blame(self._data)
        return TrainResult(trained, min(seen, self.num_examples), steps, means.numbers())

    def evaluate(self, parameters: Mapping[str, npt.NDArray[Any]], batch_size: int = 256) -> dict[str, float]:
        """Return the loss and the metrics of `parameters` on the evaluation data, as means over examples.

        Raises NotImplementedError if the trainer was given none.
        """
        data = self._evaluation_data
        if data.source is None:
            raise NotImplementedError("this trainer was given no evaluation_data")
        if data.num_examples == 0:
            raise TrainerError("there are no examples to evaluate on: `evaluation_data` is empty")
        self._travelling.put(parameters)
        self.model.eval()
        means = Means()
        with seeded_generators(word_of(0)), torch.no_grad():
            for batch in data.in_order(batch_size):
                with self._explained(data):
                    self._measured(batch, means)
        found = means.numbers()
        if not np.isfinite(list(found.values())).all():
            self._blame(data)
        return found

    def cancel(self) -> None:
        """Make a running `train` raise TrainerError before its next step. Any thread may call this."""
        self._cancelled.set()

    def _unfreeze(self, parameters: Mapping[str, npt.NDArray[Any]], config: TrainingConfig) -> None:
        """Let parameters that the app freezes be trained if the task says so after an unfreezing, and only then."""
        unfrozen = config.extra.get(UNFROZEN) is not None and isinstance(parameters, Parameters)
        for name, parameter in self._frozen_here.items():
            trains = unfrozen and name in parameters and name not in parameters.non_trainable  # type: ignore[attr-defined]
            parameter.requires_grad_(trains)
        if self._frozen_here:
            self._travelling = Travelling(self.model)

    def _lazy(self, source: Any, name: str) -> LazyData:
        return LazyData(source, name, self._dtype, self._collate)

    def _step(self, batch: tuple[Any, Any], optimizer: TaskOptimizer, means: Means) -> None:
        optimizer.begin()
        self._measured(batch, means).backward()
        optimizer.step()

    def _measured(self, batch: tuple[Any, Any], means: Means) -> Any:
        """Return the loss of a batch, and add it and the metrics to the means."""
        x, y = (mapped(part, lambda leaf: leaf.to(self._device)) for part in batch)
        if isinstance(x, Mapping):
            output = self.model(**x)
        else:
            output = self.model(*x) if isinstance(x, tuple) else self.model(x)
        loss = self._loss(output, y)
        if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
            got = f"a tensor of shape {list(loss.shape)}" if isinstance(loss, torch.Tensor) else shown(loss)
            raise AppError(f"loss(output, y) returned {got}, expected one number: take the mean over the batch")
        with torch.no_grad():
            numbers = {"loss": loss.detach(), **self._metrics(output, y)}
            means.add({str(name): float(value) for name, value in numbers.items()}, batch_length(batch))
        return loss

    @contextmanager
    def _explained(self, data: LazyData) -> Iterator[None]:
        """Raise TrainerError, with what PyTorch says and the shapes of the data, if a step on them fails."""
        try:
            yield
        except FedmqError:
            raise
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise TrainerError(
                f"the model cannot make a step on {data.name}: {in_short(error)} ({data.name} is {data.shapes()})"
            ) from error

    def _blame(self, data: LazyData) -> None:
        """Raise TrainerError if the data hold a number that is not finite: a result has one."""
        if place := data.not_finite():
            raise TrainerError(
                f"the result is not finite, and {data.name} is not either: {place}. Remove such examples, or fill "
                "them, before they are returned"
            )


class Means:
    """Means over examples of numbers that are means over batches."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._count = 0

    def add(self, numbers: Mapping[str, float], count: int) -> None:
        for name, value in numbers.items():
            self._sums[name] = self._sums.get(name, 0.0) + value * count
        self._count += count

    def numbers(self) -> dict[str, float]:
        return {name: value / self._count for name, value in self._sums.items()}


def _placed(model: Any, device: str | None) -> Any:
    if device is None:
        return model
    try:
        return model.to(device)
    except (RuntimeError, AssertionError) as error:
        raise AppError(
            f"the model cannot go to the device {device!r}: {in_short(error)}. For machines with and without one, give "
            'device="cuda" if torch.cuda.is_available() else "cpu"'
        ) from None


def _accuracy(output: Any, y: Any) -> dict[str, Any]:
    """Return the part of examples whose class has the largest score; nothing if these are no scores of classes."""
    if not all(isinstance(one, torch.Tensor) for one in (output, y)) or y.dtype != torch.int64 or y.ndim != 1:
        return {}
    if output.ndim != 2 or output.shape[1] < 2 or len(output) != len(y):
        return {}
    return {"accuracy": (output.argmax(1) == y).double().mean()}
