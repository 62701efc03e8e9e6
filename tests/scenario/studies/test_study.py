import csv
import dataclasses
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import fedmq
from fedmq.coordinator.settings import TargetMetric
from fedmq.coordinator.strategies.math.staleness_weights import Constant as NoStaleness
from fedmq.coordinator.strategies.math.staleness_weights import Polynomial
from fedmq.schemas.errors import ConfigError, FedmqError
from fedmq.studies.population.laws import Constant, LogNormal
from fedmq.studies.population.population import Compute, Population
from fedmq.studies.problems.keras.path_choice import shared
from fedmq.studies.sweep.intervals import mean_text
from fedmq.studies.sweep.measures import misplaced_share
from tests.scenario.studies.federations import STEP, Quadratics, TrainingConfig, fedbuff, population, until

ROOT = Path(__file__).resolve().parents[3]


def study(**fields) -> fedmq.Study:
    values = {
        "name": "small",
        "problem": Quadratics(dimension=2, noise=0.1),
        "contenders": [fedmq.Contender("one by one", fedmq.FedAsync()), fedmq.Contender("fives", fedbuff(5))],
        "populations": [population(10, LogNormal(median=1, sigma=1))],
        "run_settings": until(50, concurrency=4, evaluate_interval_s=2.0),
        "training": STEP,
        "seeds": [0, 1],
        "tuning": None,
    }
    return fedmq.Study(**(values | fields))


class Unmeasured(Quadratics):
    """A federation whose model is never evaluated."""

    def deal(self, members, seed):
        federation = super().deal(members, seed)
        federation.evaluates = False
        return federation


def ran(study, folder, **options):
    """Run a study, and return the results with the strategy and seed of each cell that was run for them."""
    fresh = []
    results = study.run(folder, on_cell=lambda r, done, total: fresh.append((r.strategy, r.seed)), **options)
    return results, sorted(fresh)


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_study_runs_every_cell_once_and_its_tables_hold_every_value(tmp_path):
    first, fresh = ran(study(), tmp_path)
    assert fresh == [("fives", 0), ("fives", 1), ("one by one", 0), ("one by one", 1)]
    again, fresh = ran(study(), tmp_path)
    assert fresh == []
    assert again == first
    rows = table(tmp_path / "evaluations.csv")
    assert len(rows) == sum(len(r.evaluations) * 2 for r in first)
    assert {row["metric"] for row in rows} == {"loss", "distance"}
    assert [row["digest"] for row in table(tmp_path / "cells.csv")] == [r.digest for r in first]
    assert pq.read_table(tmp_path / "cells.parquet").column("digest").to_pylist() == [r.digest for r in first]
    values = pq.read_table(tmp_path / "evaluations.parquet").column("value").to_pylist()
    assert [repr(value) for value in values] == [row["value"] for row in rows]


def test_the_bytes_do_not_depend_on_the_number_of_processes(tmp_path):
    def digests(workers):
        return [r.digest for r in study().run(tmp_path / str(workers), workers=workers)]

    assert digests(1) == digests(2)


class Choosing(Quadratics):
    """A problem whose backend has the name of the process that chose it."""

    def deal(self, members, seed):
        federation = super().deal(members, seed)
        chosen = shared("by-time", ("name",), lambda: {"name": f"process {os.getpid()}"})
        object.__setattr__(federation.backend, "name", chosen["name"])
        return federation


def test_a_choice_by_time_is_made_once_for_all_processes_of_a_study(tmp_path):
    results = study(problem=Choosing(dimension=2, noise=0.1)).run(tmp_path, workers=2)
    (kept,) = (tmp_path / "choices").iterdir()
    (name,) = {result.backend for result in results}
    assert name == json.loads(kept.read_text())["name"]


def test_progress_is_told_within_a_cell_too(tmp_path):
    seen = []
    one = study(contenders=study().contenders[:1], seeds=[0], run_settings=until(3000, concurrency=4))
    one.run(tmp_path, workers=1, on_progress=lambda done, total: seen.append((done, total)))
    assert any(0 < done < 1 for done, _ in seen)
    assert seen[-1] == (1, 1)


def test_only_the_cells_that_a_change_touches_are_run_again(tmp_path):
    before = study()
    ran(before, tmp_path)
    first, second = before.contenders
    changed = replace(before, contenders=[replace(first, label="renamed"), replace(second, strategy=fedbuff(6))])
    results, fresh = ran(changed, tmp_path)
    assert fresh == [("fives", 0), ("fives", 1)]
    assert {r.strategy for r in results} == {"renamed", "fives"}
    assert {(row["strategy"], row["reference"]) for row in table(tmp_path / "differences.csv")} == {
        ("fives", "renamed")
    }
    target = TargetMetric(name="distance", value=1e-9, mode="min")
    _, fresh = ran(replace(changed, contenders=changed.contenders[::-1], target=target), tmp_path)
    assert fresh == [], "another one to compare with costs no cell"
    rows = table(tmp_path / "differences.csv")
    assert {(row["strategy"], row["reference"]) for row in rows} == {("renamed", "fives")}
    assert {row["target"] for row in rows} == {"", "1e-09"}


