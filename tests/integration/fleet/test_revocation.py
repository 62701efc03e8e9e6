"""Devices that are revoked in the middle of their work. The run beside them loses nothing."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest

from fedmq.views.status import read_status
from tests.chaos.harness import seeds_of
from tests.integration.fleet.fleets import Fleet, wait_until
from tests.support.full import in_full

pytestmark = [pytest.mark.broker, pytest.mark.timeout(400)]
FleetOf = Callable[..., Fleet]


def seeds_trained(fleet: Fleet, name: str) -> set[str]:
    return {line.removeprefix("done ") for line in fleet.trainings(name) if line.startswith("done ")}


def state_of(fleet: Fleet, name: str) -> tuple[str, str] | None:
    found = {one.participant_id: (one.state, one.why_away) for one in read_status(fleet.run_dir).participants}
    return found.get(name)


def test_a_device_is_revoked_in_the_middle_of_a_training(fleet_of: FleetOf) -> None:
    fleet = fleet_of(max_versions=5)
    fleet.make()
    fleet.enrol("a")
    fleet.enrol("b")
    gone, stays = fleet.name("a"), fleet.name("b")
    fleet.hold(gone, wait=False)
    fleet.hold(stays, wait=False)
    coordinator, revoked, honest = fleet.coordinator(), fleet.device("a"), fleet.device("b")
    fleet.hold(gone)  # it is in a training now
    done = fleet.command("revoke", gone)
    assert done.ended() == 0, done.text
    revoked.wait_for("event=broker_disconnected")
    assert gone not in fleet.users()
    assert not [name for name in fleet.admin.queues() if gone in name]
    wait_until(lambda: state_of(fleet, gone) == ("away", "revoked"), "the status shows that it has gone")
    fleet.release(gone)
    # If it heard of the withdrawal before it lost its connection, its training is ended.
    over = "event=trainer_process_killed"
    wait_until(lambda: bool(seeds_trained(fleet, gone)) or over in revoked.text, "it goes on training")
    fleet.release(stays)
    assert coordinator.ended() == 0, coordinator.text
    assert honest.ended() == 0, honest.text
    rows = fleet.check(versions=5)
    assert {row.participant_id for row in rows} == {stays}
    assert seeds_trained(fleet, gone).isdisjoint(seeds_of(rows, stays))
    again = fleet.command("enrol", gone)
    assert (again.ended(), "never enrolled again" in again.text) == (2, True)
    revoked.kill()


@in_full("a unit test of the loop has the same without a broker")
def test_a_device_is_revoked_in_the_middle_of_an_upload(fleet_of: FleetOf) -> None:
    fleet = fleet_of(max_versions=3, size=150_000)
    fleet.make(max_message_bytes=65_536)
    fleet.environ = {"FEDMQ_BROKER__MAX_MESSAGE_BYTES": "65536"}
    fleet.enrol("a")
    fleet.enrol("b")
    gone, stays = fleet.name("a"), fleet.name("b")
    fleet.hold(stays, wait=False)
    coordinator, honest = fleet.coordinator(), fleet.device("b")
    stopped = fleet.device("a", fault="chunks-confirmed:2:stop")
    stopped.wait_for("fault point chunks-confirmed")
    uploads = [name for name in fleet.admin.queues() if f".payload.{gone}." in name]
    assert uploads  # chunks of its update are on the broker
    done = fleet.command("revoke", gone)
    assert done.ended() == 0, done.text
    assert not [name for name in fleet.admin.queues() if gone in name]
    stopped.send(signal.SIGCONT)
    stopped.wait_for("event=not_connected")
    fleet.release(stays)
    assert coordinator.ended() == 0, coordinator.text
    assert honest.ended() == 0, honest.text
    assert {row.participant_id for row in fleet.check(versions=3)} == {stays}
    assert not [name for name in fleet.admin.queues() if gone in name]
    stopped.kill()
