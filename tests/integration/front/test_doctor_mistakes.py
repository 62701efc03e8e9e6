"""Mistakes that a coordinator, a participant or the first minute of a run refuses or stumbles over, and the doctor
beside them.

Each row of MISTAKES changes one thing of a federation that works. The doctor must say it, and so must the real run:
the services of both roles over the embedded broker. Some rows are run again by the real commands.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from fedmq.app.parameter_files import write_parameters
from fedmq.broker_config.amqp.transport import AmqpTransport
from fedmq.broker_config.embedded.transport import EmbeddedBroker, EmbeddedTransport
from fedmq.broker_config.topology import Topology
from fedmq.broker_config.transport import Message
from fedmq.config.file import FederationConfig, load_config
from fedmq.run.coordinator import coordinator_for, summary_text
from fedmq.run.participant import participant_for
from fedmq.schemas.codec import encode
from fedmq.schemas.errors import FedmqError
from fedmq.schemas.messages import Update
from fedmq.schemas.parameters import Parameters
from fedmq.views.doctor import examine
from tests.support.full import FULL

DEADLINE_S = 60.0
APP = """
import numpy as np

class Result:
    num_examples, num_steps, metrics = 10, 1, {"loss": 1.0}
    def __init__(self, parameters):
        self.parameters = parameters

class Trainer:
    num_examples = 10
    def train(self, parameters, config):
        return Result({name: array + 1 for name, array in parameters.items()})

def build_trainer(participant_id):
    return Trainer()

def initial_parameters():
    return {"w": np.zeros(8, dtype="float32")}

def evaluate(parameters):
    return {"mean": float(parameters["w"].mean())}
"""
STRATEGY = """
from dataclasses import dataclass
from fedmq import WeightedMean

@dataclass(frozen=True)
class Mine(WeightedMean):
    buffer_size: int = 1

    def weight(self, update, staleness):
        return 1.0

def build_strategy(**options):
    return Mine(**options)
"""
HEAD = """
[run]
run_id = "r1"
participant_timeout_s = 2
decline_backoff_s = 0.1
[participant]
hello_interval_s = 0.2
"""
STOP = "[run.stop]\nmax_updates = 2\n"
FEDBUFF = '[strategy]\nname = "fedbuff"\nbuffer_size = 1\n'
MINE = '[strategy]\nname = "custom"\nfile = "strategy.py"\n'


class Site:
    """A folder with a federation that works, before a row changes it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.app, self.strategy_file = APP, STRATEGY
        self.head, self.stop, self.strategy, self.top = HEAD, STOP, FEDBUFF, ""
        self.broker = EmbeddedBroker()

    def change(self, old: str, new: str) -> None:
        """Change the app file."""
        assert old in self.app
        self.app = self.app.replace(old, new)

    def own_strategy(self, method: str) -> None:
        """Take the custom strategy, with one more method."""
        self.strategy = MINE
        self.strategy_file = STRATEGY.replace("\ndef build", f"    {method}\n\ndef build")

    def config(self) -> FederationConfig:
        (self.folder / "app.py").write_text(self.app)
        (self.folder / "strategy.py").write_text(self.strategy_file)
        (self.folder / "federation.toml").write_text(self.top + self.head + self.stop + self.strategy)
        return load_config(self.folder / "federation.toml", environ={}, broker="amqp://127.0.0.1:1/")

    def wrong(self, try_s: float = 30.0) -> list[str]:
        """Return what the doctor finds wrong, apart from the broker, which is not there."""
        found = list(examine(self.config(), "sensor-1", try_s=try_s))
        return [f"{one.what} {one.advice}" for one in found if one.level == "wrong" and "127.0.0.1" not in one.what]


