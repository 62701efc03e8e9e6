import io
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

import fedmq
from fedmq.cli.commands import options
from fedmq.config.file import load_config
from fedmq.coordinator.decisions.records import ParticipantRecord, TaskRecord
from fedmq.coordinator.settings import TargetMetric
from fedmq.coordinator.state.ledger.rows import BrokerRow, CheckpointRow, CommitGroup, EpochRow
from fedmq.coordinator.state.ledger.traffic import ModelBytes, Traffic
from fedmq.coordinator.state.ledger.writer import Ledger
from fedmq.coordinator.state.run_folder import RunFolder
from fedmq.demo import demo
from fedmq.schemas.errors import LedgerError, MissingExtra
from fedmq.schemas.texts import escaped
from fedmq.views.live import Frame, LiveView, line, summary_table, with_everybody
from fedmq.views.plots import plot
from fedmq.views.status import BrokerStatus, ParticipantStatus, RunStatus, _strategy, has_begun, read_status
from fedmq.views.status_view import bar, duration, sparkline, status_view


def participant(name, **changes):
    values = {"participant_id": name, "state": "training", "num_examples": 1200, "last_seen_ago_s": 3.0,
              "base_version": 4, "task_age_s": 0.5, "last_staleness": 2, "accepted": 7, "discarded": 0,
              "declined": 0}  # fmt: skip
    return ParticipantStatus(**values | changes)


def run(**changes):
    values = {"run_id": "r1", "state": "running", "finished": None, "strategy": "fedbuff", "version": 5,
              "elapsed_s": 61.0, "committed_ago_s": 0.2,
              "coordinator": EpochRow(3, "host-a", 77, 1.0, None), "accepted": 12, "updates_per_s": 1.5,
              "discarded": {"too_stale": 3}, "clamped": {"num_steps": 2}, "set_backs": (),
              "staleness": {0: 8, 1: 3, 13: 1}, "tasks_out": 1,
              "metrics": {"accuracy": 0.5}, "evaluated_version": 4,
              "federated_metrics": {"loss": 0.25},
              "evaluation_problem": "", "participants": (participant("a"), participant("b", discarded=3))}  # fmt: skip
    return RunStatus(**values | changes)


def drawn(renderable, **options):
    console = Console(file=io.StringIO(), width=100, **options)
    console.print(renderable)
    return console.file.getvalue()


def test_the_status_tells_what_the_coordinator_sent_once_and_the_participants_read():
    told = run(models=ModelBytes(-1, 5_000_000, 20, 100_000_000))
    shown = " ".join(drawn(status_view(told)).split())
    assert "20 tasks refer to models: the participants read 100 MB of them, and the coordinator sent 5 MB" in shown
    assert "refer" not in drawn(status_view(run()))
    assert told.to_json()["models"] == {"sent_bytes": 5_000_000, "tasks": 20, "read_bytes": 100_000_000}


def test_the_status_tells_the_bytes_as_they_travelled_and_decoded():
    assert "bytes up" not in drawn(status_view(run())), "none were counted"
    counted = run(bytes_up=Traffic(10, 500_000, 2_000_000), bytes_down=Traffic(13, 2_600_000, 2_600_000))
    shown = drawn(status_view(counted))
    assert "bytes up 500 kB (decoded 2 MB, 4 times as much)  bytes down 2.6 MB (decoded 2.6 MB" in shown
    assert "2 updates were not counted" in " ".join(shown.split())
    up = {"messages": 10, "wire_bytes": 500_000, "decoded_bytes": 2_000_000, "ratio": 4.0}
    assert counted.to_json()["bytes_up"] == up
    assert run().to_json()["bytes_down"]["ratio"] is None


def test_the_reasons_of_declines_are_shown_once_each_with_who_gave_them():
    names = [participant(f"p{i}", decline="trainer_error: x has nan at [3, 1]") for i in range(5)]
    text = drawn(status_view(run(participants=(*names, participant("q", decline="no_data: none"), participant("r")))))
    assert "p0, p1, p2 and 2 more: trainer_error: x has nan at [3, 1]" in text
    assert "q: no_data: none" in text
    assert "\n  r:" not in text
    assert "Last answer" not in drawn(status_view(run()))


