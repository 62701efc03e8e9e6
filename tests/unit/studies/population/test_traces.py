import json
import math
from dataclasses import replace
from itertools import islice

import pytest

from fedmq.schemas.errors import InputError
from fedmq.studies.population.laws import Constant
from fedmq.studies.population.population import Network, Population, Presence
from fedmq.studies.population.traces import Device, read_traces


def test_fedscale_capacities_become_seconds_and_bytes(tmp_path):
    file = tmp_path / "capacity.json"
    file.write_text(json.dumps({"1": {"computation": 100.0, "communication": 8.0}}))
    (device,) = read_traces(file)
    assert device == Device(example_s=0.3, down_bytes_per_s=1024.0, up_bytes_per_s=1024.0)


def test_fedscale_behaviour_turns_on_and_off_and_repeats(tmp_path):
    file = tmp_path / "behave.json"
    file.write_text(json.dumps([{"active": [10, 50], "inactive": [20, 60], "finish_time": 100, "model": "x"}]))
    (device,) = read_traces(file)
    turns = list(islice(device.turns(), 6))
    assert turns == [(False, 10), (True, 20), (False, 50), (True, 60), (False, 110), (True, 120)]


def test_what_fedscale_has_in_two_files_is_one_device(tmp_path):
    capacity, behaviour = tmp_path / "capacity.json", tmp_path / "behave.json"
    capacity.write_text(json.dumps([{"computation": 100.0, "communication": 8.0}, {"computation": 200.0}]))
    behaviour.write_text(json.dumps([{"active": [10 + i], "inactive": [20], "finish_time": 100} for i in range(3)]))
    population = Population(participants=6, trace=[str(capacity), str(behaviour)])
    devices = [m.device for m in population.members(0)]
    assert [(d.example_s, d.down_bytes_per_s, d.on_intervals, d.period_s) for d in devices] == [
        (0.3 if i % 2 == 0 else 0.6, 1024.0 if i % 2 == 0 else None, ((10.0 + i % 3, 20.0),), 100.0) for i in range(6)
    ]
    assert population.traces == (str(capacity), str(behaviour))
    backwards = Population(participants=6, trace=[str(behaviour), str(capacity)])
    assert [m.device for m in backwards.members(0)] == devices
    with pytest.raises(ValueError, match="at least 1 item"):
        Population(participants=1, trace=[])


def test_of_two_files_the_first_that_knows_a_thing_says_it_always_on_too(tmp_path):
    always, sometimes = tmp_path / "always.csv", tmp_path / "sometimes.csv"
    always.write_text("on_intervals,period_s,examples\n0-100,100,\n")
    sometimes.write_text("on_intervals,period_s,examples\n0-10,50,7\n")
    (member,) = Population(participants=1, trace=[str(always), str(sometimes)]).members(0)
    assert (member.device.on_intervals, member.device.period_s, member.device.examples) == ((), 100, 7)
    (other,) = Population(participants=1, trace=[str(sometimes), str(always)]).members(0)
    assert (other.device.on_intervals, other.device.period_s) == (((0, 10),), 50)


def test_a_device_that_is_never_active_is_refused(tmp_path):
    file = tmp_path / "behave.json"
    file.write_text(json.dumps([{"active": [], "inactive": [], "finish_time": 100}]))
    with pytest.raises(InputError, match="device 1: the device is never active: leave it out"):
        read_traces(file)


def test_who_is_on_for_the_whole_period_has_no_turns(tmp_path):
    file = tmp_path / "devices.csv"
    file.write_text("on_intervals,period_s\n0-10,10\n0-9,10\n")
    always, nearly = read_traces(file)
    assert (always.on_intervals, nearly.on_intervals) == ((), ((0.0, 9.0),))
    presence = Presence(Population(participants=1, trace=str(file)).members(0)[0], None, 0)
    assert (presence.on, presence.until) == (True, math.inf)


@pytest.mark.parametrize(("begin", "end", "period"), [(0.1, 0.7, 1.0), (0.0, 0.1, 0.3), (0.2, 0.3, 0.3)])
def test_turns_go_on_whatever_their_edges_are_rounded_to(begin, end, period):
    member = replace(
        Population(participants=1).members(0)[0], device=Device(None, None, None, None, ((begin, end),), period)
    )
    presence = Presence(member, None, 0)
    on_s, at = 0.0, 0.0
    for _ in range(2000):
        assert presence.until >= at
        on_s += (presence.until - at) * presence.on
        at = presence.until
        presence.turn()
    assert at == pytest.approx(1000 * period, rel=0.001)
    assert on_s / at == pytest.approx((end - begin) / period, rel=0.001)


def test_a_csv_row_leaves_the_laws_where_it_is_silent(tmp_path):
    file = tmp_path / "devices.csv"
    file.write_text("example_s,up_bytes_per_s,examples,on_intervals,period_s\n0.5,,30,0-5,10\n,100,,,\n")
    population = Population(
        participants=3, trace=str(file), examples=Constant(value=7), network=Network(up_bytes_per_s=Constant(value=10))
    )
    first, second, third = population.members(0)
    assert (first.example_s, first.up_s_per_byte, first.examples) == (0.5, 0.1, 30)
    assert (second.example_s, second.up_s_per_byte, second.examples) == (0.0, 0.01, 7)
    assert third.device == first.device
    presence = Presence(first, None, 0)
    assert (presence.on, presence.until) == (True, 5)
    presence.turn()
    assert (presence.on, presence.until) == (False, 10)
    presence.turn()
    assert (presence.on, presence.until) == (True, 15)
    assert Presence(second, None, 0).on


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("speed\n3\n", "unknown field 'speed'"),
        ("example_s\nfast\n", "device 1: example_s is 'fast', expected a number above 0"),
        ("on_intervals\n5-3\n", "overlap or run backwards"),
        ("on_intervals,period_s\n0-30,20\n", "beyond its period"),
        ("on_intervals\nalways\n", "cannot be read"),
        ("example_s\n", "holds no devices"),
        ("example_s\n1,2\n", "device 1 has more cells than there are columns"),
    ],
)
def test_a_mistake_in_a_trace_is_named_with_its_device(tmp_path, text, message):
    file = tmp_path / "bad.csv"
    file.write_text(text)
    with pytest.raises(InputError, match=message):
        read_traces(file)


def test_pickles_are_not_read(tmp_path):
    with pytest.raises(InputError, match=r"\.csv or a \.json"):
        read_traces(tmp_path / "client_device_capacity")
