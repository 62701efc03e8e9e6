"""Each rule of `participant.decisions.agent`, as the commands that one event leads to."""

from typing import Any

import pytest

from fedmq.participant.decisions import events as ev
from fedmq.participant.decisions.agent import BACKLOG_S, LEASE_GRACE, LEAVE_S, MAX_OUTBOX
from fedmq.participant.decisions.retries import MAX_LISTED, RETRY
from tests.unit.participant.decisions.agents import (
    LATE,
    connected,
    kinds,
    make_agent,
    make_task,
    notice,
    only,
    publishing,
    receipt,
    training,
    uid,
)


def test_a_task_goes_to_disk_before_it_is_acked_and_trained() -> None:
    agent, task = connected(), make_task()
    assert agent.step(ev.TaskReceived(task, 5), LATE) == [ev.SpoolTask(task, 5)]
    assert agent.step(ev.TaskSpooled(task.task_id, 5), LATE) == [ev.Ack(5), ev.StartTraining(task)]
    assert agent.state == "training"


def test_a_task_that_the_disk_refuses_is_declined_and_no_other_taken_for_a_while() -> None:
    agent, task = connected(), make_task()
    agent.step(ev.TaskReceived(task, 5), LATE)
    commands = agent.step(ev.SpoolFailed(task.task_id, 5, "no space left"), LATE)
    decline = only(ev.SendDecline, commands).decline
    assert (decline.reason, decline.detail, decline.retry_after_s) == ("not_idle", "no space left", 60.0)
    assert only(ev.SendHello, commands).hello.accepting is False
    assert kinds(commands).index("SendDecline") < kinds(commands).index("Ack")
    agent.step(ev.DeclineConfirmed(task.task_id), LATE)
    another = only(ev.SendDecline, agent.step(ev.TaskReceived(make_task(2), 6), LATE + 1))
    assert another.decline.reason == "not_idle"
    assert only(ev.SendHello, agent.step(ev.Tick(), LATE + 61)).hello.accepting is True


def test_a_second_task_is_declined_as_busy() -> None:
    agent = training(make_task(1))
    commands = agent.step(ev.TaskReceived(make_task(2), 9), LATE)
    assert kinds(commands) == ["SendDecline", "Ack"]
    assert only(ev.SendDecline, commands).decline.reason == "busy"


def test_a_task_that_cannot_be_read_is_declined_as_unreadable_in_the_same_words_each_time() -> None:
    agent = connected()
    event = ev.TaskUnreadable("run-1-7", "run-1", "malformed: not msgpack")
    decline = only(ev.SendDecline, agent.step(event, LATE)).decline
    assert (decline.task_id, decline.run_id, decline.reason) == ("run-1-7", "run-1", "unreadable")
    assert (decline.detail, decline.retry_after_s) == ("malformed: not msgpack", None)
    assert only(ev.SendDecline, agent.step(event, LATE + 1)).decline == decline


@pytest.mark.parametrize("prepare", [training, publishing])
def test_a_bad_message_that_names_the_task_in_hand_takes_nothing_away(prepare: Any) -> None:
    task = make_task()
    agent = prepare(task)
    commands = agent.step(ev.TaskUnreadable(task.task_id, task.run_id, "malformed: damaged"), LATE)
    assert "SendDecline" not in kinds(commands)
    assert task.task_id in agent.held()


@pytest.mark.parametrize("prepare", [training, publishing])
def test_the_same_task_again_is_acked_and_not_trained_again(prepare: Any) -> None:
    task = make_task()
    agent = prepare(task)
    commands = agent.step(ev.TaskReceived(task, 9), LATE)
    assert ev.Ack(9) in commands
    assert "StartTraining" not in kinds(commands)
    assert "SendDecline" not in kinds(commands)


def test_a_task_whose_update_failed_to_go_out_makes_it_go_out_at_once() -> None:
    task = make_task()
    agent = publishing(task)
    agent.step(ev.PublishFailed(uid(task), "queue full"), LATE)
    assert agent.step(ev.TaskReceived(task, 9), LATE) == [ev.Ack(9), ev.PublishUpdate(uid(task), task.task_id)]


def test_a_task_that_got_its_receipt_is_not_trained_when_it_is_redelivered() -> None:
    task = make_task()
    agent = publishing(task)
    agent.step(ev.PublishConfirmed(uid(task)), LATE)
    agent.step(ev.ReceiptReceived(receipt(task)), LATE)
    assert agent.held() == ()
    assert kinds(agent.step(ev.TaskReceived(task, 9), LATE)) == ["Note", "Ack", "SendHello"]