def test_participants_that_lack_the_runs_codec_are_marked_and_it_is_said_what_they_lack():
    people = (participant("p0", lacks="zstd"), participant("p1", lacks="int8"), participant("p2"))
    text = drawn(status_view(run(participants=people)))
    assert text.count("training plain v4") == 2
    assert "Asked for plain updates" in text
    assert "p0: has no zstd" in text
    assert "p1: has no int8" in text
    assert "plain" not in drawn(status_view(run()))


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (3600, "1 h 0 min"),
     (86_399, "23 h 59 min"), (1e6, "11 d 13 h")],
)  # fmt: skip
def test_durations_read_as_a_person_says_them(seconds, said):
    assert duration(seconds) == said


def test_bars_and_sparklines_have_the_width_of_their_values():
    assert (bar(0.0, 4), bar(0.5, 4), bar(1.0, 4), bar(2.0, 4)) == ("", "██", "████", "████")
    assert bar(1 / 32, 4) == "▏"
    assert sparkline([0.0, 0.5, 1.0], 5) == "▁▅█"
    assert len(sparkline([0.5] * 100, 7)) == 7


def test_a_status_shows_versions_participants_staleness_and_reasons():
    text = drawn(status_view(run()))
    for part in ("r1", "running", "version 5", "accepted 12", "discarded 3", "tasks out 1", "accuracy 0.5000",
                 "on the participants' data: loss 0.2500", "active coordinator: pid 77 on host-a, epoch 3",
                 "training v4 0.5 s", "too_stale", "11+", "mean staleness 1.33"):  # fmt: skip
        assert part in text
    assert "declined" not in text


def rows_of(text):
    return [row.split()[0] for row in text.splitlines() if row.startswith("p")][1:]


@pytest.mark.parametrize("height", [24, 40, 60])
def test_a_terminal_shows_a_screenful_of_participants_and_says_how_many_it_leaves_out(height):
    states = ["idle", "away", "training", "late", "done"]
    many = run(participants=tuple(participant(f"p{i:04}", state=states[i % 5]) for i in range(10_000)))
    screen = Console(file=io.StringIO(), width=100, height=height, force_terminal=True, color_system=None)
    screen.print(status_view(many))
    text = screen.file.getvalue()
    assert len(text.splitlines()) < height
    shown = rows_of(text)
    assert shown == [f"p{5 * i + 3:04}" for i in range(len(shown))], "late ones first, by id"
    late = 2000 - len(shown)
    counts = f"({late:,} late, 2,000 training, 2,000 idle, 2,000 away, 2,000 done)"
    assert f"and {10_000 - len(shown):,} more {counts}: fedmq status --all shows them" in " ".join(text.split())
    assert len(shown) >= (4 if height == 24 else height - 30)


def test_all_participants_are_shown_where_there_is_room_or_no_screen_and_on_demand():
    few = run(participants=tuple(participant(f"p{i}", state=state) for i, state in enumerate(["away", "late"])))
    wide = {"width": 100, "force_terminal": True, "color_system": None}
    screen = Console(file=io.StringIO(), height=24, **wide)
    screen.print(status_view(few))
    assert rows_of(screen.file.getvalue()) == ["p0", "p1"]
    many = run(participants=tuple(participant(f"p{i:02}") for i in range(90)))
    assert len(rows_of(drawn(status_view(many)))) == 90, "piped"
    screen = Console(file=io.StringIO(), height=24, **wide)
    screen.print(status_view(many, everybody=True))
    assert len(rows_of(screen.file.getvalue())) == 90
    assert "--all" not in screen.file.getvalue()


def test_no_column_is_cut_at_a_width_of_80():
    long = participant("sensor-1", base_version=120, task_age_s=3599.0, discarded=30, declined=4)
    gone = participant("sensor-2", state="away", why_away="revoked", base_version=None, last_seen_ago_s=5e5)
    screen = Console(file=io.StringIO(), width=80)
    screen.print(status_view(run(participants=(long, gone))))
    text = screen.file.getvalue()
    assert "…" not in text
    assert "training v120 59 min" in text
    assert "away (revoked)" in text
    assert " 5 d" in text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"coordinator_paused": True}, "The coordinator's process is paused: kill -CONT 77 lets it go on."),
        ({"broker": BrokerStatus("disconnected", "socket closed", 200.0)},
         "The coordinator lost its broker 3 min 20 s ago, and tries to reach it again: socket closed"),
        ({"broker": BrokerStatus("blocked", "low on memory", 5.0)},
         "The broker has taken no messages from the coordinator for 5.0 s: low on memory"),
        ({"committed_ago_s": 61.0}, "Nothing was committed for 1 min 1 s:"),
        ({"committed_ago_s": 60.0}, None),
        ({"committed_ago_s": 61.0, "participants": ()}, None),
        ({"broker": BrokerStatus("connected", "RabbitMQ at a", 5.0)}, None),
        ({"state": "stopped", "committed_ago_s": 61.0, "coordinator_paused": True}, None),
    ],
)  # fmt: skip
def test_a_status_says_what_keeps_a_coordinator_from_its_work(changes, said):
    text = " ".join(drawn(status_view(run(**changes))).split())
    found = [one for one in ("paused", "lost its broker", "no messages", "Nothing was committed") if one in text]
    assert len(found) == (said is not None)
    assert said is None or said in text
    lost = changes.get("broker") is not None and changes["broker"].state == "disconnected"
    assert ("running, without its broker" in text) == lost


