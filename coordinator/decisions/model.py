"""The model in the making: the newest version's parameters, and the strategy's state on the way to the next version.

The core makes each version with it, and a replay makes each version again with it, so both agree to the last bit. The
caller decides which updates are accepted and when a version is due.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, cast

from fedmq.coordinator.decisions.records import Snapshot
from fedmq.coordinator.strategies.protocol import (
    ClientUpdate,
    Grouped,
    RemembersParticipants,
    SendsBeside,
    State,
    Strategy,
    Synchronous,
)
from fedmq.schemas.methods import METHODS, join, split
from fedmq.schemas.parameters import Array, Parameters

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


class Model:
    """A strategy at work on the parameters of the newest version."""

    def __init__(self, strategy: Strategy[Any], parameters: Parameters, state: State | None = None) -> None:
        self._strategy = strategy
        self._method = METHODS[strategy.reply]
        self._task_tensors: Parameters | None = None
        self.parameters = parameters
        """Parameters of the newest version; never changed in place."""
        self.state: State = strategy.init(parameters) if state is None else state
        """The strategy's state."""

    @classmethod
    def restore(cls, strategy: Strategy[Any], snapshot: Snapshot) -> Model:
        """Rebuild the model whose `arrays` and `scalars` are in the snapshot.

        The method's memories are among the arrays, as strategy/memory/{participant_id}/{tensor}.
        """
        scalars: Mapping[str, Any] = snapshot.scalars
        tensors = {name: snapshot.arrays[_PARAMETERS + name] for name in scalars["tensors"]}
        parameters = Parameters(tensors, frozenset(scalars["non_trainable"]))
        arrays = {name.removeprefix(_STRATEGY): a for name, a in snapshot.arrays.items() if name.startswith(_STRATEGY)}
        return cls(strategy, parameters, strategy.restore(arrays, scalars["strategy"], parameters))

    @property
    def task_tensors(self) -> Parameters:
        """Tensors that a task of the newest version carries: its parameters, and the method's groups beside them."""
        if not self._method.task:
            return self.parameters
        if self._task_tensors is None:
            self._task_tensors = join(self.parameters, cast(SendsBeside, self.state).beside(self.parameters))
        return self._task_tensors

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
        payload, beside = split(tensors, self._method.update)
        self.state = self._strategy.accumulate(
            self.state,
            ClientUpdate(
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
            ),
            staleness,
        )

    def open_round(self, now: float) -> None:
        """Tell a synchronous strategy that a round opens at run time `now` (seconds)."""
        self.state = cast(Synchronous[Any], self._strategy).open_round(self.state, now)

    def make_version(self, group: int | None = None) -> tuple[float, ...]:
        """Make the next version and return the weight of each update in it, in order of arrival.

        It is made of everything accumulated. With arrival groups it is made of this `group`'s updates and the late
        ones.
        """
        if group is not None:
            self.state = cast(Grouped[Any], self._strategy).close_group(self.state, group)
        weights = self._strategy.weights(self.state)
        self.state, self.parameters = self._strategy.aggregate(self.state, self.parameters)
        self._task_tensors = None
        return weights

    def arrays(self) -> dict[str, Array]:
        """Return the arrays that the checkpoint stores. They are live: use or copy them before the next update."""
        return {f"{_PARAMETERS}{name}": a for name, a in self.parameters.items()} | {
            f"{_STRATEGY}{name}": a for name, a in self.state.arrays().items()
        }

    def scalars(self) -> dict[str, Any]:
        """Return the JSON values that the checkpoint stores."""
        return {
            "tensors": list(self.parameters),
            "non_trainable": sorted(self.parameters.non_trainable),
            "strategy": self.state.scalars(),
        }

    def changed_memories(self) -> Mapping[str, Mapping[str, Array]]:
        """Return the strategy's memories of the participants for which they changed since the last call."""
        return self.state.changed_memories() if isinstance(self.state, RemembersParticipants) else {}