def test_a_hello_names_the_task_that_was_over_last_and_says_so_when_that_task_comes_again() -> None:
    """A coordinator whose folder was restored from a backup waits for it in vain."""
    task = make_task()
    agent = publishing(task)
    agent.step(ev.PublishConfirmed(uid(task)), LATE)
    assert only(ev.SendHello, agent.step(ev.Tick(), LATE + 1000)).hello.last_task is None
    agent.step(ev.ReceiptReceived(receipt(task)), LATE + 1000)
    hello = only(ev.SendHello, agent.step(ev.TaskReceived(task, 9), LATE + 1001)).hello
    assert (hello.last_task, hello.task_ids, hello.accepting) == (task.task_id, (), True)


def test_the_task_that_was_over_last_is_known_after_a_restart() -> None:
    agent = make_agent(restored=ev.Restored(done=("run-1-1", "run-1-2")))
    agent.step(ev.Started(), 0.0)
    assert only(ev.SendHello, agent.step(ev.Connected(), 0.0)).hello.last_task == "run-1-2"


def test_a_declined_task_is_declined_again_in_the_same_words() -> None:
    agent = training(make_task(1))
    first = only(ev.SendDecline, agent.step(ev.TaskReceived(make_task(2), 8), LATE))
    agent.step(ev.TrainingFailed("run-1-1", "trainer_error", "boom"), LATE)
    assert agent.step(ev.TaskReceived(make_task(2), 9), LATE) == [first, ev.Ack(9)]


def test_a_task_for_somebody_else_is_acked_with_a_warning() -> None:
    commands = connected().step(ev.TaskReceived(make_task(participant_id="sensor-2"), 4), LATE)
    assert only(ev.Note, commands).level == "warning"
    assert kinds(commands) == ["Note", "Ack"]


def test_without_examples_a_task_is_declined_as_no_data() -> None:
    commands = connected(num_examples=0).step(ev.TaskReceived(make_task(), 4), LATE)
    assert only(ev.SendDecline, commands).decline.reason == "no_data"


def test_losing_the_broker_does_not_stop_training_and_the_update_goes_out_after_it_is_back() -> None:
    task = make_task()
    agent = training(task)
    assert agent.step(ev.Disconnected(), LATE) == []
    assert agent.state == "disconnected"
    assert kinds(agent.step(ev.TrainingFinished(task.task_id, 7), LATE)) == ["WriteOutbox"]
    assert agent.step(ev.OutboxWritten(task.task_id), LATE) == [ev.ClearTask(task.task_id)]
    commands = agent.step(ev.Connected(), LATE + 50)
    assert ev.PublishUpdate(uid(task), task.task_id) in commands
    assert only(ev.SendHello, commands).hello.task_ids == (task.task_id,)


def test_an_update_is_on_disk_before_it_is_published_and_leaves_it_after_the_confirm() -> None:
    task = make_task()
    agent = training(task)
    assert agent.step(ev.TrainingFinished(task.task_id, 7), LATE) == [ev.WriteOutbox(task.task_id, uid(task))]
    assert agent.step(ev.OutboxWritten(task.task_id), LATE) == [
        ev.ClearTask(task.task_id),
        ev.PublishUpdate(uid(task), task.task_id),
    ]
    assert agent.state == "delivering"
    assert agent.step(ev.PublishConfirmed(uid(task)), LATE) == [
        ev.WriteSent({uid(task): (task.task_id, "run-1")}, ()),
        ev.ClearOutbox(uid(task)),
    ]
    assert agent.state == "idle"
    assert agent.held() == (task.task_id,), "until its receipt"
    assert agent.step(ev.ReceiptReceived(receipt(task)), LATE) == [ev.WriteSent({}, (task.task_id,))]


def test_an_update_that_the_disk_refuses_is_written_again_later() -> None:
    task = make_task()
    agent = training(task)
    agent.step(ev.TrainingFinished(task.task_id, 7), LATE)
    assert only(ev.Note, agent.step(ev.OutboxFailed(task.task_id, "no space left"), LATE)).level == "error"
    commands = agent.step(ev.Tick(), LATE + RETRY.cap_s)
    assert only(ev.WriteOutbox, commands).update_id == uid(task)


def test_a_failed_publish_is_tried_again_for_ever_with_growing_waits() -> None:
    task = make_task()
    agent = publishing(task)
    now = LATE
    for attempt in range(50):
        agent.step(ev.PublishFailed(uid(task), "queue full"), now)
        assert "PublishUpdate" not in kinds(agent.step(ev.Tick(), now - 0.001))
        now += RETRY.ceiling_s(attempt)
        assert "PublishUpdate" in kinds(agent.step(ev.Tick(), now))
    assert agent.held() == (task.task_id,)