def test_a_coordinator_of_another_host_that_is_silent_is_not_called_stopped():
    text = drawn(status_view(run(state="stopped", coordinator_elsewhere=True)))
    assert "not heard of (its coordinator is on another host)" in text


def record(name, **changes):
    fields = {"seq": 0, "session_id": "s", "num_examples": 1, "replies": ("delta",), "accepting": False,
              "reachable": True, "last_seen_s": 99.0}  # fmt: skip
    return ParticipantRecord(name, **fields | changes)


@pytest.fixture
def ledger(tmp_path):
    """The ledger of a run whose last commit was 10 s ago, at a run time of 100 s, by this process."""
    with Ledger(RunFolder(tmp_path).ledger) as ledger:
        ledger.take_over(socket.gethostname(), os.getpid(), time.time())
        state = CheckpointRow(0, "f", "d", 0, 0, {})
        ledger.create("r1", "u", {"run": {"participant_timeout_s": 60.0}}, 0.0, state)
        group = CommitGroup(
            participants={
                one.participant_id: one
                for one in (
                    record("asked", asked_again_at_s=111.0), record("asked-before", asked_again_at_s=109.0),
                    record("busy"), record("idle", accepting=True), record("left", left=True), record("lost"),
                    record("out", seq=1), record("revoked", revoked=True), record("silent", last_seen_s=49.0),
                    record("nearly-silent", last_seen_s=51.0), record("unreachable", reachable=False),
                )
            },
            tasks={f"t{i}": TaskRecord(f"t{i}", i, name, 3, 90.0, 700.0, state, "", 90.0, 0)
                   for i, (name, state) in enumerate([("out", "out"), ("lost", "lapsed"), ("left", "out")])},
        )  # fmt: skip
        ledger.commit(group, state, 100.0, time.time() - 10.0)
        yield ledger


def test_a_status_counts_from_now_and_those_who_have_gone_are_away_at_once(ledger, tmp_path):
    status = read_status(tmp_path)
    assert status.state == "running"
    assert 110.0 <= status.elapsed_s < 120.0
    found = {one.participant_id: one for one in status.participants}
    assert {name: one.state for name, one in found.items()} == {
        "asked": "declined", "asked-before": "busy", "busy": "busy", "idle": "idle", "left": "away", "lost": "late",
        "nearly-silent": "busy", "out": "training", "revoked": "away", "silent": "away", "unreachable": "unreachable",
    }  # fmt: skip
    assert [found[name].why_away for name in ("left", "revoked", "silent", "busy")] == ["left", "revoked", "silent", ""]
    assert 11.0 <= found["busy"].last_seen_ago_s < 20.0
    assert 61.0 <= found["silent"].last_seen_ago_s < 70.0
    assert 20.0 <= found["out"].task_age_s < 30.0
    assert found["left"].base_version == 3


def test_nobody_goes_away_while_the_coordinator_cannot_hear_them(ledger, tmp_path):
    def silent():
        return [one.participant_id for one in read_status(tmp_path).participants if one.why_away == "silent"]

    assert silent() == ["silent"]
    ledger.note_broker(BrokerRow("disconnected", "socket closed", time.time() - 9.0))
    assert silent() == []
    assert 9.0 <= read_status(tmp_path).broker.since_s < 20.0
    ledger.note_broker(BrokerRow("connected", "", time.time()))
    assert silent() == ["silent"]
    ledger.leave(time.time())
    stopped = read_status(tmp_path)
    assert (stopped.state, stopped.elapsed_s, stopped.broker, silent()) == ("stopped", 100.0, None, [])


