"""Populations of participants: speed, data, network, availability and dropout, each by a law or a trace.

One task of participant i takes, in virtual seconds,

    payload down / down_i  +  (task + per_example_i · examples · epochs) · slowness_i  +  payload up / up_i  +  latency

`task` is drawn anew for every task. Quantities with the index i are drawn once for each participant. A participant
that is off pauses its work (fedmq's participants resume from their spool), so only the time that it is on counts.

Randomness: participant i draws from its own generators, spawned from (seed, i), and every task takes the same number of
draws. So a participant's luck does not depend on the others, on the order of events, on how many participants there
are, or on where the study runs. Two strategies that are compared on one seed meet the same participants.

Correlation is a Gaussian copula over (speed, data size, label position). A coefficient of 1 between speed and size
gives the fastest participant the most data. The laws themselves do not change.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from fedmq.schemas.errors import FedmqError
from fedmq.studies.population.laws import AnyLaw, Constant
from fedmq.studies.population.partial_work import Effort, PartialWork
from fedmq.studies.population.recorded_runs import History, histories, lanes
from fedmq.studies.population.seeding import Rewound, Streams, entropy_of_spawned, generator_states
from fedmq.studies.population.traces import Device, joined, read_traces
from fedmq.studies.value import Value

Coefficient = Annotated[float, Field(ge=-1, le=1)]

_TRAITS, _TASKS, _PRESENCE, _ARRIVALS, _EFFORT = range(5)
"""Purposes of one participant's generators."""
MOST_EXAMPLES = 2**53
"""Largest count that a message, a table and a float hold exactly. A larger draw counts as this one."""
DRAWS_A_TASK = 4
"""Draws for one task: its duration, whether it drops out, when, and how long the participant is away."""


class Compute(Value):
    """Time that training takes."""

    task_s: AnyLaw = Constant(value=0)
    """Seconds drawn for every task, whatever its data."""
    example_s: AnyLaw = Constant(value=0)
    """Seconds per example and epoch, drawn once for each participant."""
    slowness: AnyLaw = Constant(value=1)
    """Factor on all computing of a participant, drawn once for each."""


class Network(Value):
    """Time that payloads are on the way. None costs no time."""

    down_bytes_per_s: AnyLaw | None = None
    up_bytes_per_s: AnyLaw | None = None
    latency_s: AnyLaw = Constant(value=0)
    """Seconds added to each task, drawn once for each participant."""


class Dropout(Value):
    """Tasks that give no update. They end at a moment drawn uniformly over their duration."""

    probability: Annotated[float, Field(ge=0, le=0.999)] = 0.0
    """Probability for each task, the same for each participant. An update takes 1/(1 - probability) tasks in the mean:
    at 1 none would ever come, and no run would end."""
    how: Literal["declines", "vanishes"] = "declines"
    """`declines`: the participant says so, and the slot is free at once. `vanishes`: it says nothing, and the slot is
    held until the lease is over or the participant is back, in a new session that has forgotten the task."""
    away_s: AnyLaw = Constant(value=0)
    """Seconds for which the participant takes no tasks afterwards."""


class Availability(Value):
    """Turns of being on and off, of these lengths (s).

    They have been going on for a long time when the study begins. So the part of the participants that is on then, and
    the time that is left of their turns, are as at any other moment.
    """

    on_s: AnyLaw
    off_s: AnyLaw

    @model_validator(mode="after")
    def _time_passes(self) -> Availability:
        if self.on_s.mean <= 0:
            raise ValueError("on_s has a mean of 0: nobody would ever train")
        return self


class Correlation(Value):
    """Coefficients of the Gaussian copula. Positive: fast participants have more data, or later labels."""

    speed_size: Coefficient = 0.0
    speed_label: Coefficient = 0.0
    size_label: Coefficient = 0.0

    @model_validator(mode="after")
    def _possible(self) -> Correlation:
        if np.linalg.eigvalsh(self.matrix()).min() < -1e-9:
            raise ValueError(
                f"speed_size = {self.speed_size}, speed_label = {self.speed_label} and size_label = {self.size_label} "
                "contradict each other: no three quantities are correlated like this. Bring one of them nearer to 0"
            )
        return self

    def matrix(self) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
        """Return the correlations of (speed, size, label), with ones on the diagonal."""
        a, b, c = self.speed_size, self.speed_label, self.size_label
        return np.array([[1.0, a, b], [a, 1.0, c], [b, c, 1.0]])

    def factor(self) -> tuple[tuple[float, ...], ...]:
        """Return a lower triangular L with L·Lᵀ = matrix, even if coefficients are ±1 (Cholesky, zero pivots kept)."""
        a, b, c = self.speed_size, self.speed_label, self.size_label
        second = math.sqrt(max(1 - a * a, 0.0))
        third = (c - a * b) / second if second > 1e-12 else 0.0
        return (1.0, 0.0, 0.0), (a, second, 0.0), (b, third, math.sqrt(max(1 - b * b - third * third, 0.0)))


