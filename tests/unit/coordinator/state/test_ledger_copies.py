"""Copies of a ledger, with and without the files that SQLite keeps beside it, where nothing can be written."""

import shutil
import sqlite3

import pytest

from fedmq.coordinator.state.ledger import opening
from fedmq.coordinator.state.ledger.reader import LedgerReader
from fedmq.coordinator.state.ledger.writer import Ledger


@pytest.fixture
def read_only(monkeypatch):
    """Let SQLite make no file, as on read-only media; root may write into any folder."""
    connect = opening._connect

    def refusing(path, how):
        db = connect(path, how)
        if how == "mode=ro" and "fedmq-ledger-" not in str(path) and not path.with_name(f"{path.name}-shm").exists():
            db.close()
            return _Unopened()
        return db

    monkeypatch.setattr(opening, "_connect", refusing)


class _Unopened:
    def execute(self, *_):
        error = sqlite3.OperationalError("unable to open database file")
        error.sqlite_errorcode = sqlite3.SQLITE_CANTOPEN
        raise error

    def close(self):
        pass


@pytest.mark.parametrize("files", [("", "-wal", "-shm"), ("", "-wal")])
def test_a_copy_with_the_log_has_all_that_was_committed(tmp_path, read_only, files):
    (tmp_path / "copy").mkdir()
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        ledger.take_over("here", 1, 0.0)
        for suffix in files:
            shutil.copy(tmp_path / f"ledger.sqlite{suffix}", tmp_path / "copy")
    with LedgerReader(tmp_path / "copy" / "ledger.sqlite") as copy:
        assert copy.newest_epoch().host == "here"
    assert {path.name for path in (tmp_path / "copy").iterdir()} >= {f"ledger.sqlite{suffix}" for suffix in files}


def test_a_ledger_alone_is_read_as_it_is(tmp_path, read_only):
    (tmp_path / "copy").mkdir()
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        ledger.take_over("here", 1, 0.0)
    shutil.copy(tmp_path / "ledger.sqlite", tmp_path / "copy")
    with LedgerReader(tmp_path / "copy" / "ledger.sqlite") as copy:
        assert copy.newest_epoch().host == "here"
    assert [path.name for path in (tmp_path / "copy").iterdir()] == ["ledger.sqlite"]
