import pytest

from tests.integration.front.terminal import Terminal


@pytest.fixture
def terminal(tmp_path):
    """Return terminal("coordinator", "--config", ..., FEDMQ_BROKER_URL=...), which runs a command in tmp_path."""
    opened = []

    def start(*arguments, **environ):
        opened.append(Terminal(tmp_path, *arguments, **environ))
        return opened[-1]

    yield start
    for one in reversed(opened):
        one.close()
