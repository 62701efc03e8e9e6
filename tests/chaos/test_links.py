"""Links that fall silent, are slow, are long, or break by chance: everybody comes back."""

import time

import pytest

from tests.chaos.harness import Federation
from tests.chaos.proxy import BOTH
from tests.chaos.test_broker import DISCONNECTED
from tests.support.full import FULL, in_full

pytestmark = pytest.mark.broker
SIZE = 2**18
UPDATE_BYTES = 4 * SIZE
HEARTBEAT_S = 2


@pytest.mark.parametrize(
    ("directions", "new"),
    [(BOTH, False), *([(BOTH, True), (("up",), False), (("down",), False)] if FULL else [])],
)
def test_peers_that_vanish_without_a_goodbye_are_noticed_by_both_ends_and_come_back(
    federation, proxies, directions, new
):
    """A participant and the coordinator have half-open connections. Only missing heartbeats can tell; our side notices
    if nothing comes down. With `new`, connections that they open meanwhile are no better."""
    (own, coordinators_url), (other, participants_url) = proxies(), proxies()
    coordinator = federation.coordinator(**coordinators_url)
    participants = [federation.participant("p0", **participants_url), federation.participant("p1")]
    coordinator.wait_for("event=version_made version=2 ")
    assert [link.blackhole(*directions, new=new) for link in (own, other)] == [2, 2]
    for one in (coordinator, participants[0]):
        one.wait_for(f"({DISCONNECTED})" + (".*[Hh]eartbeat" if "down" in directions else ""))
    swallowed = [link.swallowed[direction] for link in (own, other) for direction in directions]
    assert min(swallowed) > 0, "heartbeats went nowhere"
    own.heal()
    other.heal()
    assert [one.ended() for one in (coordinator, *participants)] == [0, 0, 0]
    federation.check()


@in_full("integration/broker/test_slow_links.py has an upload longer than its timeout")
@pytest.mark.parametrize(
    ("directions", "takes_all"),
    [(("up", "down"), False), (("up",), False), (("down",), False), (("up",), True)],
)
def test_transfers_slower_than_heartbeats_and_timeouts_get_through_once(
    tmp_path, rabbitmq_node, prefix, proxies, directions, takes_all
):
    federation = Federation(tmp_path, rabbitmq_node.url, prefix, max_versions=1, size=SIZE)
    try:
        coordinator = federation.coordinator()
        links = [proxies() for _ in range(3)]
        for proxy, _ in links:
            proxy.throttle(UPDATE_BYTES / (12 if takes_all else 5), *directions, takes_all=takes_all)
        impatient = {"FEDMQ_BROKER__PUBLISH_TIMEOUT_S": "2"}
        participants = [federation.participant(f"p{i}", **url, **impatient) for i, (_, url) in enumerate(links)]
        for one in participants:
            one.wait_for("event=update_sent" if "up" in directions else "event=broker_connected")
        began_s = time.monotonic()
        assert [one.ended() for one in (coordinator, *participants)] == [0, 0, 0, 0]
        assert time.monotonic() - began_s > 2 * HEARTBEAT_S
        assert len(federation.check(versions=1)) == 3
        assert set(federation.witness.copies.values()) == {1}
        assert not any("broker_disconnected" in one.text for one in participants)
    finally:
        federation.close()


@in_full("integration/broker/test_slow_links.py has slow links")
def test_a_broker_that_is_far_away_costs_time_alone(federation, proxies):
    links = [proxies() for _ in range(3)]
    for proxy, _ in links:
        proxy.delay(0.3)
    coordinator = federation.coordinator(**links[0][1])
    participants = [federation.participant(f"p{i}", **url) for i, (_, url) in enumerate(links[1:])]
    everybody = (coordinator, *participants)
    assert [one.ended() for one in everybody] == [0, 0, 0]
    assert all(proxy.carried["up"] > 0 for proxy, _ in links)
    assert not any("disconnected" in one.text for one in everybody)
    federation.check()


@pytest.mark.parametrize("seed", range(5) if FULL else range(1))
def test_one_in_a_hundred_pieces_breaking_its_connection_loses_nothing(federation, proxies, seed):
    links = [proxies() for _ in range(3)]
    for at, (proxy, _) in enumerate(links):
        proxy.cut_by_chance(0.01, 100 * seed + at)
    coordinator = federation.coordinator(**links[0][1])
    participants = [federation.participant(f"p{i}", **url) for i, (_, url) in enumerate(links[1:])]
    assert [one.ended() for one in (coordinator, *participants)] == [0, 0, 0]
    assert sum(proxy.cuts for proxy, _ in links) >= 3
    federation.check()
