"""The ledger. This is the only room that imports sqlite3."""