class Said(logging.Handler):
    """Everything that the roles log and raise, in one text."""

    def __init__(self) -> None:
        super().__init__()
        self._changed = threading.Condition()
        self.text = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.add(record.getMessage())

    def add(self, text: str) -> None:
        with self._changed:
            self.text += text + "\n"
            self._changed.notify_all()

    def wait_for(self, pattern: str) -> None:
        with self._changed:
            found = self._changed.wait_for(lambda: re.search(pattern, self.text), DEADLINE_S)
        assert found, f"no {pattern!r} in\n{self.text}"


@pytest.fixture
def said():
    handler, logger = Said(), logging.getLogger("fedmq")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(level)


def run_until(site: Site, said: Said, pattern: str) -> None:
    """Run both roles until one of them says this."""
    config, stops, over = site.config(), [], threading.Event()

    def coordinator() -> None:
        try:
            with coordinator_for(config, lambda: EmbeddedTransport(site.broker, "coordinator")) as service:
                stops.append(service.stop)
                said.add("" if over.is_set() else summary_text(config, service.run()))
        except (FedmqError, OSError) as error:
            said.add(str(error))

    def participant() -> None:
        try:
            service = participant_for(config, "sensor-1", EmbeddedTransport(site.broker, "sensor-1"))
            stops.append(service.stop)
            said.add("" if over.is_set() else service.run())
        except (FedmqError, OSError) as error:
            said.add(str(error))

    with ThreadPoolExecutor() as pool:
        pool.submit(coordinator)
        pool.submit(participant)
        try:
            said.wait_for(pattern)
        finally:
            over.set()
            for stop in stops:
                stop()


def replaced(old: str, new: str) -> Callable[[Site], None]:
    return lambda site: site.change(old, new)


def stop(text: str) -> Callable[[Site], None]:
    return lambda site: setattr(site, "stop", f"[run.stop]\n{text}\n")


def strategy(text: str) -> Callable[[Site], None]:
    return lambda site: setattr(site, "strategy", f"[strategy]\n{text}\n")


def method(text: str) -> Callable[[Site], None]:
    return lambda site: site.own_strategy(text)


def initial(write: Callable[[Path], object]) -> Callable[[Site], None]:
    def change(site: Site) -> None:
        site.top = 'initial = "first.safetensors"\n'
        write(site.folder / "first.safetensors")

    return change


def _of_another_model(path: Path) -> None:
    write_parameters(path, Parameters({"w": np.zeros(7, np.float32)}))


def before(*changes: str) -> Callable[[Site], None]:
    """Run the federation that works, and change these settings (`old -> new`) or the app after it."""

    def change(site: Site) -> None:
        site.stop = "[run.stop]\nmax_updates = 1000000\n"
        _run_a_little(site)
        for one in changes:
            old, new = one.split(" -> ")
            site.app, site.strategy = site.app.replace(old, new), site.strategy.replace(old, new)

    return change


def _run_a_little(site: Site) -> None:
    said, logger = Said(), logging.getLogger("fedmq")
    logger.addHandler(said)
    logger.setLevel(logging.INFO)
    try:
        run_until(site, said, "version_made version=2")
    finally:
        logger.removeHandler(said)


def in_the_way(name: str) -> Callable[[Site], None]:
    def change(site: Site) -> None:
        path = site.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")

    return change


