"""The optimizers of a model: that of `compile`, those that it holds as attributes, and those that its train_step uses.

Each of them starts a task from its first state, takes the task's learning rate, and gives its gradients to the hook of
FedProx and SCAFFOLD. A setting that would reach no step is refused: `check_reached` knows which weights a step changed,
and which of them went through an optimizer.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from fedmq.participant.training.keras.backend import keras, tf
from fedmq.participant.training.keras.derived import layers_of
from fedmq.participant.training.keras.model import check_plain, named_variables, value_of
from fedmq.participant.training.keras.steps import making
from fedmq.schemas.errors import AppError
from fedmq.schemas.local.event_log import EventLog
from fedmq.schemas.messages import TrainingConfig

log = EventLog(__name__)

Model = Any
Optimizer = Any
Apply = Callable[..., Any]
"""An optimizer's method `apply`."""
Change = Callable[[list[Any], list[Any]], list[Any]]
"""Returns gradients in place of those of these variables."""

_DEEPEST = 3
"""Levels of lists and dicts below an attribute in which an optimizer is looked for."""


class Optimizers:
    """All optimizers of one model. `first_step` must run before anything else."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._found: dict[int, Optimizer] = {}
        self._initial: dict[int, tuple[Any, npt.NDArray[Any]]] = {}
        self._moved: dict[int, dict[int, Any]] = {}
        """Variables that each optimizer was given gradients of."""
        self._unreached: list[str] = []
        self._travelling = {id(v) for v in model.weights}
        for optimizer in held_by(model):
            self._add(optimizer)
        if model.optimizer is not None:
            model.optimizer.build(model.trainable_variables)
            self._keep(model.optimizer.variables)

    def first_step(self, data: Any) -> None:
        """Make one eager step, and learn from it which optimizers the model uses and what they move."""
        before = [(v, value_of(v)) for v in self._model.trainable_variables]
        with self._discovering():
            self._model.train_step(data)
        reached = {key for moved in self._moved.values() for key in moved}
        names = {id(v): name for name, v in named_variables(self._model).items()}
        self._unreached = [
            names[id(v)]
            for v, value in before
            if id(v) not in reached and id(v) in names and not np.array_equal(value, value_of(v), equal_nan=True)
        ]
        if self._unreached:
            why = "train_step changes them without a Keras optimizer: no setting of the federation reaches them"
            log.warning("weights_without_an_optimizer", weights=", ".join(self._unreached[:3]), why=why)

    @property
    def used(self) -> list[Optimizer]:
        """The optimizers that have made steps."""
        return [self._found[key] for key in self._moved]

    @property
    def moved(self) -> list[Any]:
        """The variables that the optimizers have been given gradients of."""
        return list({id(v): v for moved in self._moved.values() for v in moved.values()}.values())

    def reset(self, learning_rate: float | None) -> None:
        """Put the state of all optimizers back to its start, and set their learning rate if there is one."""
        for variable, value in self._initial.values():
            variable.assign(value)
        if learning_rate is None:
            return
        for key, optimizer in self._found.items():
            if isinstance(optimizer.learning_rate, keras.Variable):
                optimizer.learning_rate.assign(learning_rate)
            elif key in self._moved:
                raise AppError(
                    f"training.learning_rate is set, but the app gives its {type(optimizer).__name__} a schedule: "
                    "remove one of the two"
                )

    def check_reached(self, config: TrainingConfig, corrected: bool) -> None:
        """Raise AppError if a setting of this task would reach no step, or SCAFFOLD meets steps that are not plain."""
        asked = [f"training.{name}" for name in ("learning_rate", "proximal_mu") if getattr(config, name)]
        asked += ["SCAFFOLD's correction"] * corrected
        if not asked:
            return
        if not self._moved or self._unreached:
            what = ", ".join(self._unreached[:3]) or "any weight"
            raise AppError(
                f"{' and '.join(asked)} cannot reach {what}: the model's train_step changes its weights without a "
                "Keras optimizer. Call apply or apply_gradients of a keras.optimizers.Optimizer, set trainable = False "
                "on weights that no gradient moves, or remove the setting"
            )
        if corrected:
            for optimizer in self.used:
                check_plain(_inner(optimizer))

    def check_rate(self, learning_rate: float | None) -> None:
        """Raise AppError if the training has changed the learning rate, which SCAFFOLD counts on."""
        if learning_rate is None:
            return
        if any(float(o.learning_rate.numpy()) != np.float32(learning_rate) for o in self.used):
            raise AppError(
                "SCAFFOLD needs steps of training.learning_rate, and a callback or the train_step changed the rate: "
                "remove what does"
            )

    def finish(self) -> None:
        """Put what optimizers keep for the end of a training, as the averages of `use_ema`, into the weights."""
        for optimizer in self.used:
            variables = self._model.trainable_weights
            if optimizer is not self._model.optimizer:
                variables = getattr(_inner(optimizer), "_trainable_variables", variables)
            optimizer.finalize_variable_values(variables)

    @contextmanager
    def hooked(self, change: Change | None = None) -> Iterator[None]:
        """Have each optimizer apply `change(gradients, variables)` in place of its gradients, and note what it moves.

        It is made before the optimizer clips or scales them.
        """
        # Keras's train_step and a user's own have only the optimizer's instance in common.
        optimizers = list(self._found.values())
        for optimizer in optimizers:
            _inner(optimizer).apply = self._with_change(optimizer, _inner(optimizer).apply, change)
        try:
            yield
        finally:
            for optimizer in optimizers:
                del _inner(optimizer).apply

    def _with_change(
        self, optimizer: Optimizer, apply: Callable[..., Any], change: Change | None
    ) -> Callable[..., Any]:
        def changed(gradients: Any, trainable_variables: Any = None) -> Any:
            gradients = list(gradients)
            variables = self._meet(optimizer, trainable_variables)
            if change is not None:
                gradients = change(gradients, variables)
            return apply(gradients, trainable_variables if trainable_variables is None else variables)

        return changed

    @contextmanager
    def _discovering(self) -> Iterator[None]:
        """Note every optimizer that makes a step in this context, also those that no attribute holds."""
        classes = (keras.optimizers.Optimizer, keras.optimizers.LossScaleOptimizer)
        thread, inside = threading.get_ident(), list[int]()

        def noting(apply: Apply) -> Apply:
            def noted(optimizer: Optimizer, gradients: Any, trainable_variables: Any = None) -> Any:
                if threading.get_ident() != thread:
                    return apply(optimizer, gradients, trainable_variables)
                if trainable_variables is not None:
                    trainable_variables = list(trainable_variables)
                if id(optimizer) not in inside:
                    self._meet(self._add(optimizer), trainable_variables)
                inside.append(id(getattr(optimizer, "inner_optimizer", optimizer)))
                try:
                    return apply(optimizer, gradients, trainable_variables)
                finally:
                    inside.pop()

            return noted

        with making:
            saved = [(cls, vars(cls).get("apply")) for cls in classes]
            for cls, _ in saved:
                cls.apply = noting(cls.apply)
            try:
                yield
            finally:
                for cls, own in saved:
                    if own is None:
                        del cls.apply
                    else:
                        cls.apply = own

    def _add(self, optimizer: Optimizer) -> Optimizer:
        """Return the known optimizer that has this one inside, or else add this one."""
        for known in self._found.values():
            if optimizer is known or optimizer is _inner(known):
                return known
        self._found = {key: o for key, o in self._found.items() if o is not _inner(optimizer)}
        self._found[id(optimizer)] = optimizer
        if optimizer.built:
            self._keep(optimizer.variables)
        return optimizer

    def _meet(self, optimizer: Optimizer, trainable_variables: Any) -> list[Any]:
        """Note the variables of a step, and keep the optimizer's first state. Return the variables."""
        built_on = getattr(_inner(optimizer), "_trainable_variables", self._model.trainable_variables)
        variables = list(built_on if trainable_variables is None else trainable_variables)
        if id(optimizer) not in self._moved:
            with tf.init_scope():
                if not optimizer.built:
                    optimizer.build(variables)
                self._keep(optimizer.variables)
                self._keep([v for v in variables if id(v) not in self._travelling])
        moved = self._moved.setdefault(id(optimizer), {})
        moved.update((id(v), v) for v in variables)
        return variables

    def _keep(self, variables: Iterable[Any]) -> None:
        for variable in variables:
            # Slots of zeros, which most are, cost no RAM: calloc's pages are never touched.
            self._initial.setdefault(id(variable), (variable, _compact(value_of(variable))))


def held_by(model: Model) -> list[Optimizer]:
    """Return the optimizers that the model and its layers have in attributes, each of them once."""
    found: dict[int, Optimizer] = {}
    for owner in (model, *layers_of(model)):
        for value in vars(owner).values():
            found.update((id(o), o) for o in _optimizers_in(value, _DEEPEST))
    inner = {id(o.inner_optimizer) for o in found.values() if isinstance(o, keras.optimizers.LossScaleOptimizer)}
    return [o for key, o in found.items() if key not in inner]


def _optimizers_in(value: Any, depth: int) -> Iterator[Optimizer]:
    if isinstance(value, keras.optimizers.Optimizer):
        yield value
    elif depth and isinstance(value, Mapping | Sequence) and not isinstance(value, str | bytes):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _optimizers_in(part, depth - 1)


def _inner(optimizer: Optimizer) -> Optimizer:
    return getattr(optimizer, "inner_optimizer", optimizer)


def _compact(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return array if array.any() else np.zeros(array.shape, array.dtype)