KEEPS = """
import sys
from pathlib import Path
from fedmq.coordinator.state.run_folder import RunFolder

RunFolder(Path(sys.argv[1])).acquire("a broker and a prefix")
print("kept", flush=True)
sys.stdin.read()
"""


def test_a_coordinator_that_has_the_folder_and_is_not_active_yet_waits(ledger, tmp_path):
    ledger.leave(time.time())
    assert read_status(tmp_path).state == "stopped"
    with subprocess.Popen([sys.executable, "-c", KEEPS, str(tmp_path)], stdin=-1, stdout=-1, text=True) as other:
        assert other.stdout.readline() == "kept\n"
        status = read_status(tmp_path)
        other.stdin.close()
    assert (status.state, status.waiting_pids) == ("waiting", (other.pid,))
    assert f"waiting for its broker, or for its turn (coordinator: pid {other.pid})" in drawn(status_view(status))
    assert read_status(tmp_path).state == "stopped"


def test_run_time_that_stood_still_does_not_make_anybody_younger(ledger, tmp_path):
    now = time.time()
    ledger.commit(CommitGroup(), CheckpointRow(0, "f", "d", 0, 0, {}), 101.0, now)
    ages = {one.participant_id: one.last_seen_ago_s for one in read_status(tmp_path).participants}
    assert 10.0 <= ages["busy"] < 20.0


def test_a_stopped_run_says_how_it_goes_on_and_a_failed_evaluation_is_told():
    text = drawn(status_view(run(state="stopped", evaluation_problem="no memory", participants=(), staleness={})))
    assert "the same coordinator command continues it" in text
    assert "The last evaluation failed: no memory" in text
    assert "No participant has said hello yet." in text


def test_a_status_says_what_a_restored_folder_lost():
    told = "the folder was restored from a backup, or is a copy: versions 3 to 5 at least are lost"
    assert f"Set back: {told}" in " ".join(drawn(status_view(run(set_backs=(told,)))).split())
    assert "Set back" not in drawn(status_view(run()))


def test_the_staleness_of_a_status_survives_json():
    assert run().to_json()["staleness"] == {"0": 8, "1": 3, "13": 1}


def test_participants_that_are_not_here_yet_or_no_more_keep_their_place():
    rows = with_everybody(run(), ["b", "c", "a"], {"a": "ended"})
    assert [(row.participant_id, row.state) for row in rows] == [("b", "training"), ("c", "starting"), ("a", "ended")]
    assert rows[2].base_version is None
    left = run(participants=(participant("a", state="away", why_away="left"),))
    assert [row.why_away for row in with_everybody(left, ["a"], {"a": "ended"})] == [""]


def frame(elapsed_s=1.0, **changes):
    values = {"elapsed_s": elapsed_s, "run": run(), "curve": [(1.0, 0.4), (2.0, 0.9312)], "news": (),
              "participants": run().participants, "speeds": {"a": "+1.0 s"}}  # fmt: skip
    return Frame(**values | changes)


def test_the_live_view_shows_accuracy_speeds_and_news():
    text = drawn(LiveView(Console(file=io.StringIO()), "demo", 0.92).screen(frame(news=("b ended",))))
    for part in ("93.12%", "goal 92%", "+1.0 s", "b ended", "1.5 updates/s", "1,200"):
        assert part in text


def test_without_a_terminal_there_is_a_line_now_and_then_and_news_at_once():
    console = Console(file=io.StringIO(), width=200)
    with LiveView(console, "demo", 0.92) as view:
        for at_s, news in ((0.0, ()), (0.5, ()), (1.0, ("b ended",)), (2.5, ("b ended",))):
            view.show(frame(at_s, news=news))
    assert console.file.getvalue().splitlines() == [
        "   0.0 s  version   5  accuracy 93.12%   1.5 updates/s  12 accepted  2 training",
        "   1.0 s  b ended",
        "   2.5 s  version   5  accuracy 93.12%   1.5 updates/s  12 accepted  2 training",
    ]


def test_before_the_first_commit_there_is_something_to_show():
    empty = frame(run=None, curve=[], participants=with_everybody(None, ["a"], {}))
    assert line(empty) == "   1.0 s  starting: TensorFlow is being loaded"
    assert "starting: Tens" in drawn(LiveView(Console(file=io.StringIO()), "demo", 0.92).screen(empty))
    assert "The run never started." in drawn(summary_table(empty, "it crashed"))


def test_after_the_end_it_says_what_is_still_waited_for():
    over = frame(finishing=True)
    assert line(over).endswith("12 accepted  over, finishing up")
    assert "over, finishing up" in drawn(LiveView(Console(file=io.StringIO()), "demo", 0.92).screen(over))