MISTAKES = {
    "a target that is never measured": (
        stop('target = { name = "accuracy", value = 0.9 }'),
        "run.stop.target.name: got 'accuracy', which the evaluation does not measure: it measures 'mean'",
        "run.stop.target.name: got 'accuracy', which the evaluation does not measure: it measures 'mean'",
    ),
    "a patience that is never measured": (
        stop('patience = { name = "loss", evaluations = 2 }'),
        "run.stop.patience.name: got 'loss'",
        "run.stop.patience.name: got 'loss'",
    ),
    "an evaluation of nothing": (
        lambda site: (site.change('{"mean": float(parameters["w"].mean())}', "{}"),
                      stop('target = { name = "mean", value = 0.9 }')(site)),
        "it measures nothing",
        "it measures nothing",
    ),
    "a goal without an evaluation": (
        lambda site: (site.change("def evaluate", "def rate"), stop('target = { name = "mean", value = 9 }')(site)),
        "stop.target and stop.patience need a central evaluation",
        "stop.target and stop.patience need a central evaluation",
    ),
    "a target that version 0 has reached": (
        stop('target = { name = "mean", value = -1 }'),
        'the first model has reached run.stop.target already: mean is 0, the target -1 with mode = "max"',
        r"finished \(target\) at version 0",
    ),
    "an evaluation that raises": (
        replaced('float(parameters["w"].mean())', "1 / 0"),
        "evaluation: evaluate in .* failed: ZeroDivisionError",
        "evaluated version=0 detail=.*ZeroDivisionError",
    ),
    "an evaluation that gives no numbers": (
        replaced('float(parameters["w"].mean())', "'high'"),
        "evaluation: .*could not convert string to float",
        "evaluated version=0 detail=.*could not convert string to float",
    ),
    "an initial file that is not there": (
        initial(lambda path: None), "initial: There is no file", "There is no file .*first.safetensors",
    ),
    "an initial file of another model": (
        initial(_of_another_model), "initial: .* is not of the model", "which `initial` names, is not of the model",
    ),
    "an initial file that is damaged": (
        initial(lambda path: path.write_bytes(b"x" * 99)), "initial: .*first.safetensors", "first.safetensors",
    ),
    "weights by a loss that nobody reports": (
        lambda site: (site.change('{"loss": 1.0}', "{}"),
                      setattr(site, "head", site.head.replace("[part", 'client_weights = "quality"\n[part'))),
        "run.client_weights: got 'quality', and the trainer reports no metric 'loss'",
        r"finished \(max_updates\) at version 2",  # and all weights were equal
    ),
    "a trainer that raises": (
        replaced("return Result(", "raise KeyError('data')\n        return Result("),
        "training: KeyError: 'data'",
        "trainer_error.*KeyError: 'data'",
    ),
    "a trainer that gives other shapes": (
        replaced("array + 1", "array[:3]"),
        "training: train returned other tensors than it was given",
        "train returned other tensors than it was given",
    ),
    "a trainer that gives NaN": (
        replaced("array + 1", "array * np.nan"),
        "training: the trained parameters are not finite",
        "the trained parameters are not finite",
    ),
    "a trainer without examples": (
        replaced("metrics = 10, 1", "metrics = 0, 1"),
        "training: train returned num_examples=0",
        "train returned num_examples=0",
    ),
    "data that is not there for this participant": (
        replaced("return Trainer()", "return open('/nowhere/' + participant_id)"),
        "training: build_trainer in .* failed: FileNotFoundError",
        "build_trainer in .* failed: FileNotFoundError",
    ),
    "conditions that raise": (
        lambda site: setattr(site, "app", site.app + "def conditions(participant_id): return 1 / 0\n"),
        "training: conditions in .* failed: ZeroDivisionError",
        "a condition could not be checked: .*ZeroDivisionError",
    ),
    "a strategy whose accumulate raises": (
        method("def accumulate(self, state, update, staleness): return state.add(update)"),
        r"strategy: its accumulate\(\) raised at strategy.py:\d+: .*AttributeError",
        r"accumulate\(\) raised at strategy.py:\d+",
    ),
    "a strategy whose aggregate raises": (
        method("def aggregate(self, state, parameters): return 1 / 0"),
        r"strategy: its aggregate\(\) raised at strategy.py:\d+: .*ZeroDivisionError",
        r"aggregate\(\) raised at strategy.py:\d+",
    ),
    "a strategy whose ready raises": (
        method("def ready(self, state, now): return state.full"),
        r"strategy: its ready\(\) raised at strategy.py:\d+",
        r"ready\(\) raised at strategy.py:\d+",
    ),
    "a strategy with too few weights": (
        method("def weights(self, state): return ()"),
        r"strategy: its weights\(\) raised at .*expected 1 finite numbers",
        r"weights\(\) raised at .*expected 1 finite numbers",
    ),
    "a strategy whose weight is not finite": (
        method("def weight(self, update, staleness): return float('inf')"),
        "strategy: .*(not finite|finite number)",
        "strategy_failed",
    ),
    "a strategy without its methods": (
        lambda site: (method("")(site), setattr(site, "strategy_file", "def build_strategy(): return 5\n")),
        "strategy: build_strategy in .* gave int, which lacks",
        "build_strategy in .* gave int, which lacks",
    ),
    "a strategy that needs more memory than it may take": (
        strategy('name = "area"\nnum_participants = 9\nmemory_limit_bytes = 100'),
        "strategy: strategy area would keep 352 bytes",
        "strategy area would keep 352 bytes",
    ),
    "a trainer without corrections for SCAFFOLD": (
        lambda site: (strategy('name = "scaffold"\nnum_participants = 1\nbuffer_size = 1')(site),
                      setattr(site, "head", site.head + "[training]\nlearning_rate = 1.0\n")),
        "its train has no argument `correction`",
        "participant_left_out|correction|cannot",
    ),
    "a buffer that no run fills": (
        strategy('name = "fedbuff"\nbuffer_size = 3'),
        "strategy.buffer_size: got 3, and the run ends after run.stop.max_updates = 2",
        r"finished \(max_updates\) at version 0",
    ),
    "more tensors than a message may have": (
        lambda site: (site.change('return {"w": np.zeros(8, dtype="float32")}',
                                  'return {f"{n}": np.zeros(1, "float32") for n in range(20)}'),
                      site.change('parameters["w"]', 'parameters["0"]'),
                      setattr(site, "head", site.head + "[broker]\nmax_tensors = 16\n")),
        "an update has 20, broker.max_tensors is 16",
        "an update of this model has 20 tensors, .broker. max_tensors is 16",
    ),
    "a file in the place of the runs": (
        in_the_way("runs"), "runs_dir: .*/runs cannot be written", "/runs",
    ),
    "a file in the place of the checkpoints": (
        in_the_way("runs/r1/checkpoints"), "runs_dir: .*/runs/r1/checkpoints cannot be written", "r1/checkpoints",
    ),
    "a file in the place of the spool": (
        in_the_way("spool"), "participant.spool_dir: .*/spool cannot be written", "/spool",
    ),
    "a file in the place of the outbox": (
        in_the_way("spool/sensor-1/outbox"), "participant.spool_dir: .*sensor-1/outbox", "sensor-1/outbox",
    ),
    "a run with other settings": (
        before("buffer_size = 1 -> buffer_size = 2"),
        "run: .* began with other settings: strategy.buffer_size was 1 and is now 2",
        "began with other settings: strategy.buffer_size was 1 and is now 2",
    ),
    "a run with another model": (
        before("zeros(8 -> zeros(9"),
        "run: .* does not build the model of the run",
        "does not build the model of the run",
    ),
}  # fmt: skip
IN_EVERY_RUN = ("never measured", "accumulate", "initial file of another", "the outbox", "needs more memory")
"""The rows that are run each time; the others are in the full suite."""


