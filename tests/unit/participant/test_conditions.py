from types import SimpleNamespace

import pytest

from fedmq.participant.conditions import checker, first_unmet, metered, not_charging, not_idle


def test_the_first_condition_that_does_not_hold_is_named_and_the_rest_not_asked() -> None:
    asked = []

    def probe(name: str, answer: str | None) -> str | None:
        asked.append(name)
        return answer

    probes = [lambda: probe("a", None), lambda: probe("b", "b does not hold"), lambda: probe("c", None)]
    assert first_unmet(probes) == "b does not hold"
    assert asked == ["a", "b"]
    assert first_unmet([]) is None


def test_a_condition_that_raises_does_not_hold() -> None:
    check = checker((), lambda: 1 / 0 > 0)
    assert check is not None
    assert check() == "a condition could not be checked: ZeroDivisionError: division by zero"


@pytest.mark.parametrize(("answer", "unmet"), [(True, None), (False, "the app's conditions() says no")])
def test_the_users_own_condition_counts(answer: bool, unmet: str | None) -> None:
    check = checker((), lambda: answer)
    assert check is not None
    assert check() == unmet


def test_without_conditions_there_is_nothing_to_check() -> None:
    assert checker(()) is None


def test_the_probes_of_this_machine_answer() -> None:
    check = checker(("idle", "charging", "unmetered"))
    assert check is not None
    answer = check()
    assert answer is None or answer.startswith(("not idle", "not charging", "metered"))


def test_idle_is_below_the_limit() -> None:
    assert not_idle(0.49, limit=0.5) is None
    assert not_idle(0.5, limit=0.5) == "not idle: 50% of the processors in use, limit 50%"


def test_charging_is_the_cable_or_no_battery() -> None:
    assert not_charging(None) is None
    assert not_charging(SimpleNamespace(power_plugged=True, percent=5.0)) is None
    assert not_charging(SimpleNamespace(power_plugged=None, percent=5.0)) is None
    assert not_charging(SimpleNamespace(power_plugged=False, percent=41.6)) == "not charging: on battery, 42 % left"


@pytest.mark.parametrize(
    ("output", "is_metered"),
    [
        ("GENERAL.METERED:no (guessed)\nGENERAL.METERED:unknown\n", False),
        ("GENERAL.METERED:unknown\n\nGENERAL.METERED:yes (guessed)\n", True),
        ("GENERAL.METERED:yes\n", True),
        ("", False),
    ],
)
def test_metered_is_what_network_manager_says(output: str, is_metered: bool) -> None:
    assert (metered(output) is not None) is is_metered
