"""The model that tasks carry, if it is not the newest version's parameters as they are ([downlink]).

Rules
1. Everything here follows from the versions in their order and from the settings. So a replay that makes the versions
   makes the same hidden states, bit for bit, and a snapshot holds all that is needed to go on.
2. A participant that does not read such tasks (its hello lacks "downlink") gets the same tensors, whole and plain: all
   updates of a version are against one base.
3. Steps are kept while they are smaller than the model together, and at most MOST_STEPS. More would never be sent.
4. With [downlink] step_every = m, only every m-th version has a step. Tasks of the versions between train from the
   state of the step before, and name its version.
5. A version at which frozen tensors begin to move has the parameters themselves as its hidden state. No steps lead to
   it from an older one, so everybody gets it whole.
6. Steps begin at what the participant has by its own words, or by its last update. If that is wrong, the digest in the
   task shows it: the participant declines, and its next task is whole.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping
from typing import Any, Protocol

from fedmq.coordinator.decisions.records import Snapshot
from fedmq.coordinator.settings import DownlinkSettings
from fedmq.schemas.codecs.checked import check_parts
from fedmq.schemas.codecs.hidden import GROUP, MOST_STEPS, Step, after, check_names, joined, parts_of_step, wire_of
from fedmq.schemas.codecs.names import DOWNLINK
from fedmq.schemas.codecs.rounded import check_dtypes, narrow, wide
from fedmq.schemas.messages import Downlink, HeldModel, Uplink, is_digest
from fedmq.schemas.parameters import Array, Parameters
from fedmq.schemas.signing import tensors_digest
from fedmq.schemas.tensors import ModelSpec, all_finite, check_spec, spec_of

_HIDDEN = "hidden/"


class TaskModel(Protocol):
    """The tasks' model, version after version."""

    @property
    def base(self) -> Parameters:
        """Tensors that participants train from; never changed in place."""

    def advance(self, parameters: Parameters) -> None:
        """Follow the model to its next version."""

    def grow(self, parameters: Parameters) -> None:
        """Take the newest version's parameters with the tensors that begin to move at it."""

    def order(self, codecs: Collection[str], held: int | None) -> Downlink | None:
        """Return the form in which a participant with these capabilities gets the model, if it has the hidden state of
        the version `held`; None if it gets `base` as it is."""

    def tensors(self, order: Downlink | None) -> Parameters:
        """Return the tensors of a task with this order, which `order` returned since the last `advance`."""

    def version_of(self, model: HeldModel | None) -> int | None:
        """Return the version of a participant's hidden state, if steps may begin at it; else None."""

    def arrays(self) -> dict[str, Array]:
        """Return the arrays that the checkpoint stores."""

    def scalars(self) -> dict[str, Any]:
        """Return the JSON values that the checkpoint stores."""


def task_model(settings: DownlinkSettings | None, parameters: Parameters) -> TaskModel | None:
    """Return the tasks' model of a new run; None if tasks carry the parameters as they are."""
    if settings is None or settings.codec == "none":
        return None
    if settings.codec == "bf16":
        check_dtypes(parameters)
        return RoundedModel(parameters)
    check_names(spec_of(parameters))
    return HiddenModel(settings.step, parameters, settings.step_every)


def restored(settings: DownlinkSettings | None, snapshot: Snapshot, parameters: Parameters) -> TaskModel | None:
    """Return the tasks' model in a snapshot. `parameters` are those of the snapshot's version."""
    kept = snapshot.scalars.get("hidden")
    return task_model(settings, parameters) if kept is None else HiddenModel.restore(snapshot, parameters)


class RoundedModel:
    """The model in bfloat16 (schemas.codecs.rounded). It has no state of its own."""

    def __init__(self, parameters: Parameters) -> None:
        self._parameters = parameters
        self._base: Parameters | None = None
        self._narrow: Parameters | None = None
        self._digest = ""

    @property
    def base(self) -> Parameters:
        if self._base is None:
            travelling = narrow(self._parameters)
            base = wide(travelling)
            if all_finite(base):
                self._narrow, self._base, self._digest = travelling, base, tensors_digest(base).hex()
            else:  # a value beyond bfloat16
                self._narrow, self._base = None, self._parameters
        return self._base

    def advance(self, parameters: Parameters) -> None:
        self._parameters, self._base, self._narrow = parameters, None, None

    def grow(self, parameters: Parameters) -> None:
        check_dtypes(parameters)
        self.advance(parameters)

    def order(self, codecs: Collection[str], held: int | None) -> Downlink | None:  # noqa: ARG002
        base = self.base
        if DOWNLINK not in codecs or base is self._parameters:
            return None
        return Downlink(codec="bf16", digest=self._digest)

    def tensors(self, order: Downlink | None) -> Parameters:
        base = self.base
        return base if order is None or self._narrow is None else self._narrow

    def version_of(self, model: HeldModel | None) -> int | None:  # noqa: ARG002
        return None

    def arrays(self) -> dict[str, Array]:
        return {}

    def scalars(self) -> dict[str, Any]:
        return {}


