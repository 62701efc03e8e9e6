"""Values that a script makes: their mistakes are ours, in one line without pydantic's text."""

import pytest
from pydantic import TypeAdapter, ValidationError

import fedmq
from fedmq.schemas.errors import InvalidValue

TASKS = {"task_s": {"name": "expo", "mean": 1}}


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: fedmq.Population(participants=0), "Population: participants: got 0, expected greater than or equal"),
        (lambda: fedmq.Population(participants=1, compute=TASKS), "compute.task_s: got a dict of 2. Input tag 'expo'"),
        (lambda: fedmq.Population(participants=1, dropouts=1), "dropouts is an unknown key, .*; did you mean dropout?"),
        (lambda: fedmq.Population(participants=1, network={"x": 1}), "Population: network.x is an unknown key"),
        (fedmq.Softmax, "Softmax: data is missing"),
        (lambda: fedmq.StudyRun(stop={}, concurrency=0, lease_s=-1), "concurrency: got 0.*; lease_s: got -1"),
        (lambda: fedmq.UplinkSettings(codec="int 8"), "UplinkSettings: codec is 'int 8', .* mean int8"),
        (lambda: fedmq.RunSettings(run_id="a\x1b", stop={}), r"run_id: got 'a\\x1b'. String should match"),
    ],
)
def test_a_mistake_says_what_was_got_and_what_is_expected_in_a_line(make, said):
    with pytest.raises(InvalidValue, match=said) as refused:
        make()
    assert isinstance(refused.value, fedmq.ConfigError | ValueError)
    assert refused.value.__cause__ is refused.value.__context__ is None
    assert not {"\n", "\x1b"} & set(str(refused.value))
    assert "pydantic" not in str(refused.value)


def test_the_tables_of_a_file_keep_their_places():
    with pytest.raises(ValidationError) as refused:
        TypeAdapter(dict[str, fedmq.Population]).validate_python({"p": {"participants": 0}})
    assert refused.value.errors()[0]["loc"] == ("p", "participants")


def test_a_value_inside_of_another_is_as_it_was_made():
    goal = fedmq.TargetMetric(name="loss", value=0.5)
    assert fedmq.StopSettings(target=goal).target is goal
    assert goal.model_copy(update={"value": 0.25}).value == 0.25
