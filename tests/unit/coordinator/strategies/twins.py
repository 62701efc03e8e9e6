"""Twins: the formulas again, from the papers, in plain float64 numpy; and helpers that make updates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fedmq.coordinator.strategies.protocol import ClientUpdate
from fedmq.schemas.parameters import Parameters

Model = dict[str, np.ndarray]


def model(tensors: Mapping[str, Any], non_trainable: set[str] = frozenset(), dtype: Any = np.float32) -> Parameters:
    """Parameters from lists; arrays keep their dtype."""
    made = {n: x if isinstance(x, np.ndarray) else np.array(x, dtype=dtype) for n, x in tensors.items()}
    return Parameters(made, non_trainable)


def update(
    payload: Parameters | Mapping[str, Any], q: float = 1.0, number: int = 0, who: str | None = None, **fields: Any
) -> ClientUpdate:
    if not isinstance(payload, Parameters):
        payload = model(payload)
    values = {"num_examples": 1, "client_weight": q} | fields
    return ClientUpdate(f"update-{number}", who or f"participant-{number}", 0, payload, **values)


@dataclass
class Sent:
    """One update of a story: its participant, its delta of tensor "x", its staleness and so on."""

    who: str
    delta: Any
    tau: int = 0
    q: float = 1.0
    num_steps: int = 1
    train_s: float = 1.0


def play(strategy: Any, start: Sequence[float], story: Sequence[Sent], dtype: Any = np.float64) -> Played:
    """Feed the story to a strategy that starts from parameters "x", and make a version whenever it is ready."""
    parameters = model({"x": start}, dtype=dtype)
    state = strategy.init(parameters)
    if strategy.cohort:
        state = strategy.open_round(state, 0.0)
    played = Played()
    for number, sent in enumerate(story):
        one = update(
            model({"x": sent.delta}, dtype=dtype), sent.q, number, sent.who, num_steps=sent.num_steps,
            train_s=sent.train_s,
        )  # fmt: skip
        state = strategy.accumulate(state, one, sent.tau)
        if strategy.ready(state, 0.0):
            played.weights.append(strategy.weights(state))
            state, parameters = strategy.aggregate(state, parameters)
            assert state.count == 0
            played.versions.append(parameters["x"])
    return played


@dataclass
class Played:
    """The versions of "x" that a story made, and the ledger's weights of each."""

    versions: list[np.ndarray] = field(default_factory=list)
    weights: list[tuple[float, ...]] = field(default_factory=list)


def as_float64(parameters: Mapping[str, np.ndarray]) -> Model:
    return {n: np.asarray(x).astype(np.float64) for n, x in parameters.items()}


def assert_close(got: Mapping[str, np.ndarray], expected: Model, tolerance: float = 2e-5) -> None:
    assert list(got) == list(expected)
    for name, x in expected.items():
        np.testing.assert_allclose(np.asarray(got[name]).astype(np.float64), x, rtol=tolerance, atol=tolerance)


def payload_bytes(parameters: Mapping[str, np.ndarray]) -> dict[str, bytes]:
    return {n: x.tobytes() for n, x in parameters.items()}


def unaligned(x: np.ndarray) -> np.ndarray:
    """The same values as a read-only view that starts at an odd address, as in a message body."""
    body = np.empty(x.nbytes + 65, np.uint8)
    start = -body.ctypes.data % 64 + 1
    body[start : start + x.nbytes] = np.frombuffer(x.tobytes(), np.uint8)
    view = body[start : start + x.nbytes].view(x.dtype).reshape(x.shape)
    view.flags.writeable = False
    assert not (x.size and view.flags.aligned)
    return view


def fedasync(x: Model, y: Model, alpha: float, s: float, q: float) -> Model:
    """Xie et al. 2019 with the capped client weight."""
    a = min(1.0, alpha * s * q)
    return {n: (1 - a) * x[n] + a * y[n] for n in x}


def mean_delta(deltas: Sequence[Model], s: Sequence[float], q: Sequence[float], divisor: float) -> Model:
    return {n: sum(si * qi * d[n] for si, qi, d in zip(s, q, deltas, strict=True)) / divisor for n in deltas[0]}


