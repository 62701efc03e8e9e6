"""Streams that are closed, or that cannot hold our characters: by processes, as a shell starts them."""

import os
import subprocess
import sys

import pytest

from fedmq.app.children import importable, without_settings
from tests.support.full import in_full

FEDERATION = """
[run]
run_id = "größe-π"
"""


@pytest.fixture
def shell(tmp_path):
    """Return shell("doctor ... >&-"), which runs fedmq by /bin/sh in tmp_path."""
    (tmp_path / "federation.toml").write_text(FEDERATION)

    def run(line, **environ):
        return subprocess.run(
            ["/bin/sh", "-c", f'"{sys.executable}" -m fedmq {line}'],
            env=importable(without_settings(os.environ)) | environ,
            cwd=tmp_path,
            capture_output=True,
            timeout=60,
            check=False,
        )

    return run


ALONE = in_full("the closed standard output, and all three together")


@pytest.mark.parametrize(
    "where", [pytest.param("<&-", marks=ALONE), ">&-", pytest.param("2>&-", marks=ALONE), "<&- >&- 2>&-"]
)
def test_a_closed_stream_changes_no_exit_status(shell, where):
    done = shell(f"doctor -c federation.toml {where}")
    assert done.returncode == 2
    assert b"Traceback" not in done.stdout + done.stderr
    assert (b"has 3 mistakes" in done.stderr) == ("2>" not in where)


def test_closed_streams_are_taken_by_nothing_else(tmp_path):
    code = (
        "import os; from fedmq.schemas.local.streams import prepare_streams; prepare_streams(); "
        f"file = open({str(tmp_path / 'ledger')!r}, 'w'); print('lost'); os.write(2, b'lost'); "
        "assert file.fileno() == 3, file.fileno()"
    )
    subprocess.run(
        ["/bin/sh", "-c", f'exec "{sys.executable}" -c "$0" <&- >&- 2>&-', code],
        env=importable(without_settings(os.environ)),
        timeout=60,
        check=True,
    )
    assert (tmp_path / "ledger").read_text() == ""


OTHERS = in_full("the encoding that has the fewest characters and refuses the others")


@pytest.mark.parametrize(
    "encoding", [pytest.param("ascii", marks=OTHERS), pytest.param("latin-1", marks=OTHERS), "ascii:strict"]
)
def test_characters_that_the_terminal_lacks_are_replaced(shell, encoding):
    done = shell("status größe-π", PYTHONIOENCODING=encoding, PYTHONUTF8="0")
    assert done.returncode == 1
    assert b"there is no ledger at gr" in done.stderr
    done = shell("--help", PYTHONIOENCODING=encoding, COLUMNS="80")  # typer draws boxes
    assert done.returncode == 0
    assert b"coordinator" in done.stdout
    assert b"Traceback" not in done.stderr


def test_a_finding_with_a_mark_is_printed_in_ascii(shell, tmp_path):
    (tmp_path / "federation.toml").write_text(
        '[run]\nrun_id = "r"\nstop = { max_versions = 1 }\n[strategy]\nname = "fedasync"\n'
        '[broker]\nurl = "amqp://127.0.0.1:1"\n'
    )
    (tmp_path / "app.py").write_text("")
    done = shell("doctor -c federation.toml", PYTHONIOENCODING="ascii")
    assert done.returncode == 1
    assert done.stdout.startswith(b"? ")
    assert b"thing(s) to put right" in done.stdout
    assert b"Traceback" not in done.stderr
