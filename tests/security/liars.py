"""One liar among ten participants, in the real core: how far does each number that it can report move the model?

    python -m tests.security.liars           prints the table of docs/security.md
    python -m tests.security.liars --write   writes it there

Each participant's training moves the model by 1 in a direction of its own group: the nine honest ones along the first
coordinate, the liar along the second. All of them tell the truth, or the liar lies about one number, or about all. The
updates go through the codec and the core's own checks, as from the broker.

The liar's share is its part of the model's whole movement. An honest tenth has a share of 0.1, unless the strategy
scales each coordinate for itself (FADAS).
"""

from __future__ import annotations

import argparse
import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from fedmq.coordinator.decisions.commands import Accept, Distil, IssueTask, NewVersion
from fedmq.coordinator.decisions.core import Core
from fedmq.coordinator.decisions.events import Distilled, ParticipantSeen, PoisonArrived, Started, Tick, UpdateArrived
from fedmq.coordinator.settings import RunSettings, StopSettings
from fedmq.coordinator.strategies import (
    Area,
    Ca2fl,
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
from fedmq.schemas.codec import decode, encode
from fedmq.schemas.errors import PeerError
from fedmq.schemas.messages import Hello, TrainingConfig, Update, update_id
from fedmq.schemas.methods import METHODS
from fedmq.schemas.parameters import Parameters

PARTICIPANTS = 10
LIAR = "p9"
EXAMPLES, BATCH, EPOCHS = 64, 16, 2
STEPS = EPOCHS * EXAMPLES // BATCH
TASK_S = 2.0
"""Time from a task to its update (s); half of it is training."""
UPDATES = 20
LARGEST, FAR = 2**53, 1.7976931348623157e308
KINDS = ("equal", "examples", "sqrt", "log", "quality")
MOST_WEIGHT = RunSettings.model_fields["max_client_weight"].default

STRATEGIES: Mapping[str, Any] = {
    "fedasync": FedAsync(),
    "fedbuff": FedBuff(buffer_size=10),
    "fedavg": FedAvg(cohort_size=10, min_updates=10),
    "fadas": Fadas(buffer_size=10),
    "fednova": FedNova(cohort_size=10, min_updates=10),
    "fednova, a buffer": FedNova(buffer_size=10),
    "fedstaleweight": FedStaleWeight(buffer_size=10),
    "participation, staleness": ParticipationCorrection(buffer_size=10, measure="staleness"),
    "participation, duration": ParticipationCorrection(buffer_size=10, measure="duration"),
    "participation, interval": ParticipationCorrection(buffer_size=10, measure="interval"),
    "port": Port(buffer_size=10),
    "ca2fl": Ca2fl(buffer_size=10, num_participants=PARTICIPANTS),
    "area": Area(buffer_size=10, num_participants=PARTICIPANTS),
    "area, on participants": Area(buffer_size=10, num_participants=PARTICIPANTS, memory="participant"),
    "scaffold": Scaffold(num_participants=PARTICIPANTS, cohort_size=10, min_updates=10),
    "scaffold, a buffer": Scaffold(num_participants=PARTICIPANTS, buffer_size=10),
    "feddf": FedDf(buffer_size=10),
    "fedcompass": FedCompass(num_participants=PARTICIPANTS, min_steps=4, max_steps=8),
}


@dataclass(frozen=True)
class Lie:
    """The numbers that the liar reports in place of its own."""

    name: str
    update: Mapping[str, Any] = field(default_factory=dict)
    hello: Mapping[str, Any] = field(default_factory=dict)
    tensors: float | None = None
    """Value of every element that it sends."""


LIES: tuple[Lie, ...] = (
    *(Lie(f"num_steps {n}", {"num_steps": n}) for n in (0, 1, LARGEST, -1)),
    *(Lie(f"train_s {s:g}", {"train_s": s}) for s in (0.0, 1e-300, 1.0, FAR, -1.0, math.nan, math.inf)),
    *(Lie(f"num_examples {n}", {"num_examples": n}) for n in (0, 1, LARGEST, -1)),
    *(Lie(f"hello {n}", {}, {"num_examples": n}) for n in (0, 1, LARGEST)),
    *(Lie(f"loss {x:g}", {"metrics": {"loss": x}}) for x in (0.0, -1.0, 1.0, FAR, -FAR, math.nan, math.inf)),
    *(Lie(f"elements {x:g}", tensors=x) for x in (0.0, 3.4e38, -3.4e38, math.nan, math.inf)),
    Lie(
        "all that count for more",
        {"num_steps": 1, "train_s": FAR, "num_examples": LARGEST, "metrics": {"loss": -FAR}},
        {"num_examples": LARGEST},
    ),
    Lie("all of the largest", {"num_steps": LARGEST, "train_s": FAR, "num_examples": LARGEST}),
    Lie("all of the smallest", {"num_steps": 0, "train_s": 0.0, "num_examples": 1, "metrics": {"loss": FAR}}),
)
TRUTH = Lie("the truth")
REFUSED = {
    "num_steps -1": "malformed", "num_examples -1": "malformed", "num_examples 0": "malformed",
    "train_s -1": "malformed", "train_s nan": "not_finite", "train_s inf": "not_finite", "loss nan": "not_finite",
    "loss inf": "not_finite", "elements nan": "not_finite", "elements inf": "not_finite",
    "elements 3.4e+38": "overflow", "elements -3.4e+38": "overflow",
}  # fmt: skip
"""Lies that no honest participant can tell, and the reason for which each is discarded."""


@dataclass
class Story:
    """The result of one run."""

    honest: float
    """Way of the model along the honest participants' coordinate."""
    liars: float
    """Way along the liar's coordinate."""
    versions: int
    accepted_of_liar: int
    discarded: Mapping[str, int]
    finite: bool

    @property
    def share(self) -> float:
        """The liar's part of the whole way."""
        whole = abs(self.honest) + abs(self.liars)
        return abs(self.liars) / whole if whole else 0.0


class World:
    """Ten participants that answer all tasks, in their order, `TASK_S` after they were made."""

    def __init__(self, strategy: Any, kind: str, lie: Lie) -> None:
        if strategy.reply == "change" and kind != "equal":
            raise ValueError("AREA on participants takes no client weights")
        self.lie, self.strategy = lie, strategy
        run = RunSettings(
            run_id="run", concurrency=PARTICIPANTS, min_participants=PARTICIPANTS, client_weights=kind,  # type: ignore[arg-type]
            decline_backoff_s=0.0, lease_s=1000.0, stop=StopSettings(max_updates=10**6), selection="least_used",
        )  # fmt: skip
        training = TrainingConfig(epochs=EPOCHS, batch_size=BATCH, learning_rate=0.1)
        self.core = Core(run, strategy, training, Parameters({"w": np.zeros(4, np.float32)}), "abcdef01")
        self.now = 0.0
        self.tasks: deque[tuple[float, IssueTask, Parameters]] = deque()
        self.accepted: dict[str, int] = {}
        self.memory: dict[str, tuple[str | None, Parameters]] = {}
        self.deliveries = self.versions = 0

    def step(self, event: Any) -> None:
        for command in self.core.step(event, self.now):
            if isinstance(command, Distil):
                self.step(mean_of_models(command))
            elif isinstance(command, IssueTask):
                self.tasks.append((self.now + TASK_S, command, self.core.parameters))
            elif isinstance(command, Accept):
                self.accepted[command.update.participant_id] = self.accepted.get(command.update.participant_id, 0) + 1
                if command.update.next_memory is not None:
                    who = command.update.participant_id
                    self.memory[who] = (command.update.next_memory, self.memory[f"{who} next"][1])
            elif isinstance(command, NewVersion):
                self.versions += 1
                assert all(math.isfinite(weight) for weight in command.weights)

    def hello(self, who: str) -> None:
        numbers = {"num_examples": EXAMPLES} | (self.lie.hello if who == LIAR else {})
        replies = ("delta", "parameters", "change", "scaffold")
        self.step(ParticipantSeen(Hello(participant_id=who, session_id="s", replies=replies, **numbers)))

    def run(self, updates: int = UPDATES) -> Story:
        self.step(Started())
        for i in range(PARTICIPANTS):
            self.hello(f"p{i}")
        done = 0
        while done < updates:
            if not self.tasks:
                self.now += 1.0
                self.step(Tick())
                for i in range(PARTICIPANTS):
                    self.hello(f"p{i}")
                assert self.now < 1e5, "nothing happens any more"
                continue
            due_s, task, base = self.tasks.popleft()
            self.now = max(self.now, due_s)
            self.step(self.sent(task, base))
            done += 1
        x = self.core.parameters["w"].astype(np.float64)
        return Story(
            float(x[0]), float(x[1]), self.versions, self.accepted.get(LIAR, 0), self.core.discarded,
            bool(np.isfinite(x).all()) and _is_finite(self.core),
        )  # fmt: skip

    def sent(self, task: IssueTask, base: Parameters) -> UpdateArrived | PoisonArrived:
        """Return the event that the service would make of this participant's update."""
        who, reply = task.participant_id, self.strategy.reply
        mark, before = self.memory.get(who, (None, Parameters({"w": np.zeros(4, np.float32)})))
        own_id = update_id("run", task.task_id, who)
        step = np.array([0, 1, 0, 0] if who == LIAR else [1, 0, 0, 0], np.float32)
        own = {
            "delta": step, "scaffold": step, "parameters": base["w"] + step, "change": base["w"] + step - before["w"],
        }[reply]  # fmt: skip
        remembers = METHODS[reply].remembers
        self.memory[f"{who} next"] = (own_id, Parameters({"w": base["w"] + step}))
        values = {
            "kind": "update", "update_id": own_id, "task_id": task.task_id, "run_id": "run", "participant_id": who,
            "base_version": task.base_version, "payload": reply, "memory": mark if remembers else None,
            "next_memory": own_id if remembers else None, "num_examples": EXAMPLES,
            "num_steps": min(STEPS, task.training.max_steps or STEPS), "metrics": {"loss": 0.5},
            "train_s": TASK_S / 2, "chunks": None, "codec": None,
        }  # fmt: skip
        if who == LIAR:
            values |= self.lie.update
            if self.lie.tensors is not None:
                own = np.full(4, self.lie.tensors, np.float32)
        tensors = {"w": own} | ({"control:w": np.zeros(4, np.float32)} if reply == "scaffold" else {})
        self.deliveries += 1
        try:
            decoded = decode(bytes(encode(Update.trusted(values), Parameters(tensors))))
        except PeerError as error:
            return PoisonArrived(self.deliveries, error.reason, str(error), task.task_id)  # type: ignore[arg-type]
        assert isinstance(decoded.message, Update)
        assert decoded.parameters is not None
        return UpdateArrived(self.deliveries, decoded.message, decoded.parameters)


def mean_of_models(question: Distil) -> Distilled:
    """Return the answer of a distillation that learns the ensemble of linear models perfectly."""
    models, weights = question.ensemble.models, question.ensemble.weights
    with np.errstate(over="ignore", invalid="ignore"):
        mean = sum(model["w"] * np.float32(weight) for model, weight in zip(models, weights, strict=True))
    return Distilled(question.version, Parameters({"w": np.asarray(mean, np.float32)}))


def _is_finite(core: Core) -> bool:
    return all(np.isfinite(array).all() for array in core.snapshot().arrays.values() if array.dtype.kind == "f")


def kinds_of(strategy: Any) -> Sequence[str]:
    """Return the kinds of client weights that a strategy takes."""
    return ("equal",) if strategy.reply == "change" else KINDS


def lies_about(kind: str) -> Sequence[Lie]:
    """Return the lies that this kind of client weights can hear: all for `equal`, and about its own number else."""
    if kind == "equal":
        return LIES
    heard = ("loss ", "all ") if kind == "quality" else ("num_examples ", "hello ", "all ")
    return [lie for lie in LIES if lie.name.startswith(heard) and lie.name not in REFUSED]


@cache
def told(name: str, kind: str, lie_name: str) -> Story:
    """Run ten participants with one liar, with this strategy of STRATEGIES."""
    lie = TRUTH if lie_name == TRUTH.name else next(one for one in LIES if one.name == lie_name)
    return World(STRATEGIES[name], kind, lie).run()


def worst(name: str, kind: str) -> Story:
    """Return the run in which the liar has the largest share."""
    return max((told(name, kind, lie.name) for lie in lies_about(kind)), key=lambda story: story.share)


def allowed(name: str, kind: str) -> float:
    """Return the largest share that one liar in ten may have with this strategy and these client weights.

    Its weight may be `max_client_weight` times another's, unless all weights are equal. FedNova divides by the steps,
    and a participant may truly have made one of those that it was asked for. Participation by durations multiplies by
    the time, which may be all of the time since the task was made. FedAsync makes a version of each update: once α·s·q
    is 1, the model right after the liar's update is the liar's.
    """
    if name == "fedasync" and kind != "equal":
        return 1.0
    factor = 1.0 if kind == "equal" else MOST_WEIGHT
    if name.startswith("fednova"):
        factor *= STEPS
    elif name == "participation, duration":
        factor *= TASK_S / (TASK_S / 2)
    honest = told(name, "equal", TRUTH.name).share
    return factor * honest / (factor * honest + 1.0 - honest)


def rows(names: Iterable[str] = STRATEGIES) -> Iterator[tuple[str, list[str]]]:
    """Yield for each strategy the cells of its row: the honest share, and the largest with each kind of weights."""
    for name in names:
        strategy = STRATEGIES[name]
        cells = [f"{told(name, 'equal', TRUTH.name).share:.2f}"]
        for kind in KINDS:
            if kind in kinds_of(strategy):
                cells.append(f"{worst(name, kind).share:.2f}")
            else:
                cells.append("–")
        yield name, cells


def line(name: str, cells: Sequence[str]) -> str:
    """Return one row of the table in Markdown."""
    return f"| {name} | {' | '.join(cells)} |"


START, END = "<!-- one liar in ten: begin -->", "<!-- one liar in ten: end -->"
PAGE = Path(__file__).parents[2] / "docs" / "security.md"


def table() -> str:
    """Return the table in Markdown."""
    lines = [
        f"| strategy | honest | {' | '.join(f'`{kind}`' for kind in KINDS)} |",
        "|---|" + "--:|" * (len(KINDS) + 1),
    ]
    lines += [line(name, cells) for name, cells in rows()]
    return "\n".join(lines)


def written() -> str:
    """Return the table that the page has."""
    text = PAGE.read_text(encoding="utf-8")
    return text[text.index(START) + len(START) : text.index(END)].strip()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the table into docs/security.md")
    made = table()
    print(made)
    if parser.parse_args().write:
        page = PAGE.read_text(encoding="utf-8")
        PAGE.write_text(page.replace(written(), made), encoding="utf-8")