@pytest.mark.parametrize("nowhere", [True, False])
def test_an_update_without_a_place_on_the_broker_is_named_in_a_hello_at_once(nowhere: bool) -> None:
    task = make_task()
    agent = publishing(task)
    agent.step(ev.Tick(), LATE)
    commands = agent.step(ev.PublishFailed(uid(task), "Unroutable: no exchange", nowhere), LATE + 0.1)
    said = [command for command in commands if isinstance(command, ev.SendHello)]
    assert [command.hello.task_ids for command in said] == ([(task.task_id,)] if nowhere else [])


def test_a_receipt_for_an_update_whose_confirm_was_lost_clears_the_outbox() -> None:
    task = make_task()
    agent = publishing(task)
    agent.step(ev.PublishFailed(uid(task), "no confirm"), LATE)
    commands = agent.step(ev.ReceiptReceived(receipt(task)), LATE)
    assert commands == [ev.WriteSent({}, (task.task_id,)), ev.ClearOutbox(uid(task))]


def test_the_next_task_may_overtake_the_confirm_of_the_last_update() -> None:
    agent = publishing(make_task(1))
    assert kinds(agent.step(ev.TaskReceived(make_task(2), 9), LATE)) == ["SpoolTask"]


def test_an_update_that_waits_after_failures_goes_at_once_when_the_broker_takes_another() -> None:
    first, second = make_task(1), make_task(2)
    agent = publishing(first)
    agent.step(ev.PublishFailed(uid(first), "queue full"), LATE)
    agent.step(ev.TaskReceived(second, 9), LATE)
    agent.step(ev.TaskSpooled(second.task_id, 9), LATE)
    agent.step(ev.TrainingFinished(second.task_id, 7), LATE)
    assert only(ev.PublishUpdate, agent.step(ev.OutboxWritten(second.task_id), LATE)).update_id == uid(second)
    commands = agent.step(ev.PublishConfirmed(uid(second)), LATE)
    assert only(ev.PublishUpdate, commands).update_id == uid(first)


def test_with_a_full_outbox_tasks_are_declined_and_the_hello_says_so() -> None:
    agent = connected()
    for number in range(MAX_OUTBOX):
        task = make_task(number)
        agent.step(ev.TaskReceived(task, number), LATE)
        agent.step(ev.TaskSpooled(task.task_id, number), LATE)
        agent.step(ev.TrainingFinished(task.task_id, 7), LATE)
        commands = agent.step(ev.OutboxWritten(task.task_id), LATE)
    assert only(ev.SendHello, commands).hello.accepting is False
    assert only(ev.SendDecline, agent.step(ev.TaskReceived(make_task(99), 99), LATE)).decline.reason == "busy"
    commands = agent.step(ev.PublishConfirmed(uid(make_task(0))), LATE)
    assert only(ev.SendHello, commands).hello.accepting is True


def test_hellos_come_on_connecting_periodically_and_when_asked() -> None:
    agent = make_agent()
    assert agent.step(ev.Started(), 0.0) == []
    assert only(ev.SendHello, agent.step(ev.Connected(), 1.0)).hello.accepting is True
    assert agent.step(ev.Tick(), 15.9) == []
    assert kinds(agent.step(ev.Tick(), 16.0)) == ["SendHello"]
    assert kinds(agent.step(ev.NoticeReceived(notice("say_hello", make_task())), 17.0)) == ["SendHello"]
    agent.step(ev.Disconnected(), 18.0)
    assert agent.step(ev.Tick(), 1000.0) == []
    assert kinds(agent.step(ev.Connected(), 1001.0)) == ["SendHello"]


def test_a_hello_during_training_is_taken_back_when_the_training_ends() -> None:
    task = make_task()
    agent = training(task)
    assert only(ev.SendHello, agent.step(ev.Tick(), LATE + 20)).hello.accepting is False
    assert "SendHello" not in kinds(agent.step(ev.TrainingFinished(task.task_id, 7), LATE + 21))
    assert only(ev.SendHello, agent.step(ev.OutboxWritten(task.task_id), LATE + 21)).hello.accepting is True


def test_while_conditions_do_not_hold_tasks_are_declined_and_hellos_say_so() -> None:
    agent = connected()
    assert only(ev.SendHello, agent.step(ev.ConditionsChanged("on battery"), LATE)).hello.accepting is False
    decline = only(ev.SendDecline, agent.step(ev.TaskReceived(make_task(), 4), LATE)).decline
    assert (decline.reason, decline.detail, decline.retry_after_s) == ("not_idle", "on battery", 60.0)
    assert only(ev.SendHello, agent.step(ev.ConditionsChanged(None), LATE)).hello.accepting is True


