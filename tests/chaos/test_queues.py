"""A broker that blocks publishers, is full, does not answer, or loses a queue, in the middle of a run."""

import json
import re

import pytest

from fedmq.broker_config.amqp.transport import AmqpTransport
from tests.chaos import unwitnessed
from tests.chaos.harness import DEADLINE_S
from tests.support.asking import ask_until
from tests.support.full import in_full

pytestmark = pytest.mark.broker
ALARMS = {
    "memory": (("set_vm_memory_high_watermark", "0.00001"), ("set_vm_memory_high_watermark", "0.5")),
    "disk": (("set_disk_free_limit", "1000000GB"), ("set_disk_free_limit", "50MB")),
}
"""Commands that set each alarm and clear it."""
NAMES = ("p0", "p1")


def begun(federation, **environ):
    """Return a coordinator and two participants in mid-run; each participant is in a training that does not end."""
    participants = [federation.participant(name) for name in NAMES]
    coordinator = federation.coordinator(**environ)
    coordinator.wait_for("event=version_made version=2 ")
    for name in NAMES:
        federation.hold(name)
    return coordinator, *participants


def without_witness(federation, node):
    """Remove the witness: its queue would accept updates while the updates queue is gone."""
    federation.witness.close()
    node.ctl("delete_queue", federation.witness.queue.name)


def wait_for_a_message(node, queue):
    """Wait for a message in the queue and return the number of ready ones."""
    transport = AmqpTransport(node.url, name="onlooker")
    transport.open((), (), timeout_s=DEADLINE_S)
    found = ask_until(lambda: transport.depth(queue.name), within_s=DEADLINE_S, what=f"a message in {queue.name}")
    transport.close()
    return found


def test_memory_and_disk_alarms_hold_everybody_back_and_lose_nothing(federation, rabbitmq_node):
    everybody = begun(federation)
    for at, (cause, (alarm, clear)) in enumerate(ALARMS.items(), start=1):
        rabbitmq_node.ctl(*alarm)
        try:
            for one in everybody[1:]:
                assert cause in one.wait_for("event=broker_blocked participant=.* detail=(.*)", times=at)[1]
            taken, sent = len(federation.witness.updates), everybody[1].text.count("event=update_sent")
            federation.release("p0")
            everybody[1].wait_for("event=update_sent", times=sent + 1)
            assert len(federation.witness.updates) == taken
        finally:
            rabbitmq_node.ctl(*clear)
        for one in everybody[1:]:
            one.wait_for("event=broker_unblocked", times=at)
        federation.hold("p0")
    for name in NAMES:
        federation.release(name)
    assert [one.ended() for one in everybody] == [0, 0, 0]
    federation.check()


@in_full("integration/broker/test_slow_links.py has messages that are confirmed late")
def test_updates_that_are_never_confirmed_are_sent_again_and_counted_once(federation, rabbitmq_node):
    """The queue's process is suspended; the connection works."""
    everybody = begun(federation)
    process = f"whereis('%2F_{federation.topology.updates.name}')"
    rabbitmq_node.ctl("eval", f"sys:suspend({process}).")
    try:
        for name in NAMES:
            federation.release(name)
        for one in everybody[1:]:
            one.wait_for("event=not_confirmed ")
    finally:
        rabbitmq_node.ctl("eval", f"sys:resume({process}).")
    assert [one.ended() for one in everybody] == [0, 0, 0]
    federation.check()
    assert not any("event=broker_disconnected" in one.text for one in everybody[1:])


@in_full("contract/test_coming_and_going_queues.py and test_somebody_else_s.py delete queues under their consumers")
def test_queues_deleted_under_their_consumers_are_made_again_and_nothing_is_lost(federation, rabbitmq_node):
    """The queues are a participant's own, and the one for hellos and declines."""
    everybody = begun(federation)
    consumers = ((everybody[1], federation.topology.participant("p0")), (everybody[0], federation.topology.control))
    for consumer, queue in consumers:
        rabbitmq_node.ctl("delete_queue", queue.name)
        consumer.wait_for(f"consumer_lost.*cancelled the consumer: queue '{queue.name}' was deleted")
    for name in NAMES:
        federation.release(name)
    assert [one.ended() for one in everybody] == [0, 0, 0]
    federation.check()