@pytest.mark.parametrize("mistake", [name for name in MISTAKES if FULL or any(part in name for part in IN_EVERY_RUN)])
def test_the_doctor_finds_what_a_run_stumbles_over(mistake, tmp_path, said):
    change, doctor_says, run_says = MISTAKES[mistake]
    site = Site(tmp_path)
    change(site)
    wrong = site.wrong()
    assert [text for text in wrong if re.search(doctor_says, text)], wrong
    assert len(wrong) == 1, wrong  # and nothing else
    run_until(site, said, run_says)


def test_the_doctor_finds_nothing_wrong_with_what_works_and_leaves_nothing_behind(tmp_path, said):
    site = Site(tmp_path)
    assert site.wrong() == []
    left = {path.name for path in tmp_path.iterdir()} - {"__pycache__"}  # Python's own, where it keeps bytecode
    assert left == {"app.py", "federation.toml", "strategy.py"}
    site.own_strategy("")
    assert site.wrong() == []
    run_until(site, said, r"finished \(max_updates\) at version 2")
    assert site.wrong() == []  # that it is over is a warning


@pytest.mark.parametrize(
    ("old", "part"),
    [
        ("        return Result(", "training"),
        ('    return {"mean"', "evaluation"),
        ('    return {"w"', "app"),
    ][: 3 if FULL else 1],
)
def test_what_takes_long_is_cut_off_and_said(old, part, tmp_path):
    site = Site(tmp_path)
    site.change(old, f"{' ' * (len(old) - len(old.lstrip()))}__import__('threading').Event().wait()\n{old}")
    found = [one for one in examine(site.config(), "sensor-1", try_s=2.0) if "cut off" in one.what]
    assert [(one.level, one.what) for one in found] == [
        ("wrong" if part == "app" else "warning", f"{part}: it was cut off after 2 s, so it is not known if it works")
    ]


