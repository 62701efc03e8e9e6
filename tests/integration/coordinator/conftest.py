import pytest

from fedmq.coordinator.service import loop
from tests.integration.coordinator.federation import Federation


@pytest.fixture(autouse=True)
def _stragglers_come_soon(monkeypatch):
    """Participants of these tests answer at once or never, and each run would wait a second for the second kind."""
    monkeypatch.setattr(loop, "STRAGGLERS_S", 0.25)


@pytest.fixture
def federation(tmp_path):
    federation = Federation(tmp_path / "run")
    yield federation
    federation.close()
