"""The rules of `participant.decisions.agent` for payloads that travel in chunks."""

from fedmq.participant.decisions import events as ev
from fedmq.participant.decisions.outbox import ANNOUNCE_AGAIN_S
from fedmq.schemas.messages import ChunkedPayload, ModelReference
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
    uid,
)


def test_an_update_in_chunks_stays_on_disk_until_its_receipt() -> None:
    task = make_task()
    agent = publishing(task)
    confirmed = agent.step(ev.PublishConfirmed(uid(task), kept=True), LATE)
    assert "ClearOutbox" not in kinds(confirmed)
    assert task.task_id in agent.held()
    assert ev.ClearOutbox(uid(task)) in agent.step(ev.ReceiptReceived(receipt(task)), LATE)
    assert agent.held() == ()


def test_an_update_whose_chunks_were_lost_is_sent_from_the_start() -> None:
    task = make_task()
    agent = publishing(task)
    agent.step(ev.PublishConfirmed(uid(task), kept=True), LATE)
    again = agent.step(ev.NoticeReceived(notice("send_again", task)), LATE)
    assert only(ev.PublishUpdate, again) == ev.PublishUpdate(uid(task), task.task_id, from_start=True)
    failed = [*agent.step(ev.PublishFailed(uid(task), "gone"), LATE), *agent.step(ev.Tick(), LATE + 70)]
    assert only(ev.PublishUpdate, failed).from_start is False, "what the second try sent is of use"


def test_an_update_that_is_not_on_disk_any_more_is_not_sent_again() -> None:
    task = make_task()
    agent = publishing(task)
    agent.step(ev.PublishConfirmed(uid(task)), LATE)
    assert agent.step(ev.NoticeReceived(notice("send_again", task)), LATE) == []


def test_an_update_in_chunks_that_was_sent_is_not_sent_again_after_a_restart() -> None:
    task = make_task()
    known = {uid(task): (task.task_id, task.run_id)}
    agent = make_agent(restored=ev.Restored(outbox=known, sent=known))
    agent.step(ev.Started(), 0.0)
    assert "PublishUpdate" not in kinds(agent.step(ev.Connected(), 0.0))
    assert agent.held() == (task.task_id,)
    assert ev.ClearOutbox(uid(task)) in agent.step(ev.ReceiptReceived(receipt(task)), LATE)


def test_an_update_in_chunks_without_a_receipt_is_announced_again_some_time_after_a_reconnect() -> None:
    """The coordinator may have died after the ack of the manifest and before its notice that asks for the chunks."""
    task = make_task()
    agent = publishing(task)
    agent.step(ev.PublishConfirmed(uid(task), kept=True), LATE)
    agent.step(ev.Disconnected(), LATE)
    agent.step(ev.Connected(), LATE + 1)
    assert "AnnounceAgain" not in kinds(agent.step(ev.Tick(), LATE + 1))
    again = agent.step(ev.Tick(), LATE + 1 + ANNOUNCE_AGAIN_S)
    assert only(ev.AnnounceAgain, again) == ev.AnnounceAgain(uid(task), task.task_id)
    assert "AnnounceAgain" not in kinds(agent.step(ev.Tick(), LATE + 1000))
    agent.step(ev.NoticeReceived(notice("say_hello", task)), LATE + 1000)
    assert "AnnounceAgain" in kinds(agent.step(ev.Tick(), LATE + 1000 + ANNOUNCE_AGAIN_S))


def test_an_update_whose_manifest_is_lost_here_is_sent_from_the_start() -> None:
    task = make_task()
    known = {uid(task): (task.task_id, task.run_id)}
    agent = make_agent(restored=ev.Restored(outbox=known, sent=known))
    agent.step(ev.Started(), 0.0)
    agent.step(ev.Connected(), 0.0)
    assert "AnnounceAgain" in kinds(agent.step(ev.Tick(), ANNOUNCE_AGAIN_S))
    again = agent.step(ev.NotAnnounced(uid(task)), ANNOUNCE_AGAIN_S)
    assert only(ev.PublishUpdate, again) == ev.PublishUpdate(uid(task), task.task_id, from_start=True)
    assert agent.step(ev.NotAnnounced("of an update that is over"), ANNOUNCE_AGAIN_S) == []


