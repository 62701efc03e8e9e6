"""Task ids: what they say, and that nobody else can make one up."""

import pytest

from fedmq.coordinator.decisions.tasks.names import TaskName, TaskNames, parsed
from fedmq.schemas.messages import is_identifier, run_uid

KEY = "0123456789abcdef0123456789abcdef"
NAMES = TaskNames("abcdef01", KEY, "00c0ffee")


def test_an_id_without_a_nonce_is_plain():
    assert TaskNames("abcdef01", KEY).name(17, 5, "a") == "abcdef01-17"
    assert parsed("abcdef01-17") == TaskName("abcdef01", 17, None, None, None)


def test_an_id_says_its_run_number_version_and_start():
    task_id = NAMES.name(17, 5, "a")
    assert task_id == "abcdef01-17.5.00c0ffeef9dd3cf0f444"
    assert NAMES.proved(task_id, "a") == TaskName("abcdef01", 17, 5, "00c0ffee", "f9dd3cf0f444")
    assert run_uid(task_id) == "abcdef01"


def test_two_starts_give_the_same_task_two_ids_and_each_knows_the_others():
    other = TaskNames("abcdef01", KEY, "deadbeef")
    assert other.name(17, 5, "a") != NAMES.name(17, 5, "a")
    assert NAMES.proved(other.name(17, 5, "a"), "a") == parsed(other.name(17, 5, "a"))


@pytest.mark.parametrize(
    ("task_id", "who"),
    [
        (NAMES.name(17, 5, "a"), "b"),  # another participant's
        (NAMES.name(17, 5, "a").replace("-17.", "-18."), "a"),
        (NAMES.name(17, 5, "a").replace(".5.", ".6."), "a"),
        (TaskNames("abcdef01", KEY[::-1], "00c0ffee").name(17, 5, "a"), "a"),
        ("abcdef01-17", "a"),
        ("abcdef01-17.5.00c0ffee", "a"),
        ("", "a"),
        ("abcdef01-99999999999999999.5.00c0ffee000000000000", "a"),
    ],
)
def test_nothing_else_is_proved(task_id, who):
    assert NAMES.proved(task_id, who) is None


def test_without_a_key_nothing_is_proved():
    assert TaskNames("abcdef01", "", "00c0ffee").proved(NAMES.name(1, 0, "a"), "a") is None


def test_the_longest_id_is_an_identifier():
    assert is_identifier(NAMES.name(10**16 - 1, 10**16 - 1, "a"))


def test_the_next_generation_has_a_uid_that_no_other_start_makes():
    after = NAMES.next_generation()
    assert (after.uid, after.key, after.nonce) == ("a476c2eb", KEY, "00c0ffee")
    assert TaskNames("abcdef01", KEY, "deadbeef").next_generation().uid != after.uid
