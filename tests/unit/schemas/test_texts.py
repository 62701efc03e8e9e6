"""Texts of peers, escaped on every surface that shows them."""

from __future__ import annotations

import json
import logging
import sys

import pytest

from fedmq.broker_config.dead_letters import dead_letter_of
from fedmq.broker_config.transport import Delivery
from fedmq.schemas.codec import decode
from fedmq.schemas.errors import MalformedMessage, PeerError
from fedmq.schemas.local.console_log import Formatter
from fedmq.schemas.local.event_log import line
from fedmq.schemas.texts import escape, escaped
from tests.unit.schemas.samples import UPDATE_FIELDS, envelope, header

HOSTILE = [
    "\n2026-11-29T13:30:01.123+00:00 INFO fedmq event=update_accepted participant=p0",
    "\r\nover",
    "\x1b[2J\x1b[31mred\x1b]0;title\x07",
    "\u202egpj.exe\u2066\u200f",
    "nul\x00 bell\a back\b\b\b form\f del\x7f c1\x9b2J",
    "\x85\u2028\u2029",
    "\ud83d alone",
    "\U000e0001\ufeff\u00ad",
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_what_does_not_print_is_escaped_as_json_has_it_and_only_once(text):
    shown = escaped(f"näme τ {text}")
    assert shown.isprintable()
    assert shown.startswith("näme τ ")
    assert json.loads(f'"{shown}"') == f"näme τ {text}"
    assert escaped(shown) == shown


def test_a_text_that_prints_stays_as_it_is():
    for text in ("", "plain", 'back\\slash and "quote"', "日本語 zürich-τ 👍"):
        assert escaped(text) is text
    assert escaped("two\nlines\tand a tab", keep="\n") == "two\nlines\\tand a tab"
    assert [escape(c) for c in '\n"\\é\U000e0001'] == ["\\n", '\\"', "\\\\", "\\u00e9", "\\udb40\\udc01"]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_a_log_line_and_a_dead_letters_headers_show_it_escaped(text):
    assert line("e", {"detail": text}).isprintable()
    delivery = Delivery("q", b"", None, None, None, {}, False, 0, None)
    headers = dead_letter_of(delivery, "dead", "malformed", text).headers
    assert headers["detail"] == escaped(text)


@pytest.mark.parametrize("text", [text for text in HOSTILE if "\ud83d" not in text])
def test_an_error_about_a_message_quotes_it_escaped(text):
    wrong = (
        header(body=UPDATE_FIELDS | {"payload": "none", text: 1}),
        header(body=UPDATE_FIELDS | {"payload": "none", "metrics": {text: "x"}}),
        header(body=UPDATE_FIELDS | {"payload": "none", "metrics": {text: float("nan")}}),
        header(body=UPDATE_FIELDS | {"task_id": text}),
        header(kind=text),
        {"fedmq": 1, text: 2, "kind": "hello"},
    )
    for head in wrong:
        with pytest.raises(PeerError) as caught:
            decode(envelope(head))
        assert str(caught.value).isprintable()


def test_every_error_of_a_peer_is_escaped_whoever_raises_it():
    assert str(MalformedMessage("a\nb")) == "a\\nb"
    assert str(PeerError()) == ""


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_a_traceback_in_the_log_holds_no_line_that_could_be_another_record(text):
    try:
        raise ValueError(text)
    except ValueError:
        record = logging.LogRecord("fedmq", logging.ERROR, __file__, 1, "event=trainer_error", (), sys.exc_info())
    first, *others = Formatter("%(asctime)s %(message)s").format(record).split("\n")
    assert first.endswith("event=trainer_error")
    assert others[0] == "    Traceback (most recent call last):"
    assert all(other.startswith("    ") and other.isprintable() for other in others)