def test_a_strategy_that_never_returns_is_cut_off(tmp_path):
    site = Site(tmp_path)
    site.own_strategy("def weight(self, update, staleness):\n        while True:\n            pass")
    assert ["strategy: it was cut off after 2 s" in text for text in site.wrong(try_s=2.0)] == [True]


@pytest.mark.broker
def test_the_commands_say_a_target_that_is_never_measured(terminal, tmp_path, amqp_url, prefix):
    site = Site(tmp_path)
    stop('target = { name = "accuracy", value = 0.9 }')(site)
    site.config()
    broker = {"FEDMQ_BROKER_URL": amqp_url, "FEDMQ_BROKER__PREFIX": prefix}
    doctor, run = (terminal(command, "-c", "federation.toml", **broker) for command in ("doctor", "coordinator"))
    assert (doctor.ended(), run.ended()) == (1, 2)
    for text in (doctor.text, run.text):
        assert "run.stop.target.name: got 'accuracy', which the evaluation does not measure: it measures 'mean'" in text
        assert "Traceback" not in text
    assert "The run stands at version 0 with 0 updates, and the same command continues it" in run.text
    assert "1 thing(s) to put right" in doctor.text


@pytest.mark.broker
def test_updates_of_another_run_are_told_before_a_new_run_throws_them_away(terminal, tmp_path, amqp_url, prefix):
    site = Site(tmp_path)
    site.config()
    topology = Topology(prefix)
    transport = AmqpTransport(amqp_url, name="other run")
    transport.open(topology.exchanges, topology.coordinator_queues, timeout_s=DEADLINE_S)
    sent = Update(
        update_id="u", task_id="t", run_id="other", participant_id="p", base_version=0, payload="delta",
        num_examples=1, num_steps=1, metrics={}, train_s=1.0,
    )  # fmt: skip
    body = encode(sent, Parameters({"w": np.zeros(8, np.float32)}))
    transport.publish(Message(topology.updates_exchange.name, "update", body, message_id="m")).result(DEADLINE_S)
    transport.close()
    broker = {"FEDMQ_BROKER_URL": amqp_url, "FEDMQ_BROKER__PREFIX": prefix}
    doctor = terminal("doctor", "-c", "federation.toml", **broker)
    assert doctor.ended() == 1
    assert f"{prefix}.updates: 1 update(s) of another run wait here: run r1 has not begun" in doctor.text
    assert f"rabbitmqctl purge_queue {prefix}.updates" in doctor.text
    run = terminal("coordinator", "-c", "federation.toml", **broker)
    run.wait_for("event=update_discarded.* reason=wrong_run")
    assert 0 < run.text.index("event=updates_of_another_run") < run.text.index("event=update_discarded")