def test_a_cell_that_diverges_is_a_result_and_the_grid_goes_on(tmp_path):
    wild = fedmq.Contender("wild", fedbuff(5), TrainingConfig(learning_rate=1e200, epochs=2))
    results, _ = ran(study(contenders=[wild, *study().contenders]), tmp_path)
    assert [r.finished for r in results] == ["diverged"] * 2 + ["max_updates"] * 4
    assert results[0].diverged_s == results[0].time_s > 0


def test_a_cell_whose_file_is_broken_is_run_again(tmp_path):
    ran(study(), tmp_path)
    torn = tmp_path / "cells" / f"{study().cells()[0].key}.json"
    torn.write_text(torn.read_text()[:100])
    told = []
    study().run(tmp_path, on_cell=lambda r, done, total: told.append((r.strategy, r.seed, done, total)))
    assert told == [("one by one", 0, 4, 4)], "the other three are finished"


def test_strategies_are_compared_at_what_tuning_found_and_tuned_once(tmp_path):
    one = study(
        contenders=[fedmq.Contender("fives", fedbuff(5))],
        seeds=[0],
        tuning=fedmq.Tuning(learning_rate=[0.1, 1e200], server_step=[0.5, 1.0], metric="loss"),
    )
    results, fresh = ran(one, tmp_path)
    assert len(fresh) == 1 + 4 + 2 * 4, "the two of four trials that did not diverge went on to four more seeds"
    assert {seed for _, seed in fresh} == {0, *range(1_000_000, 1_000_005)}
    rows = table(tmp_path / "tuning.csv")
    assert len(rows) == 4 * 2
    assert [row["seeds"] for row in rows] == ["5"] * 4 + ["1"] * 4
    chosen = {row["parameter"]: float(row["value"]) for row in rows if row["chosen"] == "True"}
    assert chosen["training.learning_rate"] == 0.1
    step = chosen["strategy.server_learning_rate"]
    as_tuned = study(contenders=[fedmq.Contender("fives", fedbuff(5, server_learning_rate=step))], seeds=[0])
    assert [r.digest for r in as_tuned.run(tmp_path / "as-tuned")] == [r.digest for r in results]
    assert "Untuned" not in (tmp_path / "report.html").read_text()
    again, fresh = ran(one, tmp_path)
    assert (again, fresh) == (results, [])
    elsewhere = one.run(tmp_path / "elsewhere", workers=1)
    assert [r.digest for r in elsewhere] == [r.digest for r in results]
    assert (tmp_path / "elsewhere" / "tuning.csv").read_bytes() == (tmp_path / "tuning.csv").read_bytes()


def test_what_cannot_be_tuned_is_refused_at_once():
    with pytest.raises(ConfigError, match=r"tuning\.seeds: got 1, which the study compares on"):
        study(tuning=fedmq.Tuning(seeds=[1]))
    with pytest.raises(ConfigError, match=r"tuning\.seeds: got 7 twice"):
        study(tuning=fedmq.Tuning(seeds=[7, 7]))
    first, second = study().contenders
    with pytest.raises(ConfigError, match=r"strategies\.2\.tune\.strategy\.eta: there is no such parameter"):
        study(contenders=[first, replace(second, tune={"strategy.eta": [1.0]})], tuning=fedmq.Tuning())
    with pytest.raises(ConfigError, match=r"tune\.strategy\.alpha: got 2, which is refused"):
        study(contenders=[replace(first, tune={"strategy.alpha": [2.0]})], tuning=fedmq.Tuning())


def test_more_memory_than_the_limit_is_refused_with_the_number_before_training(tmp_path):
    big = study(problem=Quadratics(dimension=100_000), memory_limit_bytes=20_000_000)
    fresh = []
    with pytest.raises(
        ConfigError, match=r"one by one on population, fives on population: a cell takes about 12,800,000 bytes"
    ) as caught:
        big.run(tmp_path, workers=2, on_cell=lambda *cell: fresh.append(cell))
    assert "A process may take 10,000,000 (memory_limit_bytes shared by all workers)" in str(caught.value)
    assert fresh == list((tmp_path / "cells").iterdir()) == []
    area = fedmq.Area(num_participants=10, memory="participant")  # in float64, and as many for the tasks that are out
    remembering = study(contenders=[fedmq.Contender("area", area)], problem=big.problem, memory_limit_bytes=10**6)
    with pytest.raises(ConfigError, match=r"a cell takes about 35,200,000 bytes"):
        remembering.run(tmp_path, workers=1)