def test_a_withdrawn_task_in_training_is_cancelled_and_its_result_discarded() -> None:
    task = make_task()
    agent = training(task)
    commands = agent.step(ev.NoticeReceived(notice("task_withdrawn", task)), LATE)
    assert kinds(commands) == ["WriteSent", "ClearTask", "CancelTraining"]
    assert agent.held() == ()
    busy = only(ev.SendDecline, agent.step(ev.TaskReceived(make_task(2), 9), LATE))
    assert busy.decline.reason == "busy", "the training thread is not free before it returns"
    assert agent.step(ev.TrainingFinished(task.task_id, 7), LATE) == [ev.ClearOutbox(uid(task))]
    assert agent.state == "idle"


def test_a_withdrawn_task_leaves_the_outbox() -> None:
    task = make_task()
    agent = publishing(task)
    commands = agent.step(ev.NoticeReceived(notice("task_withdrawn", task)), LATE)
    assert commands == [ev.WriteSent({}, (task.task_id,)), ev.ClearOutbox(uid(task))]


def test_a_trainer_error_is_declined_with_its_text_and_the_agent_lives_on() -> None:
    task = make_task()
    agent = training(task)
    commands = agent.step(ev.TrainingFailed(task.task_id, "trainer_error", "ValueError: " + "x" * 5000), LATE)
    assert kinds(commands) == ["ClearTask", "SendDecline"]
    decline = only(ev.SendDecline, commands).decline
    assert decline.detail.startswith("ValueError: xxx")
    assert len(decline.detail) == 2000
    assert kinds(agent.step(ev.TaskReceived(make_task(2), 9), LATE)) == ["SpoolTask"]


def test_a_decline_that_does_not_go_out_is_tried_again() -> None:
    agent = connected(num_examples=0)
    declined = only(ev.SendDecline, agent.step(ev.TaskReceived(make_task(), 4), LATE))
    agent.step(ev.DeclineFailed("run-1-1", "no confirm"), LATE)
    assert declined in agent.step(ev.Tick(), LATE + RETRY.ceiling_s(0))


def test_an_app_that_does_not_fit_leaves_once_its_decline_is_out() -> None:
    task = make_task()
    agent = training(task)
    commands = agent.step(ev.TrainingFailed(task.task_id, "unsupported", "kernel is [3, 4]", fatal=True), LATE)
    assert only(ev.SendDecline, commands).decline.reason == "unsupported"
    assert "Exit" not in kinds(commands)
    exits = agent.step(ev.DeclineConfirmed(task.task_id), LATE)
    assert exits == [ev.Exit("unsupported", "kernel is [3, 4]")]


def test_a_spooled_task_is_trained_after_a_restart() -> None:
    task = make_task()
    agent = make_agent(restored=ev.Restored(task=task, task_age_s=LEASE_GRACE * task.lease_s))
    assert ev.StartTraining(task) in agent.step(ev.Started(), 0.0)
    assert only(ev.SendHello, agent.step(ev.Connected(), 0.0)).hello.task_ids == (task.task_id,)


def test_a_spooled_task_of_unknown_age_is_trained() -> None:
    agent = make_agent(restored=ev.Restored(task=make_task(), task_age_s=None))
    assert "StartTraining" in kinds(agent.step(ev.Started(), 0.0))


def test_a_spooled_task_whose_lease_is_long_over_is_declined_once_connected() -> None:
    task = make_task()
    agent = make_agent(restored=ev.Restored(task=task, task_age_s=LEASE_GRACE * task.lease_s + 1))
    assert agent.step(ev.Started(), 0.0) == [ev.ClearTask(task.task_id)]
    assert only(ev.SendDecline, agent.step(ev.Connected(), 0.0)).decline.reason == "lease_over"


def test_a_crash_between_outbox_and_task_does_not_train_twice() -> None:
    task = make_task()
    restored = ev.Restored(task=task, task_age_s=1.0, outbox={uid(task): (task.task_id, "run-1")})
    agent = make_agent(restored=restored)
    assert agent.step(ev.Started(), 0.0) == [ev.ClearTask(task.task_id)]
    assert ev.PublishUpdate(uid(task), task.task_id) in agent.step(ev.Connected(), 0.0)