def test_with_a_deleted_updates_queue_only_what_was_in_it_is_lost(federation, rabbitmq_node):
    """Tasks of the lost updates are issued again. Updates that met no queue are not confirmed, so they come later."""
    queue, lease = federation.topology.updates, {"FEDMQ_RUN__LEASE_S": "4"}
    without_witness(federation, rabbitmq_node)
    coordinator, p0, p1 = begun(federation, **lease)
    rabbitmq_node.ctl("delete_queue", queue.name)
    coordinator.wait_for(f"consumer_lost.*cancelled the consumer: queue '{queue.name}' was deleted")
    so_far = coordinator.text.count("event=update_accepted participant=p0")
    federation.release("p0")
    coordinator.wait_for("event=update_accepted participant=p0", times=so_far + 1)
    federation.hold("p0")
    coordinator.kill()
    federation.release("p0")
    waiting = wait_for_a_message(rabbitmq_node, queue)
    rabbitmq_node.ctl("delete_queue", queue.name)
    federation.release("p1")
    came_later = p1.wait_for(r'event=update_not_taken .*task=(\S+) detail="Unroutable')[1]
    again = federation.coordinator(**lease)
    federation.hold("p0", wait=False)  # otherwise it might finish the run before the other one tries again
    again.wait_for(f"event=update_accepted participant=p1 task={came_later}")
    federation.release("p0")
    assert [one.ended() for one in (again, p0, p1)] == [0, 0, 0]
    unwitnessed.check(federation, NAMES, versions=8, may_be_lost=waiting)


@in_full("tests/contract/test_somebody_else_s.py deletes an exchange and a queue")
def test_a_deleted_exchange_is_made_again_with_its_binding_and_nothing_is_lost(federation, rabbitmq_node):
    without_witness(federation, rabbitmq_node)  # its queue would lose its own binding
    everybody = begun(federation)
    name = f'rabbit_misc:r(<<"/">>, exchange, <<"{federation.topology.updates_exchange.name}">>)'
    rabbitmq_node.ctl("eval", f'rabbit_exchange:delete({name}, false, <<"somebody">>).')
    for participant in NAMES:
        federation.release(participant)
    assert [one.ended() for one in everybody] == [0, 0, 0]
    unwitnessed.check(federation, NAMES, versions=8, may_be_lost=0)
    assert 'detail="Unroutable' in everybody[1].text + everybody[2].text


def refused(participants):
    """Return (participant, task) of the first update that the queue refused.

    It depends on the room that the killed coordinator's deliveries leave in the queue.
    """

    def first():
        for name, one in zip(NAMES, participants, strict=True):
            if found := re.search(r'event=update_not_taken .*task=(\S+) detail="PublishRejected', one.text):
                return name, found[1]
        return None

    return ask_until(first, within_s=DEADLINE_S, what="a refusal: both updates were taken")


def test_a_full_updates_queue_takes_no_more_and_gets_all_once_it_drains(federation, rabbitmq_node):
    queue = federation.topology.updates
    coordinator, *participants = begun(federation)
    coordinator.kill()
    limit = json.dumps({"max-length-bytes": 100})
    rabbitmq_node.ctl("set_policy", "full", f"^{queue.name}$", limit, "--apply-to", "queues")
    try:
        seen = len(federation.witness.updates)
        federation.release("p0")  # one after the other, because a queue that is being filled accepts both
        federation.witness.wait_until(lambda: len(federation.witness.updates) > seen)
        federation.witness.wait_for_depth(queue, 1)
        federation.release("p1")
        kept_back, task_id = refused(participants)
        assert len(list((federation.folder / "spool" / kept_back / "outbox").glob("*.fedmq"))) == 1
        (other,) = {*NAMES} - {kept_back}
        federation.hold(other, wait=False)  # as above
        again = federation.coordinator()
        again.wait_for(f"event=update_accepted participant={kept_back} task={task_id}")
    finally:
        rabbitmq_node.ctl("clear_policy", "full")
    federation.release(other)
    assert [one.ended() for one in (again, *participants)] == [0, 0, 0]
    federation.check()
