"""The ledger: the run's record in SQLite. This is the only room that imports sqlite3."""