class Population(Value):
    """A named federation of participants."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")] = "population"
    participants: Annotated[int, Field(ge=1, le=1_000_000)]
    compute: Compute = Compute()
    network: Network = Network()
    examples: AnyLaw = Constant(value=1)
    """Examples of a participant, rounded, at least 1. Problems that deal out data themselves take them as relative
    sizes."""
    correlation: Correlation = Correlation()
    dropout: Dropout = Dropout()
    availability: Availability | None = None
    partial_work: PartialWork | None = None
    """Tasks that do less than they were asked for. None: all do what they are asked for."""
    trace: str | Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """File of measured devices (studies.population.traces). Participant i is row i, modulo the number of rows. A value
    in a row takes the place of the law for it. Each of several files says something else about a device, as FedScale's
    two do."""
    run: str | None = None
    """Folder of a recorded run (studies.population.recorded_runs). Participant i is the run's participant i, modulo
    their number, with its durations, dropouts and number of examples in place of the laws. `participants` is the run's
    number if it is not given."""
    order: Literal["drawn", "recorded"] = "drawn"
    """Order of a recorded run. `drawn`: each task takes as long as one of its participant's recorded tasks, drawn anew.
    `recorded`: tasks go out, and updates come, exactly when they did. The run's strategy then meets the same
    staleness."""

    @model_validator(mode="before")
    @classmethod
    def _as_many_as_the_run_had(cls, fields: Any) -> Any:
        if not isinstance(fields, dict) or not fields.get("run"):
            return fields
        recorded = fields.get("order") == "recorded"
        if recorded and fields.get("participants") is not None:
            raise ValueError("participants contradicts the recorded order, which says how many there are: leave it out")
        if fields.get("participants") is None:
            try:
                found: Sequence[History] = histories(str(fields["run"]))
            except FedmqError as e:
                raise ValueError(str(e)) from None
            fields = {**fields, "participants": len(lanes(found) if recorded else found)}
        return fields

    @model_validator(mode="after")
    def _order_of_a_run(self) -> Population:
        if self.order == "recorded" and self.run is None:
            raise ValueError('order = "recorded" needs a run: name its folder')
        if self.run is not None and self.trace is not None:
            raise ValueError("run and trace both say how long tasks take: leave one out")
        if self.run is not None and self.partial_work is not None:
            raise ValueError("run and partial_work both say how much tasks do: leave one out")
        return self

    @property
    def traces(self) -> tuple[str, ...]:
        """Return the files of `trace`."""
        if self.trace is None:
            return ()
        return (self.trace,) if isinstance(self.trace, str) else self.trace

    @property
    def takes_time(self) -> bool:
        """True if tasks take time. A run that ends by time alone would never end otherwise."""
        computes = max(self.compute.task_s.mean, self.compute.example_s.mean) * self.compute.slowness.mean
        sends = self.network.down_bytes_per_s is not None or self.network.up_bytes_per_s is not None
        measured = self.trace is not None or self.run is not None
        return computes > 0 or sends or self.network.latency_s.mean > 0 or measured

    def members(self, seed: int) -> list[Member]:
        """Draw all participants, each from its own generator."""
        devices = [read_traces(Path(path)) for path in self.traces]
        recorded: Sequence[History] = () if self.run is None else histories(self.run)
        if self.order == "recorded":
            recorded = lanes(recorded)
        factor = np.array(self.correlation.factor())
        traits, rewound = generator_states(entropy_of_spawned(seed, self.participants, _TRAITS)), Rewound()
        found: list[Member] = []
        for i in range(self.participants):
            device = joined([rows[i % len(rows)] for rows in devices])
            history = recorded[i % len(recorded)] if recorded else None
            found.append(self._member(i, rewound.at(traits[i]), factor, device, history))
        return _under_own_names(found)

    def _member(
        self,
        index: int,
        rng: np.random.Generator,
        factor: npt.NDArray[np.float64],
        device: Device,
        history: History | None,
    ) -> Member:
        normal = rng.standard_normal(3)
        u = rng.random(4)
        speed, size, label = (_normal_cdf(float(np.dot(row, normal))) for row in factor)
        compute, network = self.compute, self.network
        down = device.down_bytes_per_s or _drawn(network.down_bytes_per_s, u[1])
        up = device.up_bytes_per_s or _drawn(network.up_bytes_per_s, u[2])
        example_s = device.example_s if device.example_s is not None else compute.example_s.quantile(u[0])
        return Member(
            index=index,
            participant_id=f"p{index:06d}",
            examples=history.num_examples if history else _count(device.examples or self.examples.quantile(size)),
            slowness=compute.slowness.quantile(min(1.0 - speed, math.nextafter(1.0, 0.0))),
            example_s=example_s,
            down_s_per_byte=1.0 / down if down else 0.0,
            up_s_per_byte=1.0 / up if up else 0.0,
            latency_s=network.latency_s.quantile(u[3]),
            label_position=label,
            device=device,
            history=history,
        )


@dataclass(frozen=True, slots=True)
class Member:
    """One participant of a population, as drawn."""

    index: int
    participant_id: str
    examples: int
    slowness: float
    example_s: float
    down_s_per_byte: float
    up_s_per_byte: float
    latency_s: float
    label_position: float
    """Place of its data on the axis of labels, in [0, 1], for problems that skew by label."""
    device: Device
    history: History | None = None
    """Record of the participant in a recorded run."""

    def train_s(self, compute: Compute, u: float, passes: int) -> float:
        """Return the seconds of training in one task.

        `u` is the duration's draw, `passes` its examples times epochs.
        """
        return (compute.task_s.quantile(u) + self.example_s * passes) * self.slowness

    def transfer_s(self, down_bytes: int, up_bytes: int) -> float:
        """Return the seconds that the payloads are on the way."""
        return down_bytes * self.down_s_per_byte + up_bytes * self.up_s_per_byte + self.latency_s

    def times_s(self, compute: Compute, u: float, passes: int, payload_bytes: tuple[int, int]) -> tuple[float, float]:
        """Return (training, the whole task) in seconds. `payload_bytes` are (down, up)."""
        if self.history is not None:
            task = self.history.drawn(u)
            return task.train_s, task.duration_s
        train_s = self.train_s(compute, u, passes)
        return train_s, train_s + self.transfer_s(*payload_bytes)

    def mean_task_s(self, compute: Compute, passes: int, payload_bytes: tuple[int, int]) -> float:
        """Return the mean seconds of a task. The arguments are those of `times_s`."""
        if self.history is not None:
            return math.fsum(task.duration_s for task in self.history.tasks) / len(self.history.tasks)
        train_s = (compute.task_s.mean + self.example_s * passes) * self.slowness
        return train_s + self.transfer_s(*payload_bytes)

    def drops(self, dropout: Dropout, u: float) -> Literal["", "declines", "vanishes"]:
        """Return how a task ends without an update, or "" if it gives one. `u` is its draw."""
        if self.history is None:
            return dropout.how if u < dropout.probability else ""
        if u < self.history.declines:
            return "declines"
        return "vanishes" if u < self.history.declines + self.history.vanishes else ""


class Presence:
    """The turns of one participant, on and off.

    They come from its own generator or from its trace, and are made when they are asked for.
    """

    def __init__(self, member: Member, availability: Availability | None, seed: int) -> None:
        self._availability = availability
        self._device = member.device
        self._until = math.inf
        self.on = True
        """True if the participant is on in the turn that ends at `until`."""
        if member.device.on_intervals:
            self._turns = member.device.turns()
            self._until = 0.0
            while self._until <= 0:  # its first turn may have no length
                self.on, self._until = next(self._turns)
        elif availability is not None:
            self._rng = generator(seed, member.index, _PRESENCE)
            on, off = availability.on_s.mean, availability.off_s.mean
            self.on = self._rng.random() * (on + off) < on
            law = availability.on_s if self.on else availability.off_s
            self._until = law.left(self._rng.random(), self._rng.random())

    @property
    def until(self) -> float:
        """Virtual time (s) at which the present turn ends; infinite for a participant that is always on."""
        return self._until

    def turn(self) -> None:
        """Go on to the next turn."""
        if self._device.on_intervals:
            self.on, self._until = next(self._turns)
        else:
            self.on = not self.on
            self._until += self._length()

    def _length(self) -> float:
        assert self._availability is not None
        law = self._availability.on_s if self.on else self._availability.off_s
        return law.quantile(self._rng.random())


def generator(seed: int, participant: int, purpose: int) -> np.random.Generator:
    """Return a participant's own generator, independent of all others (numpy's SeedSequence spawn keys)."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(participant, purpose))))


