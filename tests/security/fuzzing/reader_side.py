"""Episodes of the decoding alone: coded bodies to the functions that read an update, by the million in minutes.

What an episode shows
1. An update is read, or a PeerError says why not. Nothing else is raised.
2. What is read has the model's tensors, finite and within the limit of an update.
3. No message takes memory beyond a few times its model and its own size (watch.py).

Each episode has a codec and a model. The coordinator's episodes have all that is around the decoding.
"""

from __future__ import annotations

import random
from pathlib import Path

from fedmq.coordinator.service.incoming.update_reader import Wires, decoded
from fedmq.schemas.codec import Limits, open_envelope
from fedmq.schemas.codecs.names import BUILT_IN
from fedmq.schemas.errors import PeerError
from fedmq.schemas.messages import Update, update_id
from fedmq.schemas.methods import update_spec
from fedmq.schemas.parameters import Parameters
from fedmq.schemas.tensors import check_magnitudes, spec_of
from tests.security.fuzzing.coded import UPLINKS, CodedNoise, uplink_of
from tests.security.fuzzing.corpus import mixed_model, model
from tests.security.fuzzing.mutations import Mutator
from tests.security.fuzzing.plan import Plan
from tests.security.fuzzing.watch import Figures, LogCheck, Watch

SIZES = (40, 2000, 12_000)
"""Values of the models' kernels."""
LIMITS = Limits(max_body_bytes=2**22, max_header_bytes=2**16, max_tensors=80)


class ReaderEpisode:
    """One episode. `run` returns the figures, and raises Failed."""

    def __init__(self, plan: Plan, log: LogCheck) -> None:
        self._plan = plan
        self._rng = random.Random(f"{plan.seed}/{plan.episode}/reader")
        self._mutator = Mutator(self._rng)
        turn = plan.episode // len(UPLINKS)
        uplink = uplink_of(plan.episode)
        self._model = (mixed_model if turn % 2 else model)(SIZES[turn % len(SIZES)])
        self._reply = "delta" if turn % 3 or uplink.codec.name not in ("bf16", "int8", "int4") else "scaffold"
        self._spec = update_spec(self._reply, spec_of(self._model))  # type: ignore[arg-type]
        self._wires = Wires(uplink, lambda _version: self._spec)
        self._noise = CodedNoise(self._rng, self._model, uplink, self._reply)  # type: ignore[arg-type]
        self.watch = Watch(self._read, plan.limit_s, log, large_bytes=2**40)  # a second look costs as much as the first

    def run(self) -> Figures:
        """Read as many bodies as the plan says."""
        task = "abcdef01-1"
        update = Update(
            update_id=update_id("r1", task, "m0"), task_id=task, run_id="r1", participant_id="m0", base_version=0,
            payload=self._reply, num_examples=10, num_steps=1, train_s=0.001,
        )  # fmt: skip
        for _, _, body in self._plan.only or ():
            self._send(body, "repeated")
        for _ in range(0 if self._plan.only else self._plan.messages):
            body = self._noise.bad(update)
            names = self._noise.names
            if self._rng.random() < 0.1:
                body = self._mutator.of_bytes(body)
                names = [*names, *self._mutator.names[-1:]]
            self._send(body, "+".join(names))
        return self.watch.figures

    def _send(self, body: bytes, names: str) -> None:
        self.watch.figures.coded += 1
        self.watch.send("reader", b"", body, names)
        while self.watch.busy():
            pass

    def _read(self, _queue: str, _properties: bytes, body: bytes) -> None:
        outcomes = self.watch.figures.outcomes
        try:
            envelope = open_envelope(body, LIMITS)
            if not isinstance(envelope.message, Update):
                return
            found = decoded(envelope.message, envelope.parameters(check_finite=False), self._wires)
            outcome = "plain" if envelope.message.codec is None else "decoded"
        except PeerError as error:
            if "raised" in str(error) and self._wires.name in BUILT_IN:  # only a user's own codec may
                raise self.watch.failure(str(error)) from error
            found, outcome = None, error.reason
        except BaseException as error:
            raise self.watch.failure(f"it raised {type(error).__name__}: {error}") from error
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
        if found is not None:
            self._look(found, outcome)

    def _look(self, found: Parameters, outcome: str) -> None:
        try:
            check_magnitudes(found)
        except PeerError as error:
            raise self.watch.failure(f"it was read, and {error}") from None
        if outcome == "decoded" and [(s.name, s.dtype, s.shape) for s in spec_of(found)] != [
            (s.name, s.dtype, s.shape) for s in self._spec
        ]:
            raise self.watch.failure("it was decoded to other tensors than the model's")


def run(plan: Plan, _folder: Path, log: LogCheck) -> Figures:
    """Run an episode. Raises Failed."""
    return ReaderEpisode(plan, log).run()
