import pytest

from fedmq.participant.service.strangers import MOST_LOGGED, Strangers


def test_only_the_coordinators_user_is_believed(caplog: pytest.LogCaptureFixture) -> None:
    strangers = Strangers("sensor-1", "coordinator")
    assert [strangers.sent(user) for user in ("coordinator", "sensor-2", None, "", "sensor-2")] == [
        False, True, True, True, True,
    ]  # fmt: skip
    assert strangers.count == 4
    assert len(caplog.messages) == 3, "one line for each stranger"


def test_many_strangers_do_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    strangers = Strangers("sensor-1", "coordinator")
    for number in range(10 * MOST_LOGGED):
        assert strangers.sent(f"user-{number}")
    assert (strangers.count, len(caplog.messages)) == (10 * MOST_LOGGED, MOST_LOGGED)


def test_open_identity_believes_everybody() -> None:
    strangers = Strangers("sensor-1", None)
    assert not strangers.sent("anybody")
    assert not strangers.sent(None)
    assert strangers.count == 0
