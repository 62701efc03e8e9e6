"""Connections that are cut in the middle of an upload, or again and again."""

import pytest

from tests.chaos.harness import Federation
from tests.support.full import FULL

pytestmark = pytest.mark.broker
SIZE = 2**18
UPDATE_BYTES = 4 * SIZE


@pytest.fixture
def federation_of_large_models(tmp_path, rabbitmq_node, prefix):
    one = Federation(tmp_path, rabbitmq_node.url, prefix, max_versions=2, size=SIZE)
    yield one
    one.close()


@pytest.mark.parametrize(
    ("direction", "part"), [("up", 0.99), ("down", 0.5), *([("up", 0.1), ("up", 0.5)] if FULL else [])]
)
def test_a_transfer_that_is_cut_is_made_again_and_its_training_is_not(
    federation_of_large_models, proxies, direction, part
):
    federation = federation_of_large_models
    proxy, through_it = proxies()
    proxy.cut_at(int(part * UPDATE_BYTES), 2, direction)
    coordinator = federation.coordinator()
    participant = federation.participant("p0", **through_it)
    participant.wait_for("event=broker_disconnected", times=2)
    assert (proxy.cuts, proxy.cuts_left) == (2, 0)
    assert (coordinator.ended(), participant.ended()) == (0, 0)
    assert len(federation.check(versions=2)) == 6
    assert set(federation.trainings("p0").values()) == {1}


@pytest.mark.parametrize("direction", ["up", "down"] if FULL else ["up"])
def test_a_coordinator_that_is_cut_off_in_the_middle_of_a_task_or_an_update_goes_on(
    federation_of_large_models, proxies, direction
):
    federation = federation_of_large_models
    proxy, through_it = proxies()
    proxy.cut_at(int(1.5 * UPDATE_BYTES), 2, direction)
    coordinator = federation.coordinator(**through_it)
    participants = [federation.participant(name) for name in ("p0", "p1")]
    coordinator.wait_for("event=broker_disconnected", times=2)
    assert (proxy.cuts, proxy.cuts_left) == (2, 0)
    assert [one.ended() for one in (coordinator, *participants)] == [0, 0, 0]
    federation.check(versions=2)


def test_connections_that_are_cut_all_through_a_run_lose_nothing(federation, proxies):
    (own, others) = proxies(), [proxies() for _ in range(2)]
    coordinator = federation.coordinator(**own[1])
    participants = [federation.participant(f"p{i}", **url) for i, (_, url) in enumerate(others)]
    cut = 0
    for seen in (4, 10, 16):
        federation.witness.wait_until(lambda least=seen: len(federation.witness.updates) >= least)
        cut += sum(proxy.sever() for proxy, _ in (own, *others))
    assert cut >= 8, "six connections were open at the first cut; later some may be on their way back"
    assert [one.ended() for one in (coordinator, *participants)] == [0, 0, 0]
    federation.check()
