"""Federations with each feature that changes what travels, for the suites that give all of them the same faults.

The rows of the table in docs/guarantees.md have these names.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from fedmq.coordinator.settings import DownlinkSettings, UplinkSettings
from fedmq.coordinator.strategies import AnyStrategy
from fedmq.coordinator.strategies.protocol import Strategy
from tests.chaos import app
from tests.support import distillation_app, torch_app

OWN_CODEC = """
import numpy as np
from fedmq import Encoded, Part


class Half:
    name = "half"

    def parts(self, places):
        return (Part("half", "float16", places.size, places.size),)

    def encode(self, values, places, seed, warm):
        return Encoded({"half": values.astype(np.float16)})

    def decode(self, parts, places):
        return parts["half"].astype(np.float32)


def build_codec():
    return Half()
"""
"""A codec of the user's own."""
FEDBUFF = """name = "fedbuff"
buffer_size = 3
staleness = {name = "polynomial", a = 0.5}
"""
DISTILLATION = """name = "distillation"
buffer_size = 3
mixing = 0.8
temperature = 0.7
"""
HIDDEN, BF16 = 'codec = "hidden"', 'codec = "bf16"'
SMALL, LARGE = 2_000, 200_000
"""Values of the plain app's model. An update of the large one takes 80 kB or more in each of the codecs."""
COLUMNS = 20


@dataclass(frozen=True)
class Feature:
    """One row of the table: tables of a federation file, as TOML, and an app."""

    uplink: str = ""
    downlink: str = ""
    frozen: int = 0
    """Values of a frozen tensor."""
    strategy: str = FEDBUFF
    training: str = ""
    app: str = ""
    """Text of another app than the chaos tests' own, and what to put into it for a model that travels in chunks."""
    small: str = ""
    large: str = ""

    def app_text(self, *, large: bool) -> str:
        """Return the app. A large model takes more than 64 KiB in each direction."""
        if self.app:
            assert self.small in self.app
            return self.app.replace(self.small, self.large) if large else self.app
        return plain_app(LARGE if large else SMALL, columns=COLUMNS, frozen=self.frozen)

    @property
    def tables(self) -> str:
        """The tables [downlink] and [training] of the federation file."""
        return f"[downlink]\n{self.downlink}\n[training]\n{self.training}\n"

    @property
    def built_strategy(self) -> Strategy[Any]:
        return TypeAdapter(AnyStrategy).validate_python(tomllib.loads(self.strategy))  # type: ignore[no-any-return]

    def uplink_settings(self, folder: Path) -> UplinkSettings:
        """Return the table [uplink]. Write the codec of the user's own into the folder if it names one."""
        table = tomllib.loads(self.uplink)
        if "file" in table:
            path = folder / table["file"]
            path.write_text(OWN_CODEC)
            table["file"] = str(path)
        return UplinkSettings.model_validate(table)

    @property
    def downlink_settings(self) -> DownlinkSettings:
        return DownlinkSettings.model_validate(tomllib.loads(self.downlink))


def plain_app(size: int, *, columns: int = 0, frozen: int = 0, pause_s: float = 0.0) -> str:
    """Return the text of the chaos tests' app with other constants."""
    text = Path(app.__file__).read_text()
    values = {f"SIZE = {app.SIZE}": size, "PAUSE_S = 0.0": pause_s, "COLUMNS = 0": columns, "FROZEN = 0": frozen}
    for line, value in values.items():
        assert f"\n{line}\n" in text
        text = text.replace(f"\n{line}\n", f"\n{line.partition(' ')[0]} = {value}\n")
    return text


FEATURES = {
    "plain": Feature(),
    "uplink bf16": Feature('codec = "bf16"'),
    "uplink int8": Feature('codec = "int8"'),
    "uplink int4": Feature('codec = "int4"'),
    "uplink topk": Feature('codec = "topk"\nfraction = 0.1'),
    "uplink powersgd": Feature('codec = "powersgd"\nrank = 2'),
    "uplink custom": Feature('codec = "custom"\nfile = "codec.py"'),
    "uplink zstd": Feature('codec = "int8"\nerror_feedback = true\nlossless = "zstd"'),
    "downlink bf16": Feature(downlink=BF16),
    "downlink hidden": Feature(downlink=HIDDEN),
    "frozen tensors": Feature(frozen=30_000),
    "distillation": Feature(
        strategy=DISTILLATION, app=distillation_app.APP, small="examples(40, 0)", large="examples(9000, 0)"
    ),
    "TorchTrainer": Feature(
        training="batch_size = 16\nlearning_rate = 0.2", app=torch_app.APP, small="(4, 8), torch.nn.BatchNorm1d(8)",
        large="(4, 8), torch.nn.Linear(8, 9000), torch.nn.Linear(9000, 8), torch.nn.BatchNorm1d(8)",
    ),
    "all at once": Feature(
        'codec = "topk"\nfraction = 0.2\nvalues = "int8"\nlossless = "zstd"', f"{HIDDEN}\nstep_every = 2", 30_000
    ),
}  # fmt: skip
"""Name of the row -> feature. The trainer's process of its own is in every run by the command line."""
