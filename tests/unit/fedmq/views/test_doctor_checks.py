"""The doctor's single checks that need neither an app nor a broker."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import signal
from types import SimpleNamespace

import numpy as np
import pytest

from fedmq.config.file import load_config
from fedmq.coordinator.settings import RunSettings, StopSettings
from fedmq.coordinator.strategies import FedAsync, FedAvg, FedBuff, FedCompass
from fedmq.coordinator.strategies.area import Area
from fedmq.coordinator.strategies.ca2fl import Ca2fl
from fedmq.coordinator.strategies.fadas import Fadas
from fedmq.coordinator.strategies.fednova import FedNova
from fedmq.coordinator.strategies.fedstaleweight import FedStaleWeight
from fedmq.coordinator.strategies.participation import ParticipationCorrection
from fedmq.coordinator.strategies.port import Port
from fedmq.coordinator.strategies.scaffold import Scaffold
from fedmq.participant.training.methods import replies_of
from fedmq.participant.training.task_work import do_task
from fedmq.schemas.errors import FedmqError
from fedmq.schemas.messages import TrainingConfig
from fedmq.schemas.parameters import Parameters
from fedmq.views.checks import codecs, folders, run_settings
from fedmq.views.checks.time_limit import TookTooLong, limited
from fedmq.views.checks.update_trial import UpdateTrial
from fedmq.views.doctor import _files
from tests.unit.schemas.samples import UPDATE

STRATEGIES = [
    FedAsync(), FedBuff(buffer_size=1000), FedAvg(cohort_size=7), FedNova(cohort_size=3), Fadas(), FedStaleWeight(),
    ParticipationCorrection(), Port(), Ca2fl(num_participants=5), Area(num_participants=5),
    Area(num_participants=5, memory="participant"), Scaffold(num_participants=5, cohort_size=3),
    Scaffold(num_participants=5, buffer_size=3), FedCompass(num_participants=5),
]  # fmt: skip


class Trainer:
    num_examples = 10

    def train(self, parameters, config, correction=None):
        after = {name: array + 1 for name, array in parameters.items()}
        return SimpleNamespace(parameters=after, num_examples=10, num_steps=1, metrics={})


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda strategy: strategy.name)
def test_every_strategy_takes_the_one_update_of_the_trial(strategy):
    run = RunSettings(run_id="r", min_participants=4, stop=StopSettings(max_updates=1))
    initial = Parameters({"w": np.zeros(3, np.float32), "n": np.array(7)}, {"n"})
    trial = UpdateTrial(run, strategy, TrainingConfig(learning_rate=0.1), initial)
    task, tensors = trial.task("sensor-1", 10, replies_of(Trainer()))
    done = do_task(Trainer(), task, tensors, lambda: 0.0)
    trial.take(done.update, done.payload)
    assert initial["w"].tolist() == [0, 0, 0]


FILE = """
import numpy as np
from fedmq import Encoded, Part

class Halves:
    name = "halves"

    def parts(self, places):
        return (Part("half", "float16", places.size, places.size),)

    def encode(self, values, places, seed, warm):
        return Encoded({"half": values.astype(np.float16)})

    def decode(self, parts, places):
        return 1 / 0 if FAILS else parts["half"].astype(np.float32)

def build_codec(fails):
    global FAILS
    FAILS = fails
    return Halves()
