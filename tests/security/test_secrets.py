"""The broker's password is in no command line, no output and no file of a federation that is in trouble."""

import os
import secrets
import stat
from pathlib import Path

import psutil
import pytest

from fedmq.broker_config.transport import Message
from tests.chaos.harness import CONFIG, Federation
from tests.integration.front.terminal import Terminal

LEAKY = '''

class Leaky(Trainer):
    """A trainer whose error has the URL in it. Its own process has none, so it looks at its parent's."""

    def train(self, parameters, config):
        assert "FEDMQ_BROKER_URL" not in os.environ
        theirs = Path(f"/proc/{os.getppid()}/environ").read_bytes().decode().split("\\0")
        url = next(one for one in theirs if one.startswith("FEDMQ_BROKER_URL=")).partition("=")[2]
        raise ValueError(f"no data base at {url}")


def build_trainer(participant_id):
    Path("calls").mkdir(exist_ok=True)
    print("a line of the user's own, on standard output")
    return (Leaky if participant_id == "leaky" else Trainer)(participant_id)
'''


def holding(folder: Path, words: tuple[str, ...]) -> list[Path]:
    """Return the files that hold one of these words."""
    files = [path for path in folder.rglob("*") if stat.S_ISREG(path.lstat().st_mode)]
    assert len(files) > 10
    return [path for path in files if any(word.encode() in path.read_bytes() for word in words)]


@pytest.mark.broker
@pytest.mark.timeout(240)
def test_the_brokers_password_is_in_no_command_line_no_output_and_no_file(tmp_path, rabbitmq_node, prefix):
    password, wrong = rabbitmq_node._password, f"wrong-{secrets.token_hex(8)}"
    federation = Federation(tmp_path, rabbitmq_node.url, prefix, max_versions=4)
    app = tmp_path / "app.py"
    app.write_text(app.read_text() + LEAKY)
    others = []
    try:
        federation.hold("p0", wait=False)
        coordinator = federation.coordinator()
        named = [coordinator, *(federation.participant(name) for name in ("p0", "leaky"))]
        coordinator.wait_for("task_declined|declined")
        federation.hold("p0")
        federation.witness._transport.publish(
            Message(federation.topology.updates.exchange, federation.topology.updates.routing_key, b"no envelope", "m1")
        ).result(30)
        federation.witness.wait_for_depth(federation.topology.dead, 1)
        refused = Terminal(
            tmp_path, "participant", *CONFIG, "--id", "p9", FEDMQ_BROKER_URL=rabbitmq_node.url_for(password=wrong)
        )
        others = [
            refused,
            Terminal(tmp_path, "status", *CONFIG),
            Terminal(tmp_path, "status", *CONFIG, "--json", FEDMQ_BROKER_URL=rabbitmq_node.url),
            Terminal(tmp_path, "doctor", *CONFIG, FEDMQ_BROKER_URL=rabbitmq_node.url),
        ]
        processes = [child for one in named for child in family(one.pid)]
        shown = [word for process in processes for word in process.cmdline()]
        assert any("fedmq.app.model_worker" in word for word in shown), "the worker was looked at"
        assert not [word for word in shown if password in word or wrong in word]
        with_secret = {process.pid for process in processes if password.encode() in environ_of(process.pid)}
        assert with_secret == {one.pid for one in named}, "a worker and a watchdog need no password"
        assert refused.ended() == 3
        assert "refused the login" in refused.text
        for one in others[1:]:
            one.ended()
        federation.release("p0")
        coordinator.ended()
        text = "".join(one.text for one in (*named, *others))
        assert "no data base at amqp://fedmq:***@127.0.0.1" in text, "the error with the URL was shown"
        assert password not in text
        assert wrong not in text
    finally:
        for one in others:
            one.close()
        federation.close()
    assert holding(tmp_path, (password, wrong)) == []
    modes = {oct(stat.S_IMODE(path.lstat().st_mode)) for path in (federation.run_dir, *federation.run_dir.rglob("*"))}
    assert modes == {"0o700", "0o600"}


def family(pid: int) -> list[psutil.Process]:
    one = psutil.Process(pid)
    return [one, *one.children(recursive=True)]


def environ_of(pid: int) -> bytes:
    return Path(f"/proc/{pid}/environ").read_bytes()


def test_a_password_on_the_command_line_is_warned_about_once(tmp_path):
    secret = secrets.token_hex(8)
    for flags in (["--broker", f"amqp://u:{secret}@127.0.0.1:1/"], ["--set", f"broker.url=amqp://u:{secret}@host/"]):
        one = Terminal(tmp_path, "coordinator", "--config", "nowhere.toml", *flags)
        assert one.ended() == 2
        assert one.text.count("every user of this machine sees") == 1
        assert flags[0] in one.text
        assert secret not in one.text
        one.close()


def test_the_demo_takes_a_url_from_the_environment(tmp_path):
    missing = Terminal(tmp_path, "demo", "--broker", "env")
    assert missing.ended() == 2
    assert "FEDMQ_BROKER_URL, which is not set" in missing.text
    missing.close()
    assert os.listdir(tmp_path) == []