def test_what_was_sent_before_a_restart_is_still_named_and_not_trained_again() -> None:
    task = make_task()
    agent = make_agent(restored=ev.Restored(sent={uid(task): (task.task_id, "run-1")}, done=("run-1-0",)))
    agent.step(ev.Started(), 0.0)
    assert only(ev.SendHello, agent.step(ev.Connected(), 0.0)).hello.task_ids == (task.task_id,)
    for repeated in (task, make_task(0)):
        assert "SpoolTask" not in kinds(agent.step(ev.TaskReceived(repeated, 3), 1.0))


def test_an_update_that_cannot_be_read_any_more_is_no_longer_held() -> None:
    agent = make_agent(restored=ev.Restored(outbox={"u": ("run-1-1", "run-1")}))
    agent.step(ev.Started(), 0.0)
    agent.step(ev.Connected(), 0.0)
    assert only(ev.Note, agent.step(ev.UpdateUnreadable("u", "gone"), 0.0)).level == "error"
    assert agent.held() == ()


def test_a_finished_run_drops_what_belongs_to_it_and_ends_the_agent() -> None:
    task = make_task()
    agent = training(task)
    commands = agent.step(ev.NoticeReceived(notice("run_finished", task)), LATE)
    assert kinds(commands) == ["WriteSent", "ClearTask", "CancelTraining", "ClearMemory", "Exit"]
    assert only(ev.Exit, commands).reason == "run_finished"


def test_a_finish_that_waited_in_the_queue_does_not_end_a_fresh_participant() -> None:
    old = make_task(run="last-week")
    agent = make_agent()
    agent.step(ev.Started(), 0.0)
    agent.step(ev.Connected(), 10.0)
    early = agent.step(ev.NoticeReceived(notice("run_finished", old)), 10.0 + BACKLOG_S / 2)
    assert "Exit" not in kinds(early)
    late = agent.step(ev.NoticeReceived(notice("run_finished", old)), 10.0 + BACKLOG_S)
    assert "Exit" in kinds(late)


def test_a_short_run_that_was_served_ends_the_agent_at_once() -> None:
    task = make_task()
    agent = make_agent()
    for event in (
        ev.Started(), ev.Connected(), ev.TaskReceived(task, 1), ev.TaskSpooled(task.task_id, 1),
        ev.TrainingFinished(task.task_id, 7), ev.OutboxWritten(task.task_id), ev.PublishConfirmed(uid(task)),
    ):  # fmt: skip
        agent.step(event, 0.1)
    assert only(ev.Exit, agent.step(ev.NoticeReceived(notice("run_finished", task)), 0.2)).reason == "run_finished"


def test_a_stop_waits_for_the_outbox_and_takes_no_task() -> None:
    task = make_task()
    agent = publishing(task)
    commands = agent.step(ev.StopRequested(), LATE)
    goodbye = only(ev.SendHello, commands).hello
    assert (goodbye.accepting, goodbye.leaving) == (False, True)
    assert agent.step(ev.TaskReceived(make_task(2), 9), LATE) == [], "unacked: it goes back to the queue"
    assert ev.Exit("stopped") in agent.step(ev.PublishConfirmed(uid(task)), LATE)


def test_a_stop_gives_up_waiting_at_its_deadline_and_when_the_broker_is_away() -> None:
    agent = publishing(make_task())
    agent.step(ev.StopRequested(), LATE)
    assert ev.Exit("stopped") not in agent.step(ev.Tick(), LATE + LEAVE_S - 0.1)
    assert ev.Exit("stopped") in agent.step(ev.Tick(), LATE + LEAVE_S)
    away = publishing(make_task())
    away.step(ev.Disconnected(), LATE)
    assert away.step(ev.StopRequested(), LATE) == [ev.Exit("stopped")]


def test_a_stop_during_training_keeps_the_task_for_the_next_process() -> None:
    agent = training(make_task())
    commands = agent.step(ev.StopRequested(), LATE)
    assert "CancelTraining" in kinds(commands)
    assert "ClearTask" not in kinds(commands)
    assert only(ev.SendHello, commands).hello.leaving
    assert "ClearTask" not in kinds(agent.step(ev.TrainingFailed("run-1-1", "trainer_error", "cancelled"), LATE))


def test_what_is_remembered_stays_small() -> None:
    agent = connected()
    for number in range(3 * MAX_LISTED):
        task = make_task(number)
        agent.step(ev.TaskReceived(task, number), LATE)
        agent.step(ev.TaskSpooled(task.task_id, number), LATE)
        agent.step(ev.TrainingFinished(task.task_id, 7), LATE)
        agent.step(ev.OutboxWritten(task.task_id), LATE)
        remembered = only(ev.WriteSent, agent.step(ev.PublishConfirmed(uid(task)), LATE))
    assert len(remembered.sent) == len(remembered.done) == MAX_LISTED
    assert len(agent.held()) <= 64
