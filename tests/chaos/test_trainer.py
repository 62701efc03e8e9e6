"""kill -9 of the process that trains, at named points: it costs the task alone, and one update a task counts."""

import re

import pytest

from tests.support.full import FULL

pytestmark = pytest.mark.broker

POINTS = ("trainer-mid-training", "trainer-done")
NTHS = (1, 3) if FULL else (2,)


@pytest.mark.parametrize("nth", NTHS)
def test_a_process_that_is_killed_while_it_trains_costs_its_task_alone(federation, nth):
    coordinator = federation.coordinator()
    killed = [federation.participant(f"p{i}", fault=f"{point}:{nth}") for i, point in enumerate(POINTS)]
    assert (coordinator.ended(), *(one.ended() for one in killed)) == (0, 0, 0)
    for point, one in zip(POINTS, killed, strict=True):
        assert one.text.count("fault point ") == 1 == one.text.count(f"fault point {point}\n")
        assert "did not return: its process was killed by SIGKILL: was there not enough memory?" in one.text
        assert len(re.findall("event=trainer_process_started", one.text)) == 2
    declined = re.findall(r"event=task_declined participant=(p.) .* reason=trainer_error", coordinator.text)
    assert sorted(declined) == ["p0", "p1"]
    rows = federation.check()
    assert {row.participant_id for row in rows} == {"p0", "p1"}


def test_a_process_that_is_killed_before_it_tells_of_its_trainer_ends_the_participant_in_one_sentence(federation):
    dies = federation.participant("p0", fault="trainer-built")
    assert dies.ended() == 2
    assert dies.text.count("fault point trainer-built\n") == 1
    said = "could not be built: its process was killed by SIGKILL: was there not enough memory?"
    assert dies.text.splitlines()[-1].startswith("fedmq: The trainer of ")
    assert said in " ".join(dies.text.split())
