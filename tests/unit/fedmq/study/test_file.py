import textwrap
from pathlib import Path

import pytest

from fedmq.coordinator.settings import DownlinkSettings, TargetMetric
from fedmq.coordinator.strategies import FedBuff
from fedmq.demo.data import SAMPLE
from fedmq.schemas.errors import ConfigError
from fedmq.studies.sweep.tuning import Tuning
from fedmq.study.file import load_study

GOOD = """
    name = "small"
    seeds = 3
    [problem]
    name = "softmax"
    [run]
    stop = {max_updates = 10}
    [training]
    learning_rate = 0.1
    [[strategies]]
    label = "K = 2"
    strategy = {name = "fedbuff", buffer_size = 2}
    [[populations]]
    name = "phones"
    participants = 4
    compute = {task_s = {name = "constant", value = 1}}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "study.toml"
    path.write_text(textwrap.dedent(text))
    return path


def mistakes(folder, old, new):
    with pytest.raises(ConfigError) as caught:
        load_study(write(folder, GOOD.replace(old, new)))
    return [line.strip() for line in str(caught.value).splitlines()[1:]]


def test_a_study_file_gives_its_grid_and_paths_relative_to_it(tmp_path):
    (tmp_path / "devices.csv").write_text("example_s\n0.1\n")
    study, folder = load_study(
        write(tmp_path, GOOD.replace("participants = 4", 'participants = 4\ntrace = "devices.csv"'))
    )
    assert folder == tmp_path / "small-results"
    assert study.seeds == [0, 1, 2]
    assert study.contenders[0].strategy == FedBuff(buffer_size=2)
    assert study.problem.data == str(SAMPLE)
    assert study.populations[0].trace == str(tmp_path / "devices.csv")


def test_laws_in_a_study_file_and_their_files_relative_to_it(tmp_path):
    (tmp_path / "seconds.csv").write_text("id,seconds\na,3\nb,1\n")
    laws = """
    [populations.compute]
    task_s = {name = "mixture", parts = [
        {share = 0.75, law = {name = "empirical", file = "seconds.csv", column = "seconds"}},
        {share = 0.25, law = {name = "shifted", by = 2, law = {name = "exponential", mean = 4}}},
    ]}
    slowness = {name = "choice", values = [1, 3], shares = [0.9, 0.1]}
    """
    old = 'compute = {task_s = {name = "constant", value = 1}}'
    study, _ = load_study(write(tmp_path, GOOD.replace(old, laws)))
    compute = study.populations[0].compute
    assert compute.task_s.mean == 0.75 * 2 + 0.25 * 6
    assert compute.slowness.mean == pytest.approx(1.2)
    before = study.cells()[0].key
    (tmp_path / "seconds.csv").write_text("id,seconds\na,3\nb,2\n")
    again, _ = load_study(write(tmp_path, GOOD.replace(old, laws)))
    assert again.cells()[0].key != before


def test_quadratics_that_are_given_and_partial_work_in_a_study_file(tmp_path):
    given = 'name = "quadratics"\n    optima = [0, 4]\n    curvatures = [1, 2]\n    local_steps = [1, 3]'
    text = GOOD.replace('name = "softmax"', given).replace("learning_rate = 0.1", "learning_rate = 0.1\n    epochs = 3")
    study, _ = load_study(write(tmp_path, text.replace("participants = 4", PARTIAL)))
    assert (study.problem.optima, study.problem.local_steps) == ((0, 4), (1, 3))
    assert study.populations[0].partial_work.share == 0.5
    (line,) = mistakes(tmp_path, "participants = 4", PARTIAL)
    assert line.startswith("populations.1.partial_work: it has no effect on 'K = 2': a task asks for one epoch")


PARTIAL = "participants = 4\n    partial_work = {share = 0.5}"


def test_a_mistake_in_a_law_is_named_with_its_place(tmp_path):
    old = "value = 1}"
    (line,) = mistakes(tmp_path, '{name = "constant", ' + old, '{name = "choice", values = [1, 2], shares = [1]}')
    assert line == "populations.1.compute.task_s: got 2 values and 1 shares: give a share for each value"
    (line,) = mistakes(tmp_path, '{name = "constant", ' + old, '{name = "empirical", file = "absent.csv"}')
    assert line == (
        f"populations.1.compute.task_s: there is no file {tmp_path / 'absent.csv'}: "
        "name one with a measured value in each row"
    )
    part = '{share = 1, law = {name = "constant", value = -1}}'
    (line,) = mistakes(tmp_path, '{name = "constant", ' + old, '{name = "mixture", parts = [' + part + "]}")
    assert "populations.1.compute.task_s.parts.1.law.value: got -1, allowed: 0.0 or more" in line


def test_all_that_a_study_file_says_is_in_the_study(tmp_path):
    more = """seeds = [4, 2]
    out = "elsewhere"
    memory_limit_bytes = 2_000_000
    target = {name = "accuracy", value = 0.5}
    tuning = {extend = 7}"""
    own = 'label = "K = 2"\ntraining = {learning_rate = 0.3}\nrun = {stop = {max_updates = 4}}\ntune = {}'
    study, folder = load_study(write(tmp_path, GOOD.replace("seeds = 3", more).replace('label = "K = 2"', own)))
    assert (folder, study.seeds, study.memory_limit_bytes) == (tmp_path / "elsewhere", [4, 2], 2_000_000)
    assert (study.target, study.tuning) == (TargetMetric(name="accuracy", value=0.5), Tuning(extend=7))
    assert (study.run_settings.stop.max_updates, study.training.learning_rate) == (10, 0.1)
    (contender,) = study.contenders
    assert (contender.run.stop.max_updates, contender.training.learning_rate, contender.tune) == (4, 0.3, {})
    assert [cell.seed for cell in study.cells()] == [4, 2]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("buffer_size = 2", "bufer_size = 2", "did you mean buffer_size?"),
        (
            'name = "softmax"',
            'name = "softmaxx"',
            'problem.name: got "softmaxx", allowed: "quadratics", "softmax", "synthetic", "app"',
        ),
        ("participants = 4", "participants = 0", "populations.1.participants: got 0, allowed: 1 or more"),
        ("{max_updates = 10}", "{}", "run.stop: the run would never end"),
        ("learning_rate = 0.1", "", "training.learning_rate: missing, expected a number above 0"),
        (
            "{max_updates = 10}",
            '{max_updates = 10}\nclient_weights = "examples"\n[[strategies]]\nlabel = "AREA"\n'
            'strategy = {name = "area", num_participants = 4, memory = "participant"}',
            "run.client_weights: got 'examples', allowed: 'equal', because area has its memory on the participants",
        ),
        (
            '{name = "fedbuff", buffer_size = 2}',
            '{name = "area", num_participants = 5}',
            "strategies.1.strategy.num_participants: num_participants = 5, and the population 'phones' has 4",
        ),
        (
            "seeds = 3",
            'seeds = 3\ntarget = {name = "acuracy", value = 0.9}',
            "target.name: got 'acuracy', which is never measured here, allowed: loss, accuracy",
        ),
        ("seeds = 3", 'seeds = 3\ntuning = {metric = "acc"}', "tuning.metric: got 'acc', which is never measured"),
        (
            "{max_updates = 10}",
            '{target = {name = "distance", value = 1}}',
            "run.stop.target.name: got 'distance', which is never measured",
        ),
        (
            "{max_updates = 10}",
            '{max_updates = 10, patience = {name = "acc", evaluations = 3}}',
            "run.stop.patience.name: got 'acc', which is never measured",
        ),
        (
            'strategy = {name = "fedbuff", buffer_size = 2}',
            'run = {stop = {max_updates = 9}, client_weights = "sqrt"}\n'
            'strategy = {name = "area", num_participants = 4, memory = "participant"}',
            "strategies.1.run.client_weights: got 'sqrt', allowed: 'equal'",
        ),
        (
            'strategy = {name = "fedbuff", buffer_size = 2}',
            'training = {epochs = 2}\nstrategy = {name = "fedbuff", buffer_size = 2}',
            "strategies.1.training.learning_rate: missing, expected a number above 0",
        ),
        (
            'strategy = {name = "fedbuff", buffer_size = 2}',
            'run = {stop = {}}\nstrategy = {name = "fedbuff", buffer_size = 2}',
            "strategies.1.run.stop: the run would never end",
        ),
        (
            '{name = "fedbuff", buffer_size = 2}',
            '{name = "fedavg", cohort_size = 4, over_selection = 1.1}',
            "strategies.1.strategy: a round asks 5 participants (cohort_size × over_selection), the population",
        ),
        (
            "seeds = 3",
            "seeds = 3\ntuning = {stop = {max_updates = 1}}",
            "strategies.1.strategy.buffer_size: got 2, and a trial ends after 1 updates (tuning.stop.max_updates)",
        ),
        ("seeds = 3", "seeds = 0", "seeds: got 0, allowed: 1 or more"),
        ("seeds = 3", "seeds = [1, -2]", "seeds.2: got -2, allowed: 0 or more"),
        ("seeds = 3", 'seeds = "three"', 'seeds: got "three", expected a whole number or a list'),
        ("seeds = 3", "seeds = 3\ntuning = {server_step = [-1]}", "tuning.server_step.1: got -1, allowed: more than"),
        ("participants = 4", 'participants = 4\nexamples = {name = "normal", mean = 3}', 'got "normal", allowed'),
        (
            "participants = 4",
            "participants = 4\ndropout = {probability = 1}",
            "populations.1.dropout.probability: got 1, allowed: 0.999 or less",
        ),
        ("{max_updates = 10}", "{max_time_s = inf}", "run.stop.max_time_s: got inf"),
        (
            "buffer_size = 2",
            "buffer_size = 11",
            "strategies.1.strategy.buffer_size: got 11, and the run ends after 10 updates",
        ),
        (
            "buffer_size = 2",
            "buffer_size = 20, buffer_timeout_s = 5, min_updates = 11",
            "strategies.1.strategy.min_updates: got 11, and the run ends after 10 updates",
        ),
        (
            "buffer_size = 2",
            "buffer_size = 2, min_updates = 2",
            "min_updates = 2 has no effect without a buffer_timeout_s",
        ),
        (
            "participants = 4",
            "participants = 4\ncorrelation = {speed_size = 1, speed_label = 1, size_label = -1}",
            "populations.1.correlation: speed_size = 1.0, speed_label = 1.0 and",
        ),
    ],
)
def test_each_mistake_is_named_with_its_place_and_what_is_allowed(tmp_path, old, new, expected):
    (line,) = mistakes(tmp_path, old, new)
    assert expected in line


WRONG = """
    name = "small"
    seeds = [2, 2]
    tuning = {seeds = [2], learning_rat = [0.1]}
    [problem]
    name = "softmax"
    data = "absent.npz"
    [run]
    stop = {}
    [[strategies]]
    label = "A"
    strategy = {name = "fedbuff", buffer_size = 0}
    [[strategies]]
    label = "B"
    strategy = {name = "fedavg", cohort_size = 5}
    tune = {"strategy.eta" = [1.0]}
    [[strategies]]
    label = "B"
    strategy = {name = "custom", file = "own.py"}
    [[populations]]
    participants = 4
    trace = "absent.csv"
    [[populations]]
    name = "timeless"
    participants = 9