def fedbuff(x: Model, deltas: Sequence[Model], s: Sequence[float], q: Sequence[float], rate: float) -> Model:
    """Nguyen et al. 2022."""
    mean = mean_delta(deltas, s, q, len(deltas))
    return {n: x[n] + rate * mean[n] for n in x}


def fedavg(models: Sequence[Model], q: Sequence[float]) -> Model:
    """McMahan et al. 2017."""
    return {n: sum(qi / sum(q) * y[n] for qi, y in zip(q, models, strict=True)) for n in models[0]}


class FedOpt:
    """Reddi et al. 2021 on one array; "sgd" is FedAvgM (Hsu et al. 2019), "amsgrad" Reddi et al. 2018 with tau = ε."""

    def __init__(self, kind: str, eta: float, beta_1: float, beta_2: float = 0.99, tau: float = 1e-3) -> None:
        self.kind, self.eta, self.beta_1, self.beta_2, self.tau = kind, eta, beta_1, beta_2, tau
        self.m: Any = 0.0
        self.v: Any = 0.0 if kind == "amsgrad" else tau**2
        self.v_max: Any = 0.0

    def step(self, x: np.ndarray, delta: np.ndarray) -> np.ndarray:
        if self.kind == "sgd":
            self.m = self.beta_1 * self.m + delta
            return x + self.eta * self.m
        self.m = self.beta_1 * self.m + (1 - self.beta_1) * delta
        square = delta * delta
        if self.kind == "amsgrad":
            self.v = self.beta_2 * self.v + (1 - self.beta_2) * square
            self.v_max = np.maximum(self.v_max, self.v)
            return x + self.eta * self.m / (np.sqrt(self.v_max) + self.tau)
        if self.kind == "adagrad":
            self.v = self.v + square
        elif self.kind == "yogi":
            self.v = self.v - (1 - self.beta_2) * square * np.sign(self.v - square)
        else:
            self.v = self.beta_2 * self.v + (1 - self.beta_2) * square
        return x + self.eta * self.m / (np.sqrt(self.v) + self.tau)


def buffers(story: Sequence[Sent], size: int) -> list[list[Sent]]:
    """The story's full buffers."""
    return [list(story[i : i + size]) for i in range(0, len(story) - size + 1, size)]


def fadas(
    start: Sequence[float], story: Sequence[Sent], size: int, eta: float, tau_c: int | None, betas: tuple[float, float]
) -> list[np.ndarray]:
    """Wang et al. 2024 (FADAS) with the delay-adaptive rate."""
    x, optimizer = np.array(start, float), FedOpt("amsgrad", eta, *betas, tau=1e-8)
    versions = []
    for buffer in buffers(story, size):
        oldest = max(u.tau for u in buffer)
        optimizer.eta = eta if tau_c is None or oldest <= tau_c else min(eta, 1 / oldest)
        x = optimizer.step(x, sum(u.q * np.array(u.delta) for u in buffer) / size)
        versions.append(x)
    return versions


def means_so_far(story: Sequence[Sent], values: Sequence[float]) -> list[float]:
    """Return for each update the mean of its participant's values so far, its own included."""
    return [
        float(np.mean([v for other, v in zip(story[: i + 1], values, strict=False) if other.who == sent.who]))
        for i, sent in enumerate(story)
    ]


def steps(
    start: Sequence[float], story: Sequence[Sent], size: int, rate: float, weights: Sequence[float], divide: bool
) -> list[np.ndarray]:
    """Return x + rate·Σ w·Δ/size buffer by buffer, or over Σ w if `divide`."""
    x, versions = np.array(start, float), []
    for i, buffer in enumerate(buffers(story, size)):
        own = weights[i * size : (i + 1) * size]
        x = x + rate * sum(w * np.array(u.delta) for w, u in zip(own, buffer, strict=True)) / (
            sum(own) if divide else size
        )
        versions.append(x)
    return versions
