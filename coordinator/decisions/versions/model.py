"""The model in the making: the newest version's parameters, and the strategy's state on the way to the next version.

The core makes each version with it, and a replay makes each version again with it, so both agree to the last bit. The
caller decides which updates are accepted and when a version is due.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol, cast

import numpy as np

from fedmq.coordinator.decisions.failures import Drop, Failure, StrategyFailed
from fedmq.coordinator.decisions.records import Snapshot
from fedmq.coordinator.decisions.task_models import TaskModel, restored, task_model
from fedmq.coordinator.decisions.versions.unfreezing import FrozenParts, Unfrozen, grown_state
from fedmq.coordinator.settings import DownlinkSettings
from fedmq.coordinator.strategies.protocol import (
    ClientUpdate,
    Distils,
    DropsBuffer,
    Ensemble,
    Grouped,
    RemembersParticipants,
    SendsBeside,
    State,
    Strategy,
    Synchronous,
)
from fedmq.schemas.errors import AppError, FedmqError, StrategyError, in_short, shown
from fedmq.schemas.messages import Downlink
from fedmq.schemas.methods import METHODS, join, split
from fedmq.schemas.parameters import Array, Parameters
from fedmq.schemas.tensors import all_finite

_PARAMETERS, _STRATEGY = "parameters/", "strategy/"


class UpdateFacts(Protocol):
    """The facts about an update that aggregation needs: its message has them, and so has its row in the ledger."""

    @property
    def update_id(self) -> str: ...
    @property
    def participant_id(self) -> str: ...
    @property
    def base_version(self) -> int: ...
    @property
    def num_examples(self) -> int: ...
    @property
    def num_steps(self) -> int: ...
    @property
    def metrics(self) -> Mapping[str, float]: ...
    @property
    def train_s(self) -> float: ...


def dropped(strategy: Strategy[Any], state: State, parameters: Parameters, drop: Drop) -> State:
    """Return a state without the updates that no version holds yet (`Model.drop`)."""
    if drop.anew or not isinstance(state, DropsBuffer):
        return begun(strategy, parameters)
    state.drop(drop.group)
    return state


def begun(strategy: Strategy[Any], parameters: Parameters) -> State:
    """Return the strategy's first state. Raises StrategyError if its `init` raises, or wants to end the process."""
    try:
        return strategy.init(parameters)  # type: ignore[no-any-return]
    except (MemoryError, FedmqError):
        raise
    except (Exception, SystemExit) as error:
        raise StrategyError(
            f"strategy {type(strategy).__name__}: init() raised {in_short(error)}. Mend the strategy and start again"
        ) from error


def parameters_in(snapshot: Snapshot) -> Parameters:
    """Return the parameters of the newest version in a snapshot."""
    scalars: Mapping[str, Any] = snapshot.scalars
    tensors = {name: snapshot.arrays[_PARAMETERS + name] for name in scalars["tensors"]}
    return Parameters(tensors, frozenset(scalars["non_trainable"]))


