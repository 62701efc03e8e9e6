from __future__ import annotations

import json
import logging
import re

import pytest

from fedmq.schemas.local.event_log import EventLog, line


def test_a_line_is_its_event_and_its_fields_in_the_order_given():
    shown = line("update_accepted", {"participant": "p0", "staleness": 3, "client_weight": 0.5, "again": False})
    assert shown == "event=update_accepted participant=p0 staleness=3 client_weight=0.5 again=False"


def test_an_event_without_fields_is_a_line():
    assert line("started", {}) == "event=started"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("plain", "plain"),
        ("sensor-1.north/7:a,b", "sensor-1.north/7:a,b"),
        ("zürich-τ", "zürich-τ"),
        (12, "12"),
        (0.1 + 0.2, "0.30000000000000004"),
        (None, "None"),
        ({"loss": 0.25}, "\"{'loss': 0.25}\""),
        ("", '""'),
        ("two words", '"two words"'),
        ("a=b", '"a=b"'),
        ('say "hi"', r'"say \"hi\""'),
        ("it's", '"it\'s"'),
        ("back\\slash", r'"back\\slash"'),
        ("a\tb", r'"a\tb"'),
        ("one\nevent=two", r'"one\nevent=two"'),
        ("one\r\nevent=two", r'"one\r\nevent=two"'),
        ('" event=forged x="', r'"\" event=forged x=\""'),
        ("\\", r'"\\"'),
        ("nul\x00", r'"nul\u0000"'),
        ("\x1b[2Jcleared", r'"\u001b[2Jcleared"'),
        ("del\x7f", r'"del\u007f"'),
        ("next\x85line", r'"next\u0085line"'),
        ("no\xa0break", r'"no\u00a0break"'),
        ("line\u2028separator", r'"line\u2028separator"'),
        ("right\u202eto left", r'"right\u202eto left"'),
        ("lone\udc80surrogate", r'"lone\udc80surrogate"'),
        ("\U000e0001tag", r'"\udb40\udc01tag"'),
    ],
)
def test_a_value_is_quoted_only_if_it_has_to_be(value: object, shown: str):
    assert line("e", {"key": value}) == f"event=e key={shown}"


HOSTILE = ["p0 staleness=0", 'x" event="forged', "a\nevent=b", "\\", '\\" y=1', "", " ", "\x85\u2028\r", "=", '"', "'"]


@pytest.mark.parametrize("value", HOSTILE)
def test_no_value_makes_a_second_field_or_a_second_line(value: str):
    shown = line("got", {"participant": value, "staleness": 3})

    assert len(shown.splitlines()) == 1
    fields = re.findall(r'(\w+)=("(?:[^"\\]|\\.)*"|[^\s"]*)(?: |$)', shown)
    assert [key for key, _ in fields] == ["event", "participant", "staleness"]
    assert " ".join(f"{key}={text}" for key, text in fields) == shown, "the fields are the whole line"
    assert json.loads(fields[1][1]) == value


def test_the_name_of_an_event_is_quoted_as_a_value_is():
    assert line("broker_\nup", {}) == r'event="broker_\nup"'


def test_lines_go_through_the_standard_logger_of_that_name(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.DEBUG)
    log = EventLog("fedmq.somewhere")

    log.debug("d")
    log.info("i", percent="100%s")
    log.warning("w", participant="p 0")
    log.error("e")
    log.log(logging.INFO, "l", number=1)

    assert caplog.record_tuples == [
        ("fedmq.somewhere", logging.DEBUG, "event=d"),
        ("fedmq.somewhere", logging.INFO, "event=i percent=100%s"),
        ("fedmq.somewhere", logging.WARNING, 'event=w participant="p 0"'),
        ("fedmq.somewhere", logging.ERROR, "event=e"),
        ("fedmq.somewhere", logging.INFO, "event=l number=1"),
    ]
    assert {record.filename for record in caplog.records} == {"test_event_log.py"}, "a record names its caller"


def test_an_exception_is_an_error_with_its_traceback(caplog: pytest.LogCaptureFixture):
    try:
        raise ValueError("no\nsuch thing")
    except ValueError as error:
        EventLog("fedmq.somewhere").exception("failed", detail=error)

    (record,) = caplog.records
    assert (record.levelno, record.getMessage()) == (logging.ERROR, r'event=failed detail="no\nsuch thing"')
    assert record.exc_info is not None
    assert record.exc_info[0] is ValueError


class _Counting:
    def __init__(self) -> None:
        self.shown = 0

    def __str__(self) -> str:
        self.shown += 1
        return "counted"


def test_nothing_is_formatted_if_the_level_is_off(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.WARNING)
    log, value, calls = EventLog("fedmq.somewhere"), _Counting(), []

    def made() -> str:
        calls.append(1)
        return "made"

    log.info("quiet", value=value, other=made)
    assert (value.shown, calls, caplog.records) == (0, [], [])

    log.warning("loud", value=value, other=made)
    assert (value.shown, calls) == (1, [1])
    assert caplog.messages == ["event=loud value=counted other=made"]


class _Unshowable(Exception):
    def __str__(self) -> str:
        return str(self.args[1])


def test_a_value_that_cannot_be_shown_ends_no_process():
    shown = line("failed", {"detail": _Unshowable("one"), "task": "t-1"})
    assert shown == 'event=failed detail="<_Unshowable that cannot be shown: IndexError>" task=t-1'
