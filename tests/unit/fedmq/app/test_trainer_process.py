"""The participant's trainer in a process of its own, with a trainer that needs no Keras."""

import logging
import os
import signal
import threading

import numpy as np
import psutil
import pytest

from fedmq.app import trainer_process, worker_life
from fedmq.app.app import load_app, trainer_of
from fedmq.app.trainer_process import TrainerProcess
from fedmq.participant.trainer import keeps
from fedmq.participant.training.methods import replies_of
from fedmq.participant.training.task_work import TaskFailed, do_task
from fedmq.schemas.errors import AppError, TrainerError
from fedmq.schemas.messages import Task, TrainingConfig
from fedmq.schemas.methods import CONTROL, join
from fedmq.schemas.parameters import Parameters
from tests.support import distillation_app

DEADLINE_S = 60

APP = """
import os, signal, subprocess, sys, threading
from pathlib import Path
import numpy as np
from fedmq.schemas.errors import AppError

class Odd:
    num_examples = 5

    def __init__(self):
        self.stop = threading.Event()

    def train(self, parameters, config, correction=None):
        do = config.extra.get("do")
        if do == "print":
            print("said by the trainer")
        if do == "app error":
            raise AppError("another model")
        if do == "error":
            raise ValueError("no such batch")
        if do == "leave":
            sys.exit(4)
        if do == "os._exit":
            os._exit(3)
        if do == "orphan":
            pid = os.fork()  # it holds the socket too
            if not pid:
                threading.Event().wait()
            with open("begun", "w") as begun:
                begun.write(str(pid))
            os._exit(3)
        if do == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if do == "wait":
            self.stop.clear()
            with open("begun", "w"):
                pass
            self.stop.wait()
            raise RuntimeError("stopped")
        if do == "hang":
            subprocess.Popen(["sleep", "1000"])
            with open("begun", "w"):
                pass
            threading.Event().wait()
        noise = np.random.default_rng(config.seed).normal(size=3).astype("float32")
        added = 0 if correction is None else correction["w"]
        class Result:
            num_examples, num_steps, metrics = 5, np.int64(2), {"loss": np.float32(0.1), "bad": float("nan")}
        Result.parameters = {"w": parameters["w"] + noise + added, "n": parameters["n"]}
        return Result

    def evaluate(self, parameters):
        raise NotImplementedError("no test data here")

    def cancel(self):
        self.stop.set()

def build_trainer(participant_id):
    if os.path.exists("broken"):
        raise OSError("the data are gone")
    return Odd()

def conditions(participant_id):
    return {"at-rest": True, "at-work": False}[participant_id]
"""
BASE = Parameters({"w": np.array([1, 2, 3], "float32"), "n": np.int64(7)})


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "app.py").write_text(APP)
    os.mkfifo(tmp_path / "begun")
    return tmp_path


@pytest.fixture
def process(folder):
    """Return process(keep_s=...), which makes a TrainerProcess."""
    made = []

    def make(participant_id="at-rest", keep_s=float("inf")):
        made.append(TrainerProcess(folder / "app.py", participant_id, keep_s))
        return made[-1]

    yield make
    for one in made:
        one.close()
        assert one._life is None or one._life._gone.wait(DEADLINE_S)


def config(do=None, seed=1):
    return TrainingConfig(seed=seed, extra={} if do is None else {"do": do})


def task(reply="delta", **fields):
    return Task(
        task_id="t", run_id="r", participant_id="p", base_version=0, reply=reply, lease_s=1.0,
        training=config() if reply != "scaffold" else TrainingConfig(seed=1, learning_rate=0.5), **fields,
    )  # fmt: skip


def in_thread(work):
    """Run work() in a thread, and return a function that waits for the error that it raises."""
    errors = []

    def run():
        try:
            work()
        except Exception as error:  # noqa: BLE001
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()

    def error():
        thread.join(DEADLINE_S)
        assert not thread.is_alive()
        return errors[0] if errors else None

    return error


def begun(folder):
    """Wait until a training says that it has begun, and return what else it says."""
    return (folder / "begun").read_text()


