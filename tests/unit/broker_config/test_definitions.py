from pathlib import Path

import pytest

from fedmq.broker_config import definitions
from fedmq.broker_config.topology import Topology


def test_the_committed_definitions_are_what_the_topology_declares() -> None:
    assert definitions.main(["--check"]) == 0


def test_a_stale_file_is_found_and_rewritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stale = tmp_path / "definitions.json"
    stale.write_text("{}")
    monkeypatch.setattr(definitions, "PATH", stale)
    assert definitions.main(["--check"]) == 1
    assert definitions.main([]) == 0
    assert definitions.main(["--check"]) == 0


def test_definitions_hold_every_shared_object_and_no_user() -> None:
    found = definitions.definitions(Topology("p"))
    assert [exchange["name"] for exchange in found["exchanges"]] == ["p.updates", "p.control", "p.dead"]
    assert [queue["name"] for queue in found["queues"]] == ["p.dead", "p.updates", "p.control", "p.leader"]
    assert [(b["source"], b["destination"], b["routing_key"]) for b in found["bindings"]] == [
        ("p.dead", "p.dead", "dead"),
        ("p.updates", "p.updates", "update"),
        ("p.control", "p.control", "control"),
    ]
    assert "users" not in found


def test_every_quorum_queue_says_its_delivery_limit() -> None:
    """RabbitMQ 4 gives other queues a limit of 20, and drops the messages that go beyond it."""
    for queue in Topology(participant_queues="quorum").coordinator_queues:
        assert queue.kind == "quorum"
        assert queue.arguments()["x-delivery-limit"] >= 1000


def test_the_leader_queue_is_one_that_a_killed_broker_brings_back() -> None:
    """A young quorum queue comes back from a kill without a leader. The run would stand still for good."""
    assert Topology().leader.kind == "classic"
    assert "x-delivery-limit" not in Topology().leader.arguments()


def test_an_unknown_flag_is_refused() -> None:
    assert definitions.main(["--chekc"]) == 2
