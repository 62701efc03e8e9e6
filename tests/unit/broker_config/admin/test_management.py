import pytest

from fedmq.broker_config.admin.management import ManagementAdmin
from fedmq.schemas.errors import ConfigError

SECRET = "s3cret"


@pytest.mark.parametrize(
    "url",
    [
        f"https://admin:{SECRET}@host:port",
        f"amqp://admin:{SECRET}@host",
        f"http://admin:{SECRET}@broker.example",
        f"https://admin:{SECRET}@",
        "https://broker.example",
        f"https://admin:{SECRET}@host?x=1",
    ],
)
def test_a_url_that_cannot_be_used_is_told_without_its_text(url: str) -> None:
    with pytest.raises(ConfigError, match=r"the management API's URL .*expected https://USER") as caught:
        ManagementAdmin(url)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
def test_this_machine_may_be_asked_without_tls(host: str) -> None:
    assert SECRET not in repr(ManagementAdmin(f"http://admin:{SECRET}@{host}:15672"))


def test_an_authority_that_is_no_file_is_told() -> None:
    with pytest.raises(ConfigError, match="ca_file"):
        ManagementAdmin(f"https://admin:{SECRET}@host", ca_file="no-such-file.pem")