def test_a_task_gives_the_bits_that_it_gives_in_this_process(folder, process, capfd):
    stand_in, here = process().open(), trainer_of(load_app(folder / "app.py"), "at-rest")
    assert type(stand_in).__name__ == "Odd"
    assert (stand_in.num_examples, replies_of(stand_in)) == (5, replies_of(here))
    scaffold = join(BASE, {CONTROL: Parameters({"w": np.array([0.5, 0, -0.5], "float32")})})
    for one, tensors in ((task(), BASE), (task("scaffold"), scaffold)):
        there_, here_ = (do_task(trainer, one, tensors, lambda: 0.0) for trainer in (stand_in, here))
        assert {n: a.tobytes() for n, a in there_.payload.items()} == {n: a.tobytes() for n, a in here_.payload.items()}
        assert there_.payload.non_trainable == here_.payload.non_trainable
        assert there_.update.model_copy(update={"next_memory": None}) == here_.update.model_copy(
            update={"next_memory": None}
        )
    stand_in.train(BASE, config("print"))
    assert "said by the trainer" in capfd.readouterr().out
    with pytest.raises(TaskFailed, match="no test data here") as failed:
        do_task(stand_in, task(work="evaluate"), BASE, lambda: 0.0)
    assert failed.value.reason == "unsupported"


def test_a_trainer_keeps_its_model_in_the_participants_folder_when_its_process_leaves(folder, process, tmp_path):
    app = load_app(distillation_app.write(folder))
    start = Parameters({n: np.asarray(a) for n, a in app.get("initial_parameters")().items()}, {"public_data"})
    here = trainer_of(app, "sensor-1")
    there = process("sensor-1", keep_s=0).open()  # it leaves after each request
    assert keeps(there)
    (tmp_path / "own").mkdir()
    for seed in (1, 2):
        one = task("parameters").model_copy(update={"training": config(seed=seed)})
        done = [do_task(trainer, one, start, lambda: 0.0, own_folder=tmp_path / "own") for trainer in (there, here)]
        assert len({d.payload["predictions"].tobytes() for d in done}) == 1
    assert do_task(there, task(work="evaluate"), start, lambda: 0.0, own_folder=tmp_path / "own").update.metrics


def test_what_a_trainer_raises_is_raised_here_and_costs_no_process(process, caplog):
    one = process()
    stand_in = one.open()
    life = one._life
    with pytest.raises(AppError, match=r"^another model$"):
        stand_in.train(BASE, config("app error"))
    with pytest.raises(TrainerError, match=r"^SystemExit: 4$"):
        stand_in.train(BASE, config("leave"))
    wrong = task().model_copy(update={"training": config("error")})
    with pytest.raises(TaskFailed, match=r"^ValueError: no such batch$"):
        do_task(stand_in, wrong, BASE, lambda: 0.0)
    assert 'raise ValueError("no such batch")' in caplog.text, "the traceback in the log is that of the app"
    assert one._life is life


@pytest.mark.parametrize(("do", "how"), [("os._exit", "ended with exit status 3"), ("crash", "was killed by SIGSEGV")])
def test_a_process_that_dies_costs_its_task_alone(process, caplog, do, how):
    one = process()
    stand_in = one.open()
    dead = one._life.pid
    with pytest.raises(TrainerError, match=f"the trainer did not return: its process {how}"):
        stand_in.train(BASE, config(do))
    assert f"event=trainer_process_ended participant=at-rest pid={dead}" in caplog.text
    assert stand_in.train(BASE, config()).num_steps == 2
    assert one._life.pid != dead


def test_what_a_process_that_dies_has_forked_dies_too(folder, process):
    stand_in = process().open()
    error = in_thread(lambda: stand_in.train(BASE, config("orphan")))
    forked = psutil.Process(int(begun(folder)))
    assert "ended with exit status 3" in str(error())
    assert psutil.wait_procs([forked], DEADLINE_S)[1] == []


def test_a_training_that_heeds_a_cancel_keeps_its_process(folder, process):
    one = process()
    stand_in = one.open()
    life = one._life
    error = in_thread(lambda: stand_in.train(BASE, config("wait")))
    begun(folder)
    stand_in.cancel()
    assert str(error()) == "RuntimeError: stopped"
    assert stand_in.train(BASE, config()).num_steps == 2
    assert one._life is life


def test_a_training_that_does_not_heed_a_cancel_is_killed_with_all_that_it_started(folder, process, monkeypatch):
    monkeypatch.setattr(trainer_process, "CANCEL_S", 0.1)
    one = process()
    stand_in = one.open()
    error = in_thread(lambda: stand_in.train(BASE, config("hang")))
    begun(folder)
    found = psutil.Process(one._life.pid).children()
    assert [child.name() for child in found] == ["sleep"]
    stand_in.cancel()
    assert str(error()) == "the training was cancelled: its process was ended"
    assert psutil.wait_procs(found, DEADLINE_S)[1] == []
    assert stand_in.train(BASE, config()).num_steps == 2