class HiddenModel:
    """The hidden state (schemas.codecs.hidden), and its newest steps."""

    def __init__(self, step: Uplink, parameters: Parameters, every: int = 1) -> None:
        """`every`: versions from one step to the next."""
        self._order = step
        self._every = every
        self._wire = wire_of(step, spec_of(parameters))
        self._version = 0
        self._begin(parameters)

    def _begin(self, parameters: Parameters) -> None:
        """Take the parameters themselves as the hidden state. Nothing leads to it from an older one."""
        self._state = parameters
        self._digest = self._first_digest = tensors_digest(parameters).hex()
        self._first_version = self._version
        """Oldest version that steps may begin at: that of the state before the first step."""
        self._steps: deque[Step] = deque()

    @property
    def base(self) -> Parameters:
        return self._state

    def advance(self, parameters: Parameters) -> None:
        self._version += 1
        if self._version % self._every:
            return
        parts = parts_of_step(self._wire, parameters, self._state)
        plain = {t.name: parameters[t.name] for t in self._wire.places.plain}
        state = after(self._wire, self._state, parts, plain) if all_finite(parts) else None
        if state is None or not all_finite(state):  # the difference is beyond float32
            self._begin(parameters)
            return
        self._state, self._digest = state, tensors_digest(state).hex()
        self._steps.append(Step(self._version, parts, self._digest))
        most = sum(t.num_bytes for t in self._wire.places.coded)
        while len(self._steps) > MOST_STEPS or sum(step.num_bytes for step in self._steps) >= most:
            gone = self._steps.popleft()
            self._first_version, self._first_digest = gone.version, gone.digest

    def grow(self, parameters: Parameters) -> None:
        self._wire = wire_of(self._order, spec_of(parameters))
        self._begin(parameters)

    def order(self, codecs: Collection[str], held: int | None) -> Downlink | None:
        if DOWNLINK not in codecs:
            return None
        newest = self._newest
        return Downlink(
            codec="hidden",
            digest=self._digest,
            held=self._state_at(held),
            step=self._order,
            version=None if newest == self._version else newest,
        )

    def tensors(self, order: Downlink | None) -> Parameters:
        if order is None or order.held is None:
            return self._state
        steps = [step for step in self._steps if step.version > order.held]
        return joined(steps, self._state.select(t.name for t in self._wire.places.plain))

    def version_of(self, model: HeldModel | None) -> int | None:
        if model is None:
            return None
        digests = {self._first_version: self._first_digest} | {step.version: step.digest for step in self._steps}
        return model.version if digests.get(model.version) == model.digest else None

    @property
    def _newest(self) -> int:
        """The version that the hidden state is of."""
        return self._steps[-1].version if self._steps else self._first_version

    def _state_at(self, version: int | None) -> int | None:
        """Return the version of the hidden state that tasks of `version` were trained from; None if no step begins
        there."""
        if version is None or not self._first_version <= version <= self._version:
            return None
        return max(v for v in (self._first_version, *(step.version for step in self._steps)) if v <= version)

    def arrays(self) -> dict[str, Array]:
        places = self._wire.places
        kept = places.coded if self._every == 1 else (*places.coded, *places.plain)  # else the parameters' own
        own = {f"{_HIDDEN}{t.name}": self._state[t.name] for t in kept}
        return own | {f"{GROUP}/{step.version}/{name}": a for step in self._steps for name, a in step.parts.items()}

    def scalars(self) -> dict[str, Any]:
        digests = [self._first_digest, *(step.digest for step in self._steps)]
        kept = {"step": self._order.model_dump(), "version": self._version, "digests": digests}
        if self._every != 1:
            kept |= {"every": self._every, "states": [self._first_version, *(step.version for step in self._steps)]}
        return {"hidden": kept}

    @classmethod
    def restore(cls, snapshot: Snapshot, parameters: Parameters) -> HiddenModel:
        """Rebuild the hidden state whose `arrays` and `scalars` are in the snapshot.

        Raises KeyError, TypeError, ValueError or a PeerError if they are not what `arrays` and `scalars` gave.
        """
        kept: Mapping[str, Any] = snapshot.scalars["hidden"]
        made = cls.__new__(cls)
        made._order = Uplink.model_validate(kept["step"])
        made._wire = wire_of(made._order, spec_of(parameters))
        made._version = kept["version"]
        tensors = {name: snapshot.arrays.get(_HIDDEN + name, array) for name, array in parameters.items()}
        made._state = Parameters(tensors, parameters.non_trainable).packed()
        made._first_digest, *digests = kept["digests"]
        made._every = kept.get("every", 1)
        made._first_version, *versions = kept.get("states") or range(made._version - len(digests), made._version + 1)
        made._steps = deque()
        names = [part.name for part in made._wire.parts]
        for version, digest in zip(versions, digests, strict=True):
            parts = {name: snapshot.arrays[f"{GROUP}/{version}/{name}"] for name in names}
            check_parts(made._wire.parts, parts)
            made._steps.append(Step(version, parts, digest))
        made._digest = digests[-1] if digests else made._first_digest
        made._check(spec_of(parameters))
        return made

    def _check(self, spec: ModelSpec) -> None:
        """Raise ValueError or SpecMismatch if this is no hidden state of the model. Its participants have another one
        then, and each task would be declined."""
        known = [self._first_digest, *(step.digest for step in self._steps)]
        if not all(isinstance(one, str) and is_digest(one) for one in known):
            raise ValueError("the hidden state has digests that are none")
        states = [self._first_version, *(step.version for step in self._steps)]
        rising = states == sorted(set(states)) and 0 <= states[0] <= states[-1] <= self._version
        if len(self._steps) > MOST_STEPS or not rising:
            raise ValueError(f"the hidden state of version {self._version} has steps to {states[1:]} from {states[0]}")
        check_spec(self._state, spec)
        if tensors_digest(self._state).hex() != self._digest:
            raise ValueError(f"the hidden state of version {self._version} has another digest than was noted")