def test_what_is_never_measured_is_refused_before_training(tmp_path):
    def refused(match, **fields):
        with pytest.raises(ConfigError, match=match):
            study(**fields).run(tmp_path, workers=1)
        assert list((tmp_path / "cells").iterdir()) == []

    unknown = "the metric 'acc' is never measured, there are: loss, distance"
    refused(unknown, tuning=fedmq.Tuning(metric="acc"))
    refused(unknown, target=TargetMetric(name="acc", value=1.0))
    refused("nothing is measured, and so nothing can be tuned", tuning=fedmq.Tuning(), problem=Unmeasured())
    refused("num_participants = 9, and the population 'population' has 10",
            contenders=[fedmq.Contender("area", fedmq.Area(num_participants=9))])  # fmt: skip
    assert study(problem=Unmeasured(), seeds=[0]).run(tmp_path, workers=1)


@dataclasses.dataclass(frozen=True)
class Faulty(fedmq.FedBuff):
    """A problem with a mistake that only an update brings to light."""

    def accumulate(self, state, update, staleness):
        raise KeyError(update.participant_id)


class Undealt(Quadratics):
    """A problem that fails when it is dealt out."""

    def deal(self, members, seed):
        raise OSError("no such disk")


def test_what_fails_in_code_of_ones_own_is_told_in_a_line_with_where_and_the_traceback_is_in_the_log(tmp_path):
    faulty = study(contenders=[fedmq.Contender("faulty", Faulty(buffer_size=2))])
    with pytest.raises(
        FedmqError, match=r"^faulty on .*, seed 0: strategy Faulty: .* KeyError: 'p0.*raise KeyError\(update"
    ):
        faulty.run(tmp_path, workers=1)
    assert "Traceback" in (tmp_path / "processes.log").read_text()
    with pytest.raises(
        ConfigError,
        match=r"one by one on population, fives on population: OSError: no such disk \(test_study\.py, line",
    ):
        study(problem=Undealt()).run(tmp_path, workers=1)


@pytest.mark.parametrize("out", ["file", "file/below", "/proc/nowhere"])
def test_a_folder_that_cannot_be_written_to_is_refused_before_anything_runs(tmp_path, out):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"the results cannot be written to .*: .*Name another folder"):
        ran(study(), tmp_path / out)


def test_a_grid_with_two_of_one_name_is_refused():
    with pytest.raises(ConfigError, match="'fives' twice among its strategies"):
        study(contenders=[study().contenders[1]] * 2)
    with pytest.raises(ConfigError, match="none among its seeds"):
        study(seeds=[])


def test_the_report_shows_that_weighting_stale_updates_down_misplaces_more_weight(tmp_path):
    """Slow participants' updates are the stale ones. Weighted down they count even less."""
    contenders = [
        fedmq.Contender(name, fedmq.FedAsync(alpha=0.1, staleness=staleness))
        for name, staleness in (("plain", NoStaleness()), ("weighted down", Polynomial(1.0)))
    ]
    compute = Compute(task_s=Constant(value=1), slowness=LogNormal(median=1, sigma=1))
    speeds = Population(participants=8, compute=compute)
    made = study(
        contenders=contenders,
        populations=[speeds],
        run_settings=until(800, concurrency=8, evaluate_interval_s=20.0),
        seeds=[0],
    )
    results, _ = ran(made, tmp_path)
    plain, down = (100 * misplaced_share(r) for r in results)
    assert down > 1.2 * plain > 10
    page = (tmp_path / "report.html").read_text()
    row = {name: page.index(mean_text([value])) for name, value in (("plain", plain), ("down", down))}
    assert page.index("misplaced weight") < row["plain"] < row["down"]
    assert "its share of all aggregation weights over the share that its client weight intends" in page


ENDLESS = """
import sys
import time

import fedmq
from tests.scenario.studies.test_study import Quadratics, study


class Endless(Quadratics):
    def deal(self, members, seed):
        print("dealing", flush=True)
        time.sleep(3600)


if __name__ == "__main__":
    study(problem=Endless()).run(sys.argv[1], workers=1)
"""


def test_no_process_outlives_a_study_that_is_killed(tmp_path):
    script = tmp_path / "endless.py"
    script.write_text(ENDLESS)
    command = [sys.executable, str(script), str(tmp_path / "results")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as running:
        assert running.stdout.readline() == "dealing\n"
        running.kill()
        running.communicate(timeout=60)  # ends with the last process that holds the other end of the pipe