def test_the_summary_says_why_it_was_over():
    text = drawn(summary_table(frame(), "target"))
    for part in ("target", "93.12%", "3 too_stale", "1.33"):
        assert part in text


def test_the_summary_has_the_accuracy_that_reached_the_goal_and_that_of_the_last_version():
    assert "92.10% at its best, 91.95% at the end" in drawn(
        summary_table(frame(curve=[(1.0, 0.921), (2.0, 0.9195)]), "target")
    )
    assert "at its best" not in drawn(summary_table(frame(), "target"))
    assert "not evaluated" in drawn(summary_table(frame(curve=[]), "target"))


def test_the_demo_stops_at_the_goal_that_it_draws(tmp_path):
    plan = demo.DemoPlan(tmp_path, 2, None, None, embedded=True)
    demo.write_files(plan)
    assert load_config(plan.config, environ={}).run.stop.target == TargetMetric(name="accuracy", value=demo.GOAL)


PACKAGE = Path(fedmq.__file__).parent
MARKED_UP = "pip install 'fedmq[studies]' :warning:"


def test_brackets_and_colons_in_a_text_are_no_markup(tmp_path, monkeypatch):
    told = run(discarded={MARKED_UP: 1}, participants=(participant(MARKED_UP),))
    assert drawn(status_view(told)).count(MARKED_UP) == 2
    screen = io.StringIO()
    with LiveView(Console(file=screen, width=200), "demo", 0.92) as view:
        view.show(frame(news=(MARKED_UP,)))
    assert MARKED_UP in screen.getvalue()

    def refuse(*_, **__):
        raise MissingExtra(MARKED_UP)

    monkeypatch.setattr(demo, "plot_run", refuse)
    plan = demo.DemoPlan(tmp_path / "[bold]", 1, None, None, embedded=True)
    text = drawn(demo.places(plan), soft_wrap=True)
    assert f"not drawn. {MARKED_UP}" in text
    assert f"fedmq status {tmp_path / '[bold]' / 'demo'}" in text


def test_a_commands_console_shows_text_as_it_is(capsys):
    options.console(soft_wrap=True).print(MARKED_UP)
    assert capsys.readouterr().out == f"{MARKED_UP}\n"
    makers = [path.name for path in PACKAGE.rglob("*.py") if " Console(" in path.read_text()]
    assert makers == ["options.py"]


def test_a_strategy_of_the_users_own_has_the_name_of_its_class():
    assert _strategy({"strategy": {"type": "Mine", "buffer_size": 2}}) == "Mine"
    assert _strategy({"strategy": {"type": "FedBuff", "name": "fedbuff"}}) == "fedbuff"


def test_a_run_has_begun_when_its_ledger_has_it(tmp_path):
    assert not has_begun(tmp_path)
    path = RunFolder(tmp_path).ledger
    path.touch()
    assert not has_begun(tmp_path)
    path.unlink()
    with Ledger(path) as ledger:
        assert not has_begun(tmp_path)
        ledger.take_over("h", 1, 0.0)
        ledger.create("r1", "u", {}, 0.0, CheckpointRow(0, "f", "d", 0, 0, {}))
        assert has_begun(tmp_path)
    path.write_bytes(b"no ledger")
    os.utime(path, (0, 0))
    with pytest.raises(LedgerError):
        has_begun(tmp_path)


@pytest.mark.parametrize("points", [[], [(1.0, 0.5)], [(1.0, 0.5), (2.0, 0.9)]])
@pytest.mark.parametrize("staleness", [{}, {0: 3, 40: 1}])
def test_a_picture_can_be_drawn_of_any_run(tmp_path, points, staleness):
    plot(points, staleness, tmp_path / "p.png", metric="accuracy", goal=0.9, title="t")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("text", ["\n2026-11-29 event=forged", "\x1b[2J\x1b[31mred", "\u202egpj.exe", "\r\a\b\x9b2J"])
def test_the_status_shows_the_names_of_metrics_and_a_failed_evaluation_escaped(text):
    hostile = run(federated_metrics={text: 0.5}, metrics={text: 0.25}, evaluation_problem=text)
    shown = drawn(status_view(hostile)).split("\n")
    assert all(one.isprintable() and not one.startswith("2026") for one in shown)
    assert drawn(status_view(hostile)).count(escaped(text)) == 3
