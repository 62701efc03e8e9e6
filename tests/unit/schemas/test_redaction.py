import logging
import subprocess
import sys
import time

import pytest

from fedmq.broker_config.amqp.address import BrokerAddress
from fedmq.schemas import redaction
from fedmq.schemas.errors import BrokerError, FedmqError
from fedmq.schemas.local.event_log import EventLog, line
from fedmq.schemas.local.log_filter import RedactingFilter
from fedmq.schemas.redaction import keep_secret, redacted

SECRET = "s3cr3t/p@ss word"


@pytest.fixture(autouse=True)
def _own_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redaction, "_secrets", set())


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("at amqp://u:sesame@host:5672/v", "at amqp://u:***@host:5672/v"),
        ("amqps://u:p@ss/word@host/", "amqps://u:***@host/"),
        ("amqp://:sesame@host", "amqp://:***@host"),
        ("amqp://a:one@h1/,amqp://b:two@h2/", "amqp://a:***@h1/,amqp://b:***@h2/"),
        ("('amqp://a:one@h1/', 'x@y')", "('amqp://a:***@h1/', 'x@y')"),
        ("http://proxy:hunter2@squid:3128", "http://proxy:***@squid:3128"),
        ("postgresql+psycopg://u:pw@db/x", "postgresql+psycopg://u:***@db/x"),
        ("amqp://host:5672/v and me@home", "amqp://host:5672/v and me@home"),
        ("expected amqp://USER:PASSWORD@HOST:PORT/VHOST", "expected amqp://USER:PASSWORD@HOST:PORT/VHOST"),
    ],
)
def test_the_password_of_a_url_is_never_shown(text: str, shown: str) -> None:
    assert redacted(text) == shown


@pytest.mark.parametrize("text", [SECRET, "s3cr3t/p%40ss%20word", "s3cr3t%2Fp%40ss%20word"])
def test_a_known_secret_is_not_shown_in_any_of_its_forms(text: str) -> None:
    assert redacted(f"so {text}!") == f"so {text}!"
    keep_secret(SECRET)
    assert redacted(f"so {text}!") == "so ***!"


def test_a_short_secret_is_no_reason_to_hide_half_of_a_sentence() -> None:
    keep_secret("guest")
    assert redacted("the user 'guest'") == "the user 'guest'"


def test_a_url_that_is_parsed_makes_its_password_a_secret() -> None:
    BrokerAddress.parse("amqp://u:s3cr3t%2Fp%40ss%20word@host/")
    assert redacted(f"login with {SECRET}") == "login with ***"


def test_no_error_of_ours_holds_a_secret() -> None:
    keep_secret(SECRET)
    error = BrokerError(f"refused {SECRET} at amqp://u:sesame@host/", 7)
    assert error.args == ("refused *** at amqp://u:***@host/", 7)
    assert isinstance(error, FedmqError)


def test_no_line_of_ours_holds_a_secret() -> None:
    keep_secret(SECRET)
    assert line("lost", {"detail": ValueError(f"no {SECRET}"), "url": "amqp://u:sesame@host/"}) == (
        'event=lost detail="no ***" url=amqp://u:***@host/'
    )


def test_no_line_of_other_libraries_and_no_traceback_holds_a_secret(caplog: pytest.LogCaptureFixture) -> None:
    keep_secret(SECRET)
    caplog.handler.addFilter(RedactingFilter())
    try:
        theirs = logging.getLogger("another.library")
        theirs.error("login of %s failed with %r", "amqp://u:sesame@host/", {"password": SECRET})
        theirs.error("wrong arguments %s %s", 1)
        try:
            raise ValueError(f"no {SECRET}")
        except ValueError:
            theirs.exception("it failed")
            EventLog("fedmq.test").exception("ours_failed")
    finally:
        caplog.handler.filters.clear()
    assert "sesame" not in caplog.text
    assert "s3cr3t" not in caplog.text
    assert "login of amqp://u:***@host/ failed with {'password': '***'}" in caplog.text
    assert caplog.text.count("ValueError: no ***") == 2


UNCAUGHT = """
import threading
from fedmq.schemas.local.log_filter import redact_uncaught
redact_uncaught()
def fail(): raise ValueError("amqp://u:sesame@host/")
thread = threading.Thread(target=fail)
thread.start()
thread.join()
fail()
"""


def test_an_exception_that_nobody_caught_is_shown_without_secrets() -> None:
    done = subprocess.run([sys.executable, "-c", UNCAUGHT], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr.count("ValueError: amqp://u:***@host/") == 2
    assert done.stderr.count("sesame") == 0


@pytest.mark.parametrize("text", ["a" * 100_000 + "://", "a://b:" * 20_000, "a://b:" + "c" * 100_000, "://" * 50_000])
def test_no_text_takes_long(text: str) -> None:
    began = time.process_time()
    redacted(text)
    assert time.process_time() - began < 5.0, "quadratic time would be minutes"