@pytest.fixture
def stopped(process):
    """Return a process that was stopped before it has read all of a training's model, and the training's outcome."""
    one = process()
    one.open()
    os.kill(one.pid, signal.SIGSTOP)
    large = Parameters({"w": np.zeros(4_000_000, np.float32), "n": np.int64(7)})
    outcome = in_thread(lambda: one.train(large, config(), None))
    begun_to_send = threading.Event()
    while not one._life._channel._sending.locked():
        begun_to_send.wait(0.001)
    return one, outcome


def test_a_process_that_reads_nothing_keeps_nobody_who_cancels(stopped, monkeypatch):
    monkeypatch.setattr(trainer_process, "CANCEL_S", 0.05)
    one, outcome = stopped
    returned = in_thread(one.cancel)
    assert returned() is None
    assert "was cancelled" in str(outcome())


def test_a_process_that_reads_nothing_keeps_nobody_who_asks_for_conditions(stopped, monkeypatch):
    monkeypatch.setattr(trainer_process, "CONDITIONS_S", 0.05)
    one, outcome = stopped
    assert "gave no answer in 0.05 s" in str(in_thread(one.conditions)())
    assert "did not return" in str(outcome())


@pytest.mark.parametrize("answer", ["[]", "{}"])
def test_an_answer_to_nobodys_question_ends_the_process_and_not_the_reader(folder, process, answer):
    written = f'{{"answer": {answer}, "tensors": {{}}}}'
    code = (
        "\nimport socket, sys\n"
        f"def conditions(participant_id):\n    frame = {written.encode()!r}\n"
        "    end = socket.socket(fileno=os.dup(int(sys.argv[3])))\n"
        "    end.sendall(len(frame).to_bytes(4, 'big') + frame)\n    threading.Event().wait()\n"
    )
    (folder / "app.py").write_text(APP + code)
    one = process()
    one.open()
    assert "could not be asked" in str(in_thread(one.conditions)())


def test_a_participant_that_leaves_in_mid_training_leaves_no_process(folder, process):
    one = process()
    stand_in = one.open()
    error = in_thread(lambda: stand_in.train(BASE, config("hang")))
    begun(folder)
    found = psutil.Process().children(recursive=True)
    one.close()
    assert "its process was ended" in str(error())
    assert psutil.wait_procs(found, DEADLINE_S)[1] == []
    with pytest.raises(TrainerError, match="the participant leaves"):
        stand_in.train(BASE, config())


def test_a_process_without_a_task_leaves_and_the_next_task_starts_another(folder, process, caplog, monkeypatch):
    caplog.set_level(logging.INFO, "fedmq")
    monkeypatch.setattr(worker_life, "LEAVE_S", DEADLINE_S)  # on a busy machine it would be killed after that
    one = process(keep_s=0)
    stand_in = one.open()
    first = one._life
    assert first._gone.wait(DEADLINE_S)
    assert first._process.returncode == 0
    assert one.conditions()
    assert one._life.pid != first.pid
    light = one._life
    assert stand_in.train(BASE, config()).num_steps == 2
    assert one._life is light
    assert light._gone.wait(DEADLINE_S)
    (folder / "broken").touch()
    with pytest.raises(TrainerError, match=r"could not be built again: build_trainer in .*: the data are gone"):
        stand_in.train(BASE, config())
    one._idle.join(DEADLINE_S)
    assert f"event=trainer_process_left participant=at-rest pid={first.pid} idle_s=0" in caplog.text


def test_conditions_are_asked_in_mid_training(folder, process):
    one = process("at-work")
    stand_in = one.open()
    error = in_thread(lambda: stand_in.train(BASE, config("wait")))
    begun(folder)
    assert one.conditions() is False
    stand_in.cancel()
    error()
    unknown = process("unheard-of")
    unknown.open()
    with pytest.raises(AppError, match=r"conditions in .* failed: KeyError: 'unheard-of'"):
        unknown.conditions()


def test_sigterm_is_for_the_participant(process):
    one = process()
    stand_in = one.open()
    os.kill(one._life.pid, signal.SIGTERM)
    assert stand_in.train(BASE, config()).num_steps == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("raise RuntimeError('broken')", "fails when it is loaded: RuntimeError: broken"),
        ("def load_data(participant_id): pass", "no function build_model, which is needed to train with Keras"),
        ("import os; os._exit(3)", "could not be built: its process ended with exit status 3"),
    ],
)
def test_an_app_that_does_not_work_at_the_start_is_refused(folder, process, text, said):
    (folder / "app.py").write_text(text)
    with pytest.raises(AppError, match=said):
        process().open()