"""


def test_all_mistakes_are_named_in_one_go_those_in_other_files_too(tmp_path):
    with pytest.raises(ConfigError) as caught:
        load_study(write(tmp_path, WRONG))
    first, *lines = str(caught.value).splitlines()
    assert first.endswith("study.toml has 12 mistakes:")
    expected = [
        "tuning.learning_rat: unknown key", "strategies.1.strategy.buffer_size: got 0", "run.stop: the run would never",
        "training.learning_rate: missing", "populations.2: its tasks take no time", "problem.data: there is no data",
        "populations.1.trace: There is no trace file", "strategies.2.strategy: a round asks 5 participants",
        "strategies.3.strategy: There is no strategy file", 'strategies.3.label: got "B", which strategies.2 has',
        "seeds: got [2, 2]", "strategies.2.tune.strategy.eta: there is no such parameter",
    ]  # fmt: skip
    assert len(lines) == len(expected)
    assert all(any(line.strip().startswith(text) for line in lines) for text in expected)


@pytest.mark.parametrize(("given", "off"), [("false", True), ("true", False), ("{extend = 1}", False)])
def test_tuning_is_on_unless_it_is_switched_off(tmp_path, given, off):
    study, _ = load_study(write(tmp_path, GOOD.replace("seeds = 3", f"seeds = 3\ntuning = {given}")))
    assert study.tuning.off is off


def test_a_study_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"There is no study file .*absent\.toml"):
        load_study(tmp_path / "absent.toml")


@pytest.mark.parametrize("path", sorted(Path("examples/studies").glob("*.toml")), ids=lambda p: p.stem)
def test_the_examples_are_studies(path):
    study, _ = load_study(path)
    assert study.cells()


def test_a_buffer_with_a_timeout_may_be_larger_than_the_run(tmp_path):
    timed = GOOD.replace("buffer_size = 2", "buffer_size = 20, buffer_timeout_s = 5")
    study, _ = load_study(write(tmp_path, timed))
    assert study.contenders[0].strategy == FedBuff(buffer_size=20, buffer_timeout_s=5.0)


def test_a_key_that_no_table_has_is_told_where_laws_may_hold_laws(tmp_path):
    problem = 'name = "quadratics"\n    dimenson = 3'
    assert mistakes(tmp_path, 'name = "softmax"', problem)[0].startswith("problem.dimenson: unknown key (got 3)")
    law = '{name = "shifted", by = 1, law = {name = "shifted", by = 1, lav = 2, law = {name = "constant", value = 1}}}'
    text = GOOD.replace('"softmax"', '"quadratics"').replace('{name = "constant", value = 1}', law)
    with pytest.raises(ConfigError, match=r"task_s\.law\.lav: unknown key"):
        load_study(write(tmp_path, text))


def test_the_form_of_the_model_in_tasks_is_the_studys_or_a_strategys_own(tmp_path):
    own = GOOD.replace("buffer_size = 2}", 'buffer_size = 2}\n    downlink = {codec = "bf16"}')
    study, _ = load_study(write(tmp_path, own))
    assert study.contenders[0].run.downlink == DownlinkSettings(codec="bf16")
    shared = GOOD.replace("[training]", '[downlink]\n    codec = "hidden"\n    [training]')
    study, _ = load_study(write(tmp_path, shared))
    assert study.run_settings.downlink == DownlinkSettings(codec="hidden")
    (found,) = mistakes(tmp_path, "[training]", '[downlink]\n    codec = "int8"\n    [training]')
    assert found.startswith('downlink.codec: got "int8", allowed: "none", "bf16", "hidden"')
    asynchronous = '{name = "fedasync", alpha = 0.5}\n    downlink = {codec = "bf16"}'
    (found,) = mistakes(tmp_path, '{name = "fedbuff", buffer_size = 2}', asynchronous)
    assert found.startswith("strategies.1.downlink.codec: got 'bf16', allowed with a strategy whose updates carry ")
    assert found.endswith("'parameters': none, hidden")
