"""Participants that lack the codec of their run are told, and their plain updates count beside the coded ones."""

import pytest

from tests.chaos.harness import Federation

pytestmark = pytest.mark.broker

CODEC = """
from dataclasses import dataclass
import numpy as np
from fedmq import Encoded, Part

@dataclass(frozen=True)
class Halves:
    name = "halves"

    def parts(self, places):
        return (Part("half", "float16", places.size, places.size),)

    def encode(self, values, places, seed, warm):
        return Encoded({"half": values.astype(np.float16)})

    def decode(self, parts, places):
        return parts["half"].astype(np.float32)

def build_codec():
    return Halves()
"""
OLD = "import fedmq.participant.service.service as service\nservice.capabilities = lambda own: ()\n"
"""The hello of an older fedmq has no codecs."""
NO_ZSTD = """
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name == "zstandard" else found(name, *more)
"""
NAMES = ("whole", "old", "no-zstd", "no-file")


def patched(folder, name, code):
    """Return the environment of a process that runs this code first."""
    place = folder / f"path-{name}"
    place.mkdir()
    (place / "sitecustomize.py").write_text(code)
    return {"PYTHONPATH": str(place)}


@pytest.fixture
def federation(tmp_path, rabbitmq_node, prefix):
    (tmp_path / "codec.py").write_text(CODEC)
    uplink = f'codec = "custom"\nfile = "{tmp_path}/codec.py"\nlossless = "zstd"'
    one = Federation(tmp_path, rabbitmq_node.url, prefix, uplink=uplink)
    yield one
    one.close()


def test_participants_without_the_codec_are_told_everywhere_and_count_with_plain_updates(federation):
    folder, device = federation.folder, federation.folder / "device"
    device.mkdir()
    for name in ("app.py", "federation.toml"):
        (device / name).write_text((folder / name).read_text().replace(f"{folder}/codec.py", "codec.py"))
    given = ("--config", "federation.toml", "--id", "no-file")
    people = {
        "whole": federation.participant("whole"),
        "old": federation.participant("old", **patched(folder, "old", OLD)),
        "no-zstd": federation.participant("no-zstd", **patched(folder, "no-zstd", NO_ZSTD)),
        "no-file": federation.command("participant", *given, folder=device),
    }
    for one in people.values():
        one.wait_for("event=broker_connected")
    coordinator = federation.coordinator(FEDMQ_RUN__MIN_PARTICIPANTS="4", FEDMQ_RUN__CONCURRENCY="4")
    assert [one.ended() for one in (coordinator, *people.values())] == [0] * 5
    rows = federation.check()
    coded = {row.participant_id for row in rows if federation.witness.updates[row.update_id][0].codec is not None}
    assert coded == {"whole"}
    assert len({row.participant_id for row in rows}) > 1
    for name in NAMES[1:]:
        told = coordinator.wait_for(f"event=codec_not_there participant={name} detail=.*").string
        assert "halves with zstd" in told
    assert "event=codec_not_there participant=whole" not in coordinator.text
    # The device says it too: at its start, and to its doctor.
    assert "There is no codec file" in people["no-file"].wait_for("event=codec_not_there").string
    assert "pip install 'fedmq[zstd]'" in people["no-zstd"].wait_for("event=codec_not_there").string
    assert "codec_not_there" not in people["whole"].text
    doctor = federation.command("doctor", *given, "--role", "participant", folder=device)
    doctor.ended()
    assert "There is no codec file" in " ".join(doctor.text.split())
    status = federation.command("status", "runs/r1")
    assert status.ended() == 0, status.text
    shown = " ".join(status.text.split())
    assert "Asked for plain updates" in shown
    assert "no-file, old: has no halves" in shown
    assert "no-zstd: has no zstd" in shown
