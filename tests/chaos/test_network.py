"""Connections that are cut in the middle of an upload, and again and again."""

import pytest

from tests.chaos.harness import FULL, Federation

pytestmark = pytest.mark.broker
SIZE = 2**18
UPDATE_BYTES = 4 * SIZE


@pytest.mark.parametrize("part", [0.1, 0.5, 0.99] if FULL else [0.99])
def test_an_upload_that_is_cut_is_sent_again_and_its_training_is_not(tmp_path, rabbitmq_node, prefix, proxies, part):
    federation = Federation(tmp_path, rabbitmq_node.url, prefix, max_versions=2, size=SIZE)
    try:
        proxy, through_it = proxies()
        proxy.cut_at(int(part * UPDATE_BYTES), times=2)
        coordinator = federation.coordinator()
        participant = federation.participant("p0", **through_it)
        participant.wait_for("event=broker_disconnected", times=2)
        assert proxy.cuts_left == 0
        assert (coordinator.ended(), participant.ended()) == (0, 0)
        rows = federation.check(versions=2)
        assert len(rows) == 6
        assert set(federation.trainings("p0").values()) == {1}
    finally:
        federation.close()


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