class Model:
    """A strategy at work on the parameters of the newest version."""

    def __init__(
        self,
        strategy: Strategy[Any],
        parameters: Parameters,
        state: State | None = None,
        downlink: DownlinkSettings | None = None,
        frozen: FrozenParts | None = None,
    ) -> None:
        self._strategy = strategy
        self._frozen = frozen
        self._method = METHODS[strategy.reply]
        self._task_tensors: Parameters | None = None
        self.parameters = parameters
        """Parameters of the newest version; never changed in place."""
        self.state: State = begun(strategy, parameters) if state is None else state
        """The strategy's state."""
        self.sent: TaskModel | None = task_model(downlink, parameters)
        """The model that tasks carry; None if it is `parameters`."""

    @classmethod
    def restore(
        cls,
        strategy: Strategy[Any],
        snapshot: Snapshot,
        downlink: DownlinkSettings | None = None,
        frozen: FrozenParts | None = None,
    ) -> Model:
        """Rebuild the model whose `arrays` and `scalars` are in the snapshot. A hidden state is among them, whatever
        `downlink` says.

        The method's memories are among the arrays, as strategy/memory/{participant_id}/{tensor}.
        """
        scalars: Mapping[str, Any] = snapshot.scalars
        parameters = parameters_in(snapshot)
        arrays = {name.removeprefix(_STRATEGY): a for name, a in snapshot.arrays.items() if name.startswith(_STRATEGY)}
        made = cls(strategy, parameters, strategy.restore(arrays, scalars["strategy"], parameters), frozen=frozen)
        made.sent = restored(downlink, snapshot, parameters)
        return made

    @property
    def task_tensors(self) -> Parameters:
        """Tensors that a task of the newest version is to train from: its parameters, or what [downlink] makes of them,
        and the method's groups beside them."""
        if self.sent is not None:
            return self.sent.base
        if not self._method.task:
            return self.parameters
        if self._task_tensors is None:
            with self._guarded("beside"):
                self._task_tensors = join(self.parameters, cast(SendsBeside, self.state).beside(self.parameters))
        return self._task_tensors

    def tensors_of(self, order: Downlink | None) -> Parameters:
        """Return the tensors that travel with a task of the newest version that has this order."""
        return self.task_tensors if self.sent is None else self.sent.tensors(order)

    @contextmanager
    def _guarded(self, function: str) -> Iterator[None]:
        """Turn whatever the strategy raises into StrategyFailed, sys.exit too, apart from a lack of RAM."""
        try:
            yield
        except (MemoryError, StrategyFailed):
            raise
        except (Exception, SystemExit) as error:
            raise self.failed(function, error) from error

    def failed(self, function: str, error: BaseException | None = None) -> StrategyFailed:
        """Return the error that says that this function raised, or made what is not finite."""
        who = f"strategy {type(self._strategy).__name__}: {function}()"
        if error is None:
            return StrategyFailed(f"{who} made a state that is not finite", Failure("overflow", function))
        return StrategyFailed(
            str(error) if isinstance(error, AppError) else f"{who} raised {type(error).__name__}: {error}",
            Failure("strategy_error", function),
        )

    def ready(self, strategy: Strategy[Any], now: float) -> bool:
        """Ask a strategy whether the next version is due at this run time (seconds)."""
        try:
            answer = strategy.ready(self.state, now)
            if isinstance(answer, bool | np.bool_):
                return bool(answer)
            raise TypeError(f"it returned {shown(answer)}, expected True or False")
        except (Exception, SystemExit) as error:
            raise self.failed("ready", error) from error

    def check_finite(self) -> None:
        """Raise StrategyFailed if an array of the model or of the state is not finite: a pass over all of them."""
        if not all_finite(self.arrays()):
            raise self.failed("state")

    def drop(self, drop: Drop) -> None:
        """Take the updates out of the state that no version holds yet; with arrival groups, its group's and the late.

        A state without a `drop` of its own begins anew, as for a new run with these parameters. So does every state
        after a set-back.
        """
        with self._guarded("drop"):
            self.state = dropped(self._strategy, self.state, self.parameters, drop)
        self._task_tensors = None

    def accumulate(
        self,
        update: UpdateFacts,
        tensors: Parameters,
        staleness: int,
        client_weight: float,
        *,
        first: bool,
        group: int | None = None,
    ) -> None:
        """Accumulate an accepted update.

        `first` is True if it is the participant's first accepted one; methods whose participants remember need it.
        """
        if self._frozen is not None:
            tensors = self._frozen.completed(tensors, update.base_version, self.parameters, self._strategy.reply)
        payload, beside = split(tensors, self._method.update)
        sent = ClientUpdate(
            update_id=update.update_id,
            participant_id=update.participant_id,
            base_version=update.base_version,
            payload=payload,
            num_examples=update.num_examples,
            num_steps=update.num_steps,
            metrics=update.metrics,
            client_weight=client_weight,
            train_s=update.train_s,
            beside=beside,
            first=first,
            group=group,
        )
        try:
            with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is found, and not warned of
                self.state = self._strategy.accumulate(self.state, sent, staleness)
        except MemoryError:
            raise
        except (Exception, SystemExit) as error:
            raise self.failed("accumulate", error) from error

    def open_round(self, now: float) -> None:
        """Tell a synchronous strategy that a round opens at run time `now` (seconds)."""
        with self._guarded("open_round"):
            self.state = cast(Synchronous[Any], self._strategy).open_round(self.state, now)

    def ensemble(self) -> Ensemble:
        """Return what the next version is to be distilled from (strategies.protocol.Distils)."""
        with self._guarded("ensemble"), np.errstate(over="ignore", invalid="ignore"):
            return cast(Distils, self._strategy).ensemble(self.state, self.parameters)

    def make_version(
        self, group: int | None = None, count: int | None = None, distilled: Parameters | None = None
    ) -> tuple[float, ...]:
        """Make the next version and return the weight of each update in it, in order of arrival.

        `count` is the number of these updates, if the caller knows it. `distilled` has the version's floating tensors
        if it was distilled.

        It is made of everything accumulated. With arrival groups it is made of this `group`'s updates and the late
        ones. Raises StrategyFailed if the strategy raises, or if the version is not finite.
        """
        if group is not None:
            with self._guarded("close_group"):
                self.state = cast(Grouped[Any], self._strategy).close_group(self.state, group)
        with self._guarded("weights"):
            weights = self._strategy.weights(self.state)
            if not all(map(math.isfinite, weights)) or (count is not None and len(weights) != count):
                raise ValueError(f"got the weights {list(weights)[:8]}, expected {count} finite numbers")
        with self._guarded("aggregate"), np.errstate(over="ignore", invalid="ignore"):
            made = self._made(self._aggregated(distilled))
            finite = made is self.parameters or all_finite(made if made.block is None else {"": made.block})
        if not finite:
            raise self.failed("aggregate")
        self.parameters = made
        self._task_tensors = None
        if self.sent is not None:
            self.sent.advance(made)
        return weights

    def _aggregated(self, distilled: Parameters | None) -> Any:
        if distilled is None:
            return self._strategy.aggregate(self.state, self.parameters)
        whole = self.parameters.replace({**self.parameters, **distilled}).packed()
        return cast(Distils, self._strategy).adopt(self.state, self.parameters, whole)

    def unfreeze(self, version: int) -> Unfrozen | None:
        """Let the tensors move whose version this is, the newest; return them, and None if there are none.

        Raises StrategyFailed if the strategy's state cannot grow.
        """
        found = None if self._frozen is None else self._frozen.due(version)
        if found is None:
            return None
        assert self._frozen is not None
        parameters = self._frozen.grown(version, self.parameters)
        with self._guarded("restore"):
            self.state = grown_state(self._strategy, self.state, parameters)
        self.parameters = parameters
        self._task_tensors = None
        if self.sent is not None:
            self.sent.grow(parameters)
        return found

    def _made(self, returned: Any) -> Parameters:
        """Take what `aggregate` returned: keep its state, and return its parameters. Raises TypeError for others than
        this model's."""
        if not (isinstance(returned, tuple) and len(returned) == 2 and isinstance(returned[1], Mapping)):
            raise TypeError(f"it returned {shown(returned)}, expected (state, parameters)")
        state, made = returned
        now = self.parameters
        if made is not now and not (
            made.keys() == now.keys()
            and all((a.shape, a.dtype) == (now[name].shape, now[name].dtype) for name, a in made.items())
        ):
            raise TypeError("it returned parameters of other names, shapes or dtypes than it was given")
        self.state = state
        return made if isinstance(made, Parameters) else Parameters(made, now.non_trainable)

    def arrays(self) -> dict[str, Array]:
        """Return the arrays that the checkpoint stores. They are live: use or copy them before the next update."""
        with self._guarded("arrays"):
            own = {f"{_STRATEGY}{name}": a for name, a in self.state.arrays().items()}
        sent = {} if self.sent is None else self.sent.arrays()
        return {f"{_PARAMETERS}{name}": a for name, a in self.parameters.items()} | own | sent

    def scalars(self) -> dict[str, Any]:
        """Return the JSON values that the checkpoint stores."""
        with self._guarded("scalars"):
            own = self.state.scalars()
        return {
            "tensors": list(self.parameters),
            "non_trainable": sorted(self.parameters.non_trainable),
            "strategy": own,
            **({} if self.sent is None else self.sent.scalars()),
        }

    def changed_memories(self) -> Mapping[str, Mapping[str, Array]]:
        """Return the strategy's memories of the participants for which they changed since the last call."""
        return self.state.changed_memories() if isinstance(self.state, RemembersParticipants) else {}