"""


OWN = 'codec = "custom"\nfile = "own.py"\noptions = { fails = false }'


def coded(tmp_path, text, file=FILE):
    if file is not None:
        (tmp_path / "own.py").write_text(file)
    return config(tmp_path, f'[strategy]\nname = "fedbuff"\n[uplink]\n{text}\n')


def test_a_codec_that_is_here_is_named_and_one_that_is_not_is_wrong_for_the_coordinator_alone(tmp_path, monkeypatch):
    assert list(codecs.look(coded(tmp_path, 'codec = "none"'), None)) == []
    (here,) = codecs.look(coded(tmp_path, 'codec = "topk"'), "participant")
    assert (here.level, here.what) == ("ok", "codec: topk")
    (here,) = codecs.look(coded(tmp_path, OWN), "coordinator")
    assert here.what.startswith("codec: halves from ")
    (tmp_path / "own.py").unlink()
    for role, level in (("participant", "warning"), ("coordinator", "wrong"), (None, "wrong")):
        (gone,) = codecs.look(coded(tmp_path, OWN, file=None), role)
        assert gone.level == level
        assert "There is no codec file" in gone.what
    monkeypatch.setattr("fedmq.schemas.local.extras.find_spec", lambda _name: None)
    (gone,) = codecs.look(coded(tmp_path, 'codec = "int8"\nlossless = "zstd"'), "participant")
    assert gone.level == "warning"
    assert "pip install 'fedmq[zstd]'" in gone.what


def test_an_update_goes_through_the_codec_and_back(tmp_path):
    model = Parameters({"w": np.ones(100_000, np.float32)})
    update = UPDATE
    told = codecs.trial(coded(tmp_path, 'codec = "int8"'), "delta", model, update, model)
    assert "3.9 times less" in told
    assert codecs.trial(coded(tmp_path, 'codec = "none"'), "delta", model, update, model) is None
    fails = coded(tmp_path, 'codec = "custom"\nfile = "own.py"\noptions = { fails = true }')
    with pytest.raises(FedmqError, match=r"'halves': decode\(\) raised: own.py:15: .*ZeroDivisionError"):
        codecs.trial(fails, "delta", model, update, model)


def test_a_codec_that_draws_by_itself_is_told_before_the_run(tmp_path):
    drawn = "values = values + np.random.default_rng().random(places.size)\n        return Encoded"
    text = FILE.replace("return Encoded", drawn).replace("1 / 0 if FAILS else ", "")
    model = Parameters({"w": np.ones(9, np.float32)})
    with pytest.raises(FedmqError, match=r"'halves': encode\(\) makes something else of the same update"):
        codecs.trial(coded(tmp_path, OWN, text), "delta", model, UPDATE, model)


def test_a_codec_that_decodes_to_something_else_each_time_is_told_before_the_run(tmp_path):
    text = FILE.replace("1 / 0 if FAILS else ", "np.float32(np.random.default_rng().random()) * ")
    model = Parameters({"w": np.ones(9, np.float32)})
    with pytest.raises(FedmqError, match=r"'halves': decode\(\) makes something else of the same parts"):
        codecs.trial(coded(tmp_path, OWN, text), "delta", model, UPDATE, model)


def config(tmp_path, text):
    (tmp_path / "f.toml").write_text('[run]\nrun_id = "r"\nstop = { max_updates = 9 }\n' + text)
    return load_config(tmp_path / "f.toml", environ={})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            'concurrency = 2\n[strategy]\nname = "fedcompass"\nnum_participants = 5',
            "run.concurrency: got 2, expected 5",
        ),
        (
            'min_participants = 6\n[training]\nlearning_rate = 1\n[strategy]\nname = "area"\nnum_participants = 5\n'
            "buffer_size = 2",
            "run.min_participants: got 6, expected 5 or less",
        ),
        (
            'max_participants = 4\n[strategy]\nname = "area"\nnum_participants = 5\nbuffer_size = 2',
            "run.max_participants: got 4, expected 5 or more",
        ),
        (
            'max_participants = 4\n[strategy]\nname = "fedavg"\ncohort_size = 8\nmin_updates = 6',
            "run.max_participants: got 4, expected 8 or more",
        ),
        ('[strategy]\nname = "fedbuff"\nbuffer_size = 10', "strategy.buffer_size: got 10, and the run ends after"),
        (
            '[strategy]\nname = "fedasync"\n[participant]\nhello_interval_s = 60',
            "participant.hello_interval_s: got 60, expected less than run.participant_timeout_s = 60",
        ),
    ],
)
def test_settings_with_which_a_run_stands_still_are_told(tmp_path, text, said):
    found = config(tmp_path, text)
    (wrong,) = [one.what for one in run_settings.look(found, found.strategy) if one.level == "wrong"]
    assert wrong.startswith(said)


def test_a_disk_without_room_is_told_with_what_the_first_minutes_need(tmp_path, monkeypatch):
    one = folders.places(config(tmp_path, '[strategy]\nname = "fedasync"'), "a", "participant")[0]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=8192))
    (wrong,) = folders.room(one, 1024**2)
    assert wrong.level == "wrong"
    assert "8 KiB free for participant.spool_dir" in wrong.what
    assert "need 5 MiB" in wrong.what
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=6 * 1024**2))
    assert [one.level for one in folders.room(one, 1024**2)] == ["warning"]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=26 * 1024**2))
    assert not list(folders.room(one, 1024**2))


def test_a_link_in_the_place_of_a_folder_of_ours_is_told_and_one_to_the_setting_is_not(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "spool").symlink_to("elsewhere")
    one = folders.places(config(tmp_path, '[strategy]\nname = "fedasync"'), "a", "participant")[0]
    assert folders.writable(one).level == "ok"
    (tmp_path / "elsewhere" / "a").symlink_to(tmp_path)
    assert folders.writable(one).level == "wrong"


def test_a_limit_ends_a_loop_and_gives_the_timer_back():
    before = signal.getsignal(signal.SIGALRM)
    with pytest.raises(TookTooLong):
        _stubborn()
    assert signal.getsignal(signal.SIGALRM) is before


def _stubborn():
    with limited(0.05):
        while True:
            with contextlib.suppress(Exception):
                signal.getsignal(signal.SIGALRM)


@pytest.mark.parametrize("content", [b"ours", b"theirs", None])
def test_the_files_of_the_app_are_compared_before_the_run(tmp_path, content):
    digest = hashlib.sha256(b"ours").hexdigest()
    (tmp_path / "f.toml").write_text(
        f'files = {{ "data.bin" = "{digest}" }}\n[run]\nrun_id = "r"\nstop = {{ max_updates = 9 }}\n'
        '[strategy]\nname = "fedbuff"\n'
    )
    if content is not None:
        (tmp_path / "data.bin").write_bytes(content)
    (found,) = _files(load_config(tmp_path / "f.toml", environ={}))
    assert found.level == ("ok" if content == b"ours" else "wrong")
    said = {b"ours": "1 with the digests", b"theirs": "is not the federation's file", None: "cannot be read"}
    assert said[content] in found.what
    assert list(_files(config(tmp_path, '[strategy]\nname = "fedbuff"\n'))) == []