def task_streams(seed: int, participants: int) -> Streams:
    """Return the streams of the participants' tasks, DRAWS_A_TASK draws for each task."""
    return Streams(seed, participants, _TASKS)


def arrival_generator(seed: int, participant: int) -> np.random.Generator:
    """Return the generator of the moments at which a participant offers itself (open loop)."""
    return generator(seed, participant, _ARRIVALS)


def effort(seed: int, participant: int, settings: PartialWork) -> Effort:
    """Return the draws of how much a participant's tasks do."""
    return Effort(settings, generator(seed, participant, _EFFORT))


def _under_own_names(members: list[Member]) -> list[Member]:
    """Give participants of a recorded run the names that they had there, each name once."""
    own = {member.history.participant_id for member in members if member.history is not None}
    taken: set[str] = set()
    named = []
    for member in members:
        name = member.participant_id if member.history is None else member.history.participant_id
        if name in taken:
            name = member.participant_id
            while name in own:  # a participant of the run has this name
                name += "-again"
        named.append(member if name == member.participant_id else replace(member, participant_id=name))
        taken.add(name)
    return named


def _drawn(law: AnyLaw | None, u: float) -> float | None:
    return None if law is None else law.quantile(u)


def _normal_cdf(z: float) -> float:
    return min(0.5 * math.erfc(-z / math.sqrt(2)), math.nextafter(1.0, 0.0))


def _count(examples: float) -> int:
    return min(max(1, round(examples)), MOST_EXAMPLES)
