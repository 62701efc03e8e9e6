"""`fedmq study` as a process."""

import signal
import subprocess
import sys

STUDY = """
name = "long"
seeds = 12
tuning = false
[problem]
name = "quadratics"
[run]
concurrency = 4
stop = {max_updates = 2000}
[training]
learning_rate = 0.1
[[strategies]]
label = "fives"
strategy = {name = "fedbuff", buffer_size = 5}
[[populations]]
participants = 10
compute = {task_s = {name = "exponential", mean = 1}}
"""


def start(folder, *more):
    command = [sys.executable, "-m", "fedmq", "study", str(folder / "study.toml"), "-o", str(folder / "out"), *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_ctrl_c_ends_it_cleanly_and_the_second_run_goes_on(tmp_path):
    (tmp_path / "study.toml").write_text(STUDY)
    with start(tmp_path, "-j", "1") as process:
        first = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert first.startswith("1/12 fives")
    assert process.returncode == 130
    assert "Traceback" not in errors
    finished = len(list((tmp_path / "out" / "cells").glob("*.json")))
    assert 1 <= finished < 12
    assert f"Stopped. {finished} finished cells are kept" in errors
    with start(tmp_path) as process:
        output, errors = process.communicate(timeout=100)
    assert process.returncode == 0, errors
    lines = [line for line in output.splitlines() if "/12 fives" in line]
    assert len(lines) == 12 - finished
    assert "12 cells in" in output


def test_a_label_with_brackets_is_text(tmp_path):
    label = "fives [K=5] [/bold] :smile: x"
    few = STUDY.replace("seeds = 12", "seeds = 1").replace("2000", "20")
    (tmp_path / "study.toml").write_text(few.replace('label = "fives"', f'label = "{label}"'))
    with start(tmp_path, "-j", "1") as process:
        output, errors = process.communicate(timeout=100)
    assert process.returncode == 0, errors
    table = [line for line in output.splitlines() if "fives" in line or "smile" in line]
    assert "".join(table[0].split()).startswith("1/1" + "".join(label.split()))
    assert "[K=5]" in table[1]
    assert ":smile:" in output.partition("seed 0")[2]


def test_the_table_in_a_pipe_is_whole(tmp_path):
    label = "fives with a label that takes all of the eighty characters that there may be 12"
    few = STUDY.replace("seeds = 12", "seeds = 2").replace("2000", "20").replace("{max_", "{target = GOAL, max_")
    few = few.replace("GOAL", "{name = 'distance', value = 0.0, mode = 'min'}")
    (tmp_path / "study.toml").write_text(few.replace('label = "fives"', f'label = "{label}"'))
    with start(tmp_path, "-j", "1") as process:
        output, errors = process.communicate(timeout=100)
    assert process.returncode == 0, errors
    row = next(line for line in output.splitlines() if line.strip().startswith("fives"))
    assert label in row
    assert row.count("±") == 2
    assert "…" not in output
