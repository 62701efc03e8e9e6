"""The codec of a user's own in docs/guide.md is run as it stands there, with the table that names it."""

import re
import tomllib
from pathlib import Path

import numpy as np

from fedmq.coordinator.settings import UplinkSettings
from fedmq.coordinator.uplink import uplink_codec
from fedmq.schemas.parameters import Parameters
from fedmq.schemas.tensors import spec_of

GUIDE = (Path(__file__).parents[3] / "docs" / "guide.md").read_text()


def samples(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)


def test_the_guides_codec_is_what_its_table_names_and_does_what_it_says(tmp_path):
    (sample,) = [block for block in samples("python") if "build_codec" in block]
    (table,) = [
        t for block in samples("toml") if (t := tomllib.loads(block).get("uplink", {})).get("codec") == "custom"
    ]
    (tmp_path / table["file"]).write_text(sample)
    codec = uplink_codec(UplinkSettings(**table | {"file": str(tmp_path / table["file"])}), "delta")
    assert (codec.codec.name, codec.order.error_feedback) == ("signs", True)
    model = Parameters({"w": np.float32([[1, -3], [0, 4]]), "b": np.float32([-2])})
    wire = codec.wire(spec_of(model))
    sent = wire.encode(model, 3, None, {})
    received = wire.decode(sent.tensors)
    assert received["w"].tolist() == [[2, -2], [0, 2]]
    assert received["b"].tolist() == [-2]
    assert sent.residual.tolist() == [-1, -1, 0, 2, 0]
