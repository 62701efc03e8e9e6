"""A choice by time is made once in a study."""

import os

import pytest

from fedmq.studies.problems.keras import path_choice as choices
from fedmq.studies.problems.user_randomness import DATA, INITIAL_MODEL, seeded


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(choices, "_folder", None)
    choices.keep_in(tmp_path)
    return tmp_path / choices.FOLDER


def chosen(key, choose):
    return choices.shared(key, ["path"], choose)


def never():
    raise AssertionError("it was chosen before")


def test_the_first_choice_is_every_later_ones(folder):
    assert chosen("a", lambda: {"path": "plain"}) == {"path": "plain"}
    assert chosen("a", never) == {"path": "plain"}
    assert chosen("b", lambda: {"path": "cohort"}) == {"path": "cohort"}
    assert sorted(path.name for path in folder.iterdir()) == ["a.json", "b.json"]


def test_of_two_processes_that_choose_at_one_time_the_first_has_its_way(folder):
    def meanwhile():
        chosen("a", lambda: {"path": "cohort"})
        return {"path": "plain"}

    assert chosen("a", meanwhile) == {"path": "cohort"}
    assert [path.name for path in folder.iterdir()] == ["a.json"]


@pytest.mark.parametrize("damage", ["", "[1]", "{", "{}", '{"path": 1}'])
def test_a_damaged_choice_is_made_again(folder, damage):
    chosen("a", lambda: {"path": "plain"})
    (folder / "a.json").write_text(damage)
    assert chosen("a", lambda: {"path": "cohort"}) == {"path": "cohort"}
    assert chosen("a", never) == {"path": "cohort"}


def test_where_a_file_system_knows_no_links_a_choice_is_kept_all_the_same(folder, monkeypatch):
    def refused(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    assert chosen("a", lambda: {"path": "plain"}) == {"path": "plain"}
    assert chosen("a", never) == {"path": "plain"}
    assert [path.name for path in folder.iterdir()] == ["a.json"]


def test_outside_of_a_study_nothing_is_kept(monkeypatch):
    monkeypatch.setattr(choices, "_folder", None)
    assert chosen("a", lambda: {"path": "plain"}) == {"path": "plain"}
    assert chosen("a", lambda: {"path": "cohort"}) == {"path": "cohort"}


def test_code_of_the_users_draws_by_the_seed_and_leaves_the_processs_random_numbers_as_they_were():
    import random

    import numpy as np

    random.seed(1)
    np.random.seed(1)
    untouched = random.random(), np.random.random()

    def drawn(seed, purpose):
        with seeded(seed, purpose) as own:
            return own, random.random(), np.random.random()

    random.seed(1)
    np.random.seed(1)
    draws = [drawn(5, DATA), drawn(5, DATA), drawn(6, DATA), drawn(5, INITIAL_MODEL), drawn(2**80, DATA)]
    assert draws[0] == draws[1]
    assert len(set(draws)) == 4
    assert (random.random(), np.random.random()) == untouched
