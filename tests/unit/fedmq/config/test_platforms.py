import pytest

from fedmq.config.file import load_config
from fedmq.schemas.errors import ConfigError

GOOD = """
[run]
run_id = "r1"
stop = { max_versions = 5 }
[strategy]
name = "fedbuff"
buffer_size = 4
"""


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "federation.toml"
    path.write_text(GOOD)
    return path


@pytest.mark.parametrize("service", ["FEDMQ", "FEDMQ_BROKER", "FEDMQ_RUN_1"])
@pytest.mark.parametrize("address", ["10.0.0.7", "[fd00::7]"])
def test_what_kubernetes_tells_of_its_services_is_passed_over(path, service, address):
    plain = address.strip("[]")
    made = {
        "SERVICE_HOST": plain,
        "SERVICE_PORT": "5672",
        "SERVICE_PORT_AMQP": "5672",
        "SERVICE_PORT_AMQP_TLS": "5671",
        "PORT": f"tcp://{address}:5672",
        "PORT_5672_TCP": f"tcp://{address}:5672",
        "PORT_5672_TCP_PROTO": "tcp",
        "PORT_5672_TCP_PORT": "5672",
        "PORT_5672_TCP_ADDR": plain,
        "PORT_53_UDP": f"udp://{address}:53",
        "PORT_53_UDP_PROTO": "udp",
    }
    environ = {f"{service}_{name}": value for name, value in made.items()}
    assert load_config(path, environ=environ) == load_config(path, environ={})


def test_what_docker_tells_of_a_linked_container_is_passed_over(path):
    environ = {
        "FEDMQ_NAME": "/trainer/fedmq",
        "FEDMQ_ENV_RABBITMQ_NODENAME": "rabbit@here",
        "FEDMQ_PORT": "tcp://172.17.0.5:5672",
        "FEDMQ_PORT_5672_TCP_START": "tcp://172.17.0.5:5672",
        "FEDMQ_PORT_5672_TCP_PORT_END": "5673",
    }
    assert load_config(path, environ=environ).run.run_id == "r1"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("FEDMQ_PORT", "5672"),  # a person's idea of a setting
        ("FEDMQ_BROKER_PORT", "5672"),
        ("FEDMQ_HOST", "10.0.0.7"),
        ("FEDMQ_NAME", "mine"),
        ("FEDMQ_ENV_DEBUG", "1"),  # there is no link
        ("FEDMQ_BROKER_URI", "amqp://broker"),
        ("FEDMQ_SERVICE_PORTS", "5672"),
        ("FEDMQ_SERVICE_HOST", "ours, theirs"),
    ],
)
def test_a_setting_that_we_do_not_have_is_still_an_error(path, name, value):
    with pytest.raises(ConfigError, match=f"{name}: unknown environment variable"):
        load_config(path, environ={name: value})


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16-le", "utf-16-be"])
def test_a_byte_order_mark_is_no_part_of_the_file(path, encoding):
    mark = "" if encoding == "utf-8-sig" else "\ufeff"
    path.write_bytes((mark + "# größer\n" + GOOD).encode(encoding))
    assert load_config(path, environ={}).run.run_id == "r1"


def test_a_file_in_another_encoding_is_refused_with_what_to_do(path):
    path.write_bytes(("# größer\n" + GOOD).encode("latin-1"))
    with pytest.raises(ConfigError, match=r"is not text in UTF-8 \(.*\): save it as UTF-8"):
        load_config(path, environ={})
