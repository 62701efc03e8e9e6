"""Bundles and tokens in files."""

import json
import os

import pytest

from fedmq.fleet import bundle
from fedmq.fleet.bundle import Bundle, Shared, TokenFile
from fedmq.fleet.folder import MOST_BYTES, read_text, write_secret
from fedmq.schemas.errors import ConfigError, FleetError

SHARED = {
    "urls": ("amqps://one.test:5671/fl", "amqps://two.test:5671/fl"), "prefix": "eu.fl", "coordinator_user": "c",
    "coordinator_key": "0f" * 32, "ca": "CA", "max_message_bytes": 100_000, "max_payload_bytes": 200_000,
    "participant_queues": "quorum",
}  # fmt: skip
BUNDLE = Bundle(**SHARED, participant_id="sensor-1", certificate="CERTIFICATE\n", key="KEY\n")
TOKEN = TokenFile(**SHARED, participant_id="sensor-1", user="join-1", password="p" * 43, expires_s=5.0)


@pytest.mark.parametrize("content", [BUNDLE, TOKEN], ids=["bundle", "token"])
def test_what_was_written_is_read(content, tmp_path):
    path = tmp_path / "file"
    old = os.umask(0)
    try:
        bundle.write(path, content)
    finally:
        os.umask(old)
    assert path.stat().st_mode & 0o777 == 0o600
    assert bundle.read(path) == content
    assert [one.name for one in tmp_path.iterdir()] == ["file"]


def test_neither_secret_is_in_a_repr():
    assert "KEY" not in repr(BUNDLE)
    assert "p" * 43 not in repr(TOKEN)


def test_the_broker_settings_of_a_device_have_its_user_at_each_node():
    settings = bundle.broker_settings(BUNDLE, "sensor-1", ca_file="ca.pem", cert_file="own.pem")
    assert settings.url.get_secret_value() == "amqps://sensor-1@one.test:5671/fl,amqps://sensor-1@two.test:5671/fl"
    assert (settings.prefix, settings.max_message_bytes, settings.max_payload_bytes) == ("eu.fl", 100_000, 200_000)
    assert (settings.participant_queues, settings.ca_file, settings.cert_file) == ("quorum", "ca.pem", "own.pem")
    joining = bundle.broker_settings(TOKEN, TOKEN.user, password=TOKEN.password, ca_file="ca.pem")
    assert joining.url.get_secret_value().startswith(f"amqps://join-1:{'p' * 43}@one.test")
    assert "ppp" not in repr(joining)


@pytest.mark.parametrize(
    ("url", "public"),
    [
        ("amqps://u:p@host:5999/fl", "amqps://host:5999/fl"),
        ("amqp://u:p@host:5672/%2F", "amqps://host:5671/%2F"),
        ("amqps://[::1]/", "amqps://[::1]:5671/%2F"),
    ],
)
def test_a_public_url_has_no_user_and_uses_tls(url, public):
    assert bundle.public_url(url) == public


@pytest.mark.parametrize(
    "change",
    [
        {"fedmq": "bundle 2"}, {"more": 1}, {"urls": ()}, {"urls": ("amqp://one.test/",)}, {"prefix": "a/b"},
        {"urls": ("amqps://user:pass@one.test/",)}, {"coordinator_key": "xx"}, {"participant_id": "a b"},
        {"key": "K" * 20_000}, {"max_message_bytes": 1},
    ],
    ids=str,
)  # fmt: skip
def test_a_bundle_that_is_not_ours_is_refused_without_its_contents(change, tmp_path):
    path = tmp_path / "file"
    path.write_text(json.dumps(BUNDLE.model_dump() | {"key": "VERYSECRET"} | change))
    with pytest.raises(ConfigError, match="neither a bundle nor a token") as caught:
        bundle.read(path)
    assert "VERYSECRET" not in str(caught.value)
    assert "KKKK" not in str(caught.value)


def test_text_that_is_no_json_is_refused_without_its_contents(tmp_path):
    (tmp_path / "file").write_text("VERYSECRET")
    with pytest.raises(ConfigError) as caught:
        bundle.read(tmp_path / "file")
    assert "VERYSECRET" not in str(caught.value)


def test_a_file_of_another_kind_or_size_is_our_own_error_and_no_wait(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    with (tmp_path / "giant").open("wb") as file:
        file.truncate(MOST_BYTES + 1)
    (tmp_path / "binary").write_bytes(b"\xff\x00")
    for name, why in {
        "fifo": "no regular file", "giant": "expected at most", "binary": "it is not text", "none": "cannot be read",
        ".": "cannot be read|no regular file",
    }.items():  # fmt: skip
        with pytest.raises(FleetError, match=why):
            read_text(tmp_path / name)


def test_a_link_that_waits_for_a_secret_gets_none(tmp_path):
    (tmp_path / "secret.tmp").symlink_to(tmp_path / "theirs")
    write_secret(tmp_path / "secret", "text")
    assert not (tmp_path / "theirs").exists()
    assert (tmp_path / "secret").read_text() == "text"


def test_a_secret_that_cannot_be_written_is_our_own_error(tmp_path):
    with pytest.raises(FleetError, match="cannot be written"):
        write_secret(tmp_path / "none" / "secret", "VERYSECRET")


def test_all_that_both_sides_share_is_in_a_bundle():
    assert set(Shared.model_fields) == set(SHARED)
