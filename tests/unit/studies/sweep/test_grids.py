"""Grids of values to try: their growth, their edges, and the values themselves."""

import pytest

from fedmq.coordinator.strategies import FedAsync, FedBuff
from fedmq.schemas.messages import TrainingConfig
from fedmq.studies.sweep.grids import LOCAL, Axis, Grid, axes_of, changed, value_at
from fedmq.study.strategy_file import StrategyFromFile
from tests.unit.studies.sweep.test_tuning import cell

ALPHA = "strategy.alpha"


def axis(path=LOCAL, base=0.1):
    return Axis(path, [0.0316, 0.1, 0.316], base=base)


def test_an_axis_grows_by_half_decades_beyond_the_edge_at_which_the_best_one_stands():
    rates = axis()
    assert rates.grow(0.1) == []
    assert rates.grow(0.316) == [1.0]
    assert rates.grow(1.0) == [3.16]
    assert rates.grow(0.0316) == [0.01]
    assert rates.grow(0.01) == [0.00316]
    assert rates.values == [0.0316, 0.1, 0.316, 1.0, 3.16, 0.01, 0.00316]
    assert rates.grow(1.0) == []
    assert Axis(LOCAL, [0.1, 0.2]).grow(0.2) == [], "what a file lists is taken as it is"


def test_a_mixing_rate_grows_up_to_one_and_no_further():
    rates = Axis(ALPHA, [0.19, 0.6], base=0.6, highest=0)
    assert rates.grow(0.6) == [1.0]
    assert rates.grow(1.0) == []
    assert (rates.at_edge(1.0), rates.at_edge(0.19), rates.at_edge(0.6)) == (False, True, False)
    assert rates.grow(0.19) == [0.06]
    assert Axis(LOCAL, [0.1, 1.0]).at_edge(1.0), "of anything else 1 is a value like others"


def test_a_single_value_has_no_edge():
    assert not Axis(LOCAL, [0.1]).at_edge(0.1)
    assert not Axis(ALPHA, [1.0]).at_edge(1.0)


def test_a_grid_gives_each_point_once():
    grid = Grid(cell(FedBuff()), [axis(), Axis("strategy.buffer_size", [2.0, 4.0])])
    first = dict(grid.new())
    assert len(first) == 6
    assert list(grid.new()) == []
    assert {c.strategy.buffer_size for c in first.values()} == {2, 4}
    assert not grid.grow((0.1, 2.0))
    assert grid.grow((0.316, 4.0))
    assert [point for point, _ in grid.new()] == [(1.0, 2.0), (1.0, 4.0)]


def test_what_a_strategy_refuses_is_no_point_of_the_grid():
    grid = Grid(cell(FedAsync()), [Axis(ALPHA, [0.5, 1.5])])
    assert [point for point, _ in grid.new()] == [(0.5,)]


def test_defaults_are_half_decades_around_what_is_there_and_lists_are_taken_once():
    axes, untuned = axes_of(cell(FedAsync(alpha=0.6)), None, None, None)
    assert [(a.path, a.values) for a in axes] == [(LOCAL, [0.0316, 0.1, 0.316]), (ALPHA, [0.19, 0.6, 1.0])]
    assert untuned == []
    axes, _ = axes_of(cell(FedAsync()), None, [0.1, 0.1, 0.2], [0.5, 2.0, 3.0])
    assert [a.values for a in axes] == [[0.1, 0.2], [0.5, 1.0]], "no mixing rate is above 1"
    assert [a.base for a in axes] == [None, None]
    axes, _ = axes_of(cell(FedBuff()), {"strategy.staleness.a": [1.0, 1.0]}, None, None)
    assert [(a.path, a.values) for a in axes] == [("strategy.staleness.a", [1.0])]


def test_a_whole_number_stays_one_and_a_part_of_one_is_refused():
    training = TrainingConfig(learning_rate=0.1)
    strategy, changed_training = changed(
        FedBuff(), training, {"strategy.buffer_size": 5.0, "training.epochs": 3.0, "strategy.staleness.a": 2.0}
    )
    assert (strategy.buffer_size, type(strategy.buffer_size)) == (5, int)
    assert (changed_training.epochs, type(changed_training.epochs)) == (3, int)
    assert strategy.staleness.a == 2.0
    assert changed(FedBuff(), training, {"strategy.buffer_size": 5.5}) is None
    assert value_at(strategy, training, "strategy.staleness.a") == 2.0
    with pytest.raises(KeyError):
        value_at(strategy, training, "run.seed")


def test_what_a_strategy_of_ones_own_refuses_is_no_point_either(tmp_path):
    file = tmp_path / "own.py"
    file.write_text(
        "from fedmq import FedBuff\n\n\ndef build_strategy(rate):\n"
        "    if rate > 1:\n        raise ValueError(rate)\n    return FedBuff(server_learning_rate=rate)\n"
    )
    own = StrategyFromFile(str(file), {"rate": 0.5})
    training = TrainingConfig(learning_rate=0.1)
    assert changed(own, training, {"strategy.rate": 2.0}) is None
    strategy, _ = changed(own, training, {"strategy.rate": 0.25})
    assert (strategy.server_learning_rate, own.server_learning_rate) == (0.25, 0.5)
