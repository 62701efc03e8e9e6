import pytest

from fedmq.broker_config.amqp.address import (
    Addresses,
    BrokerAddress,
    connection_refusal,
    declaration_refusal,
    publish_refusal,
    waits_in_place,
)
from fedmq.broker_config.amqp.transport import AmqpTransport
from fedmq.schemas.errors import (
    BrokerError,
    BrokerRefused,
    BrokerUnavailable,
    ConfigError,
    PublishError,
    TopologyConflict,
    Unroutable,
)


def test_every_part_of_a_url_is_read_and_decoded() -> None:
    found = BrokerAddress.parse("amqps://me%40home:p%2Fw%3A@broker.example:5999/my%2Fhost")
    assert found == BrokerAddress("broker.example", 5999, "me@home", "p/w:", "my/host", tls=True)


@pytest.mark.parametrize(
    ("url", "port", "vhost", "user"),
    [
        ("amqp://localhost", 5672, "/", "guest"),
        ("amqp://localhost/", 5672, "/", "guest"),
        ("amqp://localhost/%2F", 5672, "/", "guest"),
        ("amqps://me:x@localhost/v", 5671, "v", "me"),
    ],
)
def test_what_a_url_leaves_out_is_as_in_rabbitmq(url: str, port: int, vhost: str, user: str) -> None:
    found = BrokerAddress.parse(url)
    assert (found.port, found.vhost, found.user) == (port, vhost, user)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://u:sesame@host/", "scheme is 'http'"),
        ("u:sesame@host", "no scheme"),
        ("localhost:5672", "no scheme"),
        ("amqp://u:ses#ame@host/", "no host|not a number|goes on after"),
        ("amqp://u:sesame@host:port/", "port is not a number"),
        ("amqp://u:sesame@host:99999/", "port is not a number"),
        ("amqp://u:sesame@/v", "names no host"),
        ("amqp://u:sesame@host/v?heartbeat=5", r"with \? or #"),
        ("amqp://u:sesame@host/a/b", "more than one /"),
        ("amqp://u:ses/ame@host/a", "not a number|more than one /"),
        ("amqp://[::1/", "cannot be split"),
        ("", "no scheme"),
    ],
)
def test_a_wrong_url_says_what_is_expected_and_never_the_password(url: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why) as raised:
        AmqpTransport(url, name="t")
    assert "expected amqp://USER:PASSWORD@HOST:PORT/VHOST" in str(raised.value)
    assert "ses" not in str(raised.value).replace("cannot be split into its parts", "")


def test_the_password_is_not_in_the_repr() -> None:
    assert "sesame" not in repr(BrokerAddress.parse("amqp://u:sesame@h/"))


def test_an_ipv6_host_is_shown_with_brackets() -> None:
    assert str(BrokerAddress.parse("amqp://[::1]:5673/")) == "[::1]:5673"


def test_refusals_of_a_login_are_told_apart_from_a_broker_in_trouble() -> None:
    address = BrokerAddress.parse("amqp://guest:x@far.example/v")
    login = connection_refusal(address, 403, "ACCESS_REFUSED")
    assert isinstance(login, BrokerRefused)
    assert "from its own machine only" in str(login)
    for words in ("vhost v not found", "access to vhost 'v' refused for user 'guest'"):
        vhost = connection_refusal(address, 530, f"NOT_ALLOWED - {words}")
        assert isinstance(vhost, BrokerRefused)
        assert "add_vhost" in str(vhost)
    assert connection_refusal(address, 541, "INTERNAL_ERROR") is None
    assert connection_refusal(address, 320, "CONNECTION_FORCED") is None


@pytest.mark.parametrize(
    "words",
    [
        "connection refused for user 'guest': user connection limit (1) is reached",
        "access to vhost '/' refused for user 'guest': connection limit (1) is reached",
        "number of channels opened for user 'guest' has reached the maximum allowed user limit of (2)",
    ],
)
def test_a_limit_of_connections_or_channels_is_waited_for(words: str) -> None:
    """The words of RabbitMQ 3.10.8 and 4.0.5."""
    found = connection_refusal(BrokerAddress.parse("amqp://guest:x@h/"), 530, f"NOT_ALLOWED - {words}")
    assert type(found) is BrokerUnavailable
    assert "set_user_limits" in str(found)