def test_what_got_its_receipt_or_went_in_one_message_is_not_announced_again() -> None:
    agent = connected()
    for number, kept in ((1, True), (2, False)):
        task = make_task(number)
        agent.step(ev.TaskReceived(task, number), LATE)
        agent.step(ev.TaskSpooled(task.task_id, number), LATE)
        agent.step(ev.TrainingFinished(task.task_id, 7), LATE)
        agent.step(ev.OutboxWritten(task.task_id), LATE)
        agent.step(ev.PublishConfirmed(uid(task), kept), LATE)
    agent.step(ev.ReceiptReceived(receipt(make_task(1))), LATE)
    agent.step(ev.NoticeReceived(notice("say_hello", make_task(1))), LATE)
    assert "AnnounceAgain" not in kinds(agent.step(ev.Tick(), LATE + ANNOUNCE_AGAIN_S))


def test_a_request_to_send_again_that_overtakes_the_confirm_is_heeded_after_it() -> None:
    task = make_task()
    agent = publishing(task)
    assert agent.step(ev.NoticeReceived(notice("send_again", task)), LATE) == []
    again = agent.step(ev.PublishConfirmed(uid(task), kept=True), LATE)
    assert again == [ev.PublishUpdate(uid(task), task.task_id, from_start=True)]
    assert task.task_id in agent.held()
    agent.step(ev.PublishConfirmed(uid(task), kept=True), LATE)
    assert ev.ClearOutbox(uid(task)) in agent.step(ev.ReceiptReceived(receipt(task)), LATE)


def test_a_withdrawn_task_s_update_in_chunks_leaves_the_disk() -> None:
    task = make_task()
    agent = publishing(task)
    agent.step(ev.PublishConfirmed(uid(task), kept=True), LATE)
    assert ev.ClearOutbox(uid(task)) in agent.step(ev.NoticeReceived(notice("task_withdrawn", task)), LATE)


def test_a_task_that_comes_again_while_its_chunks_are_fetched_is_acked_once_it_is_on_disk() -> None:
    agent, task = connected(), make_task()
    agent.step(ev.TaskReceived(task, 5), LATE)
    assert agent.step(ev.TaskReceived(task, 6), LATE) == [ev.Ack(5)]
    assert agent.step(ev.TaskSpooled(task.task_id, 5), LATE) == [ev.Ack(6), ev.StartTraining(task)]


def test_a_task_withdrawn_while_its_chunks_are_fetched_is_acked_and_no_longer_fetched() -> None:
    agent, task = connected(), make_task()
    agent.step(ev.TaskReceived(task, 5), LATE)
    commands = agent.step(ev.NoticeReceived(notice("task_withdrawn", task)), LATE)
    assert ev.CancelSpooling(task.task_id) in commands
    assert ev.Ack(5) in commands
    assert agent.held() == ()


def test_a_task_whose_chunks_are_lost_is_declined_and_the_disk_not_blamed() -> None:
    agent, task = connected(), make_task()
    agent.step(ev.TaskReceived(task, 5), LATE)
    commands = agent.step(ev.SpoolFailed(task.task_id, 5, "3 of 9 chunks never came", "payload_lost"), LATE)
    assert only(ev.SendDecline, commands).decline.reason == "payload_lost"
    agent.step(ev.DeclineConfirmed(task.task_id), LATE)
    assert kinds(agent.step(ev.TaskReceived(make_task(2), 6), LATE)) == ["SpoolTask"]


def test_a_model_that_a_task_refers_to_and_that_is_gone_is_asked_for_again_at_once() -> None:
    agent, own = connected(), make_task()
    payload = ChunkedPayload(payload_id="m", num_bytes=2048, chunk_bytes=1024, count=2, digest="0" * 64)
    reference = ModelReference(offset=7, digest="0" * 64)
    shared = make_task(2).model_copy(update={"chunks": payload, "reference": reference})
    for task, retry_after_s in ((own, None), (shared, 0.0)):
        agent.step(ev.TaskReceived(task, 5), LATE)
        commands = agent.step(ev.SpoolFailed(task.task_id, 5, "its chunks are gone", "payload_lost"), LATE)
        assert only(ev.SendDecline, commands).decline.retry_after_s == retry_after_s


def test_a_task_that_is_larger_than_this_participant_takes_is_unsupported() -> None:
    """The reason makes the coordinator wait before it sends the whole model again."""
    agent, task = connected(), make_task()
    agent.step(ev.TaskReceived(task, 5), LATE)
    commands = agent.step(ev.SpoolFailed(task.task_id, 5, "max_payload_bytes is 1", "unsupported"), LATE)
    assert only(ev.SendDecline, commands).decline.reason == "unsupported"
    assert ev.Ack(5) in commands
