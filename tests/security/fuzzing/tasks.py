"""Bad tasks whose model travels in a codec, or with a frozen part: what a hostile coordinator can send a device.

`TaskNoise` plays the coordinator of the noise's runs: it has a hidden state of its own, and goes on from it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np

from fedmq.coordinator.decisions.task_models import HiddenModel
from fedmq.schemas.codec import encode
from fedmq.schemas.codecs.hidden import GROUP
from fedmq.schemas.codecs.known import capabilities
from fedmq.schemas.codecs.names import BUILT_IN
from fedmq.schemas.codecs.rounded import narrow, wide
from fedmq.schemas.frozen import split_off, with_beside
from fedmq.schemas.messages import Downlink, Task, Uplink
from fedmq.schemas.parameters import Parameters
from fedmq.schemas.signing import tensors_digest
from tests.security.fuzzing.mutations import Sample, envelope
from tests.security.fuzzing.parts import PartNoise, Parts

STEPS = (
    Uplink(codec="int8", rounding="nearest"),
    Uplink(codec="int4", rounding="nearest"),
    Uplink(codec="topk", fraction=0.3),
    Uplink(codec="topk", fraction=0.3, values="int8"),
)
NO_DIGEST = "0" * 64
NAMES = ("frozen:0:w", "frozen:00:w", "frozen:999999999:w", "frozen:-1:w", "frozen::", "frozen:0:../../w", "step:1:q")
"""Names that tensors beside a task might have."""


class TaskNoise:
    """Makes bodies of tasks. `names` has what was done to the last one, for a report."""

    def __init__(self, rng: random.Random, model: Parameters) -> None:
        self._rng = rng
        self._model = model
        self._noise = PartNoise(rng, f"{GROUP}:")
        self.names: list[str] = []
        self._begin()
        self._of_words: list[Callable[[dict[str, Any]], None]] = [self.downlink_word, self.downlink_word, self.uplink]

    def _begin(self) -> None:
        self._hidden = HiddenModel(self._rng.choice(STEPS), self._model)
        self._version = 0

    def body(self, task: Task) -> bytes:
        """Return the body of a task, good or bad."""
        rng = self._rng
        made = rng.choice([self.rounded, self.whole, self.steps, self.steps, self.steps, self.frozen])
        self.names = [made.__name__]
        words, tensors = made()
        if rng.random() < 0.2:
            words["former"] = tuple(rng.choice(["noise", "honest", "a..", "x" * 64, task.run_id]) for _ in range(3))
        parts: Parts = {name: np.array(array) for name, array in tensors.items()}
        if rng.random() < 0.5 and parts:
            self.names += self._noise.spoil(parts)
        plain = Parameters(parts, tensors.non_trainable & parts.keys())
        sample = Sample.of(encode(task.model_copy(update=words), plain))
        for _ in range(rng.choice([0, 0, 0, 1, 2])):
            change = rng.choice(self._of_words)
            self.names.append(change.__name__)
            change(sample.head)
        return envelope(sample.head, sample.blob)

    # Tasks as they should be, and with another digest

    def _digest(self, tensors: Parameters) -> str:
        return tensors_digest(tensors).hex() if self._rng.random() < 0.9 else NO_DIGEST

    def rounded(self) -> tuple[dict[str, Any], Parameters]:
        """The model in bfloat16."""
        tensors = narrow(self._model)
        return {"downlink": Downlink(codec="bf16", digest=self._digest(wide(tensors)))}, tensors

    def whole(self) -> tuple[dict[str, Any], Parameters]:
        """A whole hidden state, of a new time or of this one."""
        if self._rng.random() < 0.3:
            self._begin()
        order = self._hidden.order(capabilities(), None)
        return {"downlink": order, "base_version": self._version}, self._hidden.tensors(order)

    def steps(self) -> tuple[dict[str, Any], Parameters]:
        """Steps from an earlier hidden state, which the participant may have."""
        rng = self._rng
        for _ in range(rng.choice([0, 1, 1, 1, 2, 5])):
            values = np.random.default_rng(rng.randrange(2**32))
            size = rng.choice([0.0, 0.01, 1.0, 1e30])
            moved = {n: (a + values.normal(0, size, a.shape)).astype(a.dtype) for n, a in self._hidden.base.items()}
            self._hidden.advance(Parameters(moved))
            self._version += 1
        order = self._hidden.order(capabilities(), max(0, self._version - rng.choice([0, 1, 1, 2, 5])))
        assert order is not None
        return {"downlink": order, "base_version": self._version}, self._hidden.tensors(order)

    def frozen(self) -> tuple[dict[str, Any], Parameters]:
        """A frozen part that is beside the task, or that the participant is said to have."""
        rng = self._rng
        moving, part = split_off(self._model, ["001/bias"])
        assert part is not None
        words = {"frozen": part.digest if rng.random() < 0.8 else NO_DIGEST}
        if rng.random() < 0.3:
            return words, moving
        beside = with_beside(moving, part)
        if rng.random() < 0.3:
            beside = Parameters({**beside, rng.choice(NAMES): np.zeros(rng.choice([0, 4]), np.float32)})
        return words, beside

    # Words

    def downlink_word(self, head: dict[str, Any]) -> None:
        """Claim another form, another version to begin from, or another codec of the steps."""
        rng, word = self._rng, head["body"].get("downlink")
        if not isinstance(word, dict):
            head["body"]["downlink"] = {"codec": "hidden", "digest": NO_DIGEST, "held": 0}
            return
        name = rng.choice(["codec", "digest", "held", "step", "step", "version"])
        match name:
            case "step":
                step = {"codec": rng.choice([*BUILT_IN, "own", "none"]), "fraction": rng.choice([1e-300, 0.3, 1.0])}
                word["step"] = rng.choice([None, step, {**step, "values": "bf16", "rank": 256}])
            case "version":
                head["body"]["base_version"] = rng.choice([0, 1, self._version + 1, 2**53])
            case "held":
                word["held"] = rng.choice([None, 0, self._version, self._version + 1, 2**53, -1])
            case _:
                word[name] = rng.choice(["bf16", "hidden", NO_DIGEST, "", "../x"])

    def uplink(self, head: dict[str, Any]) -> None:
        """Ask for an update in any codec, with any settings."""
        rng = self._rng
        head["body"]["uplink"] = {
            "codec": rng.choice([*BUILT_IN, "own", "none"]), "error_feedback": rng.random() < 0.5,
            "rounding": rng.choice(["stochastic", "nearest"]), "lossless": rng.choice(["none", "zstd"]),
            "fraction": rng.choice([1e-300, 5e-324, 0.01, 1.0, 1.5]), "values": rng.choice(["float32", "bf16", "int8"]),
            "rank": rng.choice([1, 2, 256, 257]),
        }  # fmt: skip
        head["body"]["reply"] = rng.choice(["delta", "delta", "parameters", "change", "scaffold"])