@pytest.mark.parametrize(
    ("code", "words", "error", "in_place"),
    [
        (404, "NOT_FOUND - no queue 'q' in vhost 'v'", BrokerUnavailable, True),
        (404, "NOT_FOUND - no exchange 'x' in vhost 'v'", BrokerUnavailable, True),
        (404, "NOT_FOUND - home node 'n' of durable queue 'q' is down or inaccessible", BrokerUnavailable, False),
        (406, "PRECONDITION_FAILED - cannot declare queue 'q': queue limit in vhost 'v' (1) is reached",
         BrokerUnavailable, True),
        (406, "PRECONDITION_FAILED - inequivalent arg 'x-max-length' for queue 'q'", TopologyConflict, True),
        (403, "ACCESS_REFUSED - configure access to queue 'q' refused", BrokerRefused, False),
    ],
)  # fmt: skip
def test_what_somebody_else_can_put_right_is_told_apart(
    code: int, words: str, error: type[BrokerError], in_place: bool
) -> None:
    found = declaration_refusal(BrokerAddress.parse("amqp://u:x@h/v"), "queue 'q'", code, words)
    assert type(found) is error
    assert waits_in_place(found, code, words) is in_place


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (403, BrokerRefused),
        (404, BrokerUnavailable),
        (405, TopologyConflict),
        (406, TopologyConflict),
        (504, BrokerUnavailable),
    ],
)
def test_refusals_of_a_declaration_name_what_and_why(code: int, error: type[Exception]) -> None:
    address = BrokerAddress.parse("amqp://u:x@h/v")
    found = declaration_refusal(address, "queue 'q'", code, "the broker's words")
    assert type(found) is error
    assert "queue 'q'" in str(found)
    assert "the broker's words" in str(found)


@pytest.mark.parametrize(("code", "error"), [(404, Unroutable), (403, BrokerRefused), (406, PublishError)])
def test_refusals_of_a_publish_have_their_own_types(code: int, error: type[Exception]) -> None:
    assert type(publish_refusal("message 'm'", code, "words")) is error


def test_tls_files_with_a_plain_url_are_a_mistake() -> None:
    with pytest.raises(ConfigError, match="use amqps://"):
        AmqpTransport("amqp://h/", name="t", ca_file="ca.pem")


def test_a_missing_tls_file_is_named() -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.pem"):
        AmqpTransport("amqps://h/", name="t", ca_file="nowhere.pem")


def test_several_urls_are_taken_in_their_order_round_and_round() -> None:
    found = Addresses("amqp://u:a,b@one/v,amqps://u:c@two/v, amqp://three:5673/v")
    seen = []
    for _ in range(4):
        seen.append((str(found.current), found.current.password))
        found.next()
    assert seen == [("one:5672", "a,b"), ("two:5671", "c"), ("three:5673", "guest"), ("one:5672", "a,b")]
    assert str(found) == "one:5672, two:5671, three:5673"


@pytest.mark.parametrize(
    ("urls", "why"),
    [
        ("amqp://u:sesame@one,two:5672/v", "several hosts"),
        ("amqp://u:sesame@one/v,two/v", "more than one /"),
        ("amqp://u:sesame@one/v,amqp://u:sesame@two/w", "virtual hosts 'v' and 'w'"),
        ("amqp://u:sesame@one/v,amqp://u:sesame@one/v", "one address twice"),
        ("amqp://u:sesame@one/v,amqp://", "names no host"),
    ],
)
def test_urls_that_do_not_belong_together_are_refused_without_their_passwords(urls: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why) as raised:
        Addresses(urls)
    assert "ses" not in str(raised.value)
