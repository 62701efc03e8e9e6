"""The ledger's tables. `run_s` is run time (coordinator.decisions.events); `wall_s` is Unix time, for people."""

from __future__ import annotations

from fedmq.coordinator.state.ledger import archive_tables, distillations, traffic

APPLICATION_ID = 0x66656D71
"""SQLite's application_id of a ledger: the letters "femq"."""
LEDGER_VERSION = 10
"""SQLite's user_version of a ledger. Raise it with every change of the tables."""
TIMEOUTS_SINCE = 6
"""The format that added the table of timeouts."""
CONNECTIONS_SINCE = 7
"""The format that added the table of connections."""
OLDEST_VERSION = 5
"""The oldest format that is read. A coordinator that goes on with such a run adds what is missing (`ADDED`)."""

TABLES = """
CREATE TABLE run(
    one INTEGER PRIMARY KEY CHECK (one = 1),
    run_id TEXT NOT NULL,
    run_uid TEXT NOT NULL,
    settings TEXT NOT NULL,         -- JSON, from the run's creation or its last resumption
    created_wall_s REAL NOT NULL,
    elapsed_s REAL NOT NULL,        -- run time at the last commit
    committed_wall_s REAL NOT NULL,
    finished TEXT                   -- the reason, NULL while the run goes on
) STRICT;
CREATE TABLE epochs(                -- each coordinator's time as the active one; only the newest may write
    epoch INTEGER PRIMARY KEY,
    host TEXT NOT NULL,
    pid INTEGER NOT NULL,
    began_wall_s REAL NOT NULL,
    ended_wall_s REAL               -- NULL until it leaves by itself
) STRICT;
CREATE TABLE checkpoints(           -- the newest row is the state; older ones go with their files
    seq INTEGER PRIMARY KEY,
    file TEXT NOT NULL,             -- inside checkpoints/
    digest TEXT NOT NULL,
    version INTEGER NOT NULL,
    accepted INTEGER NOT NULL,      -- the order of the last update inside
    scalars TEXT NOT NULL,          -- JSON: the decision core's state besides arrays
    run_s REAL NOT NULL,
    wall_s REAL NOT NULL
) STRICT;
CREATE TABLE versions(
    version INTEGER PRIMARY KEY,
    num_updates INTEGER NOT NULL,
    run_s REAL NOT NULL,
    wall_s REAL NOT NULL,
    checkpoint INTEGER NOT NULL     -- the first checkpoint that holds it: checkpoints.seq
) STRICT;
CREATE TABLE updates(               -- accepted ones; the primary key is the order that a replay follows
    accepted_order INTEGER PRIMARY KEY,
    update_id TEXT NOT NULL UNIQUE,
    task_id TEXT NOT NULL UNIQUE,
    participant_id TEXT NOT NULL,
    base_version INTEGER NOT NULL,
    staleness INTEGER NOT NULL,
    client_weight REAL NOT NULL,
    weight REAL,                    -- NULL until a version holds it
    version INTEGER,                -- likewise
    num_examples INTEGER NOT NULL,
    num_steps INTEGER NOT NULL,
    metrics TEXT NOT NULL,
    train_s REAL NOT NULL,
    run_s REAL NOT NULL,
    wall_s REAL NOT NULL,
    arrival_group INTEGER           -- the group that it came in time for; NULL if late, or if there are none
) STRICT;
CREATE TABLE discards(
    id INTEGER PRIMARY KEY,
    reason TEXT NOT NULL,
    detail TEXT NOT NULL,
    update_id TEXT,                 -- this and the next three: NULL if it could not be decoded
    task_id TEXT,
    participant_id TEXT,
    base_version INTEGER,
    staleness INTEGER,
    run_s REAL NOT NULL,
    wall_s REAL NOT NULL
) STRICT;
CREATE INDEX discards_by_task ON discards(task_id) WHERE task_id IS NOT NULL;
CREATE TABLE tasks(
    seq INTEGER PRIMARY KEY,
    task_id TEXT NOT NULL UNIQUE,
    participant_id TEXT NOT NULL,
    base_version INTEGER NOT NULL,
    issued_s REAL NOT NULL,
    lease_until_s REAL NOT NULL,
    state TEXT NOT NULL,
    detail TEXT NOT NULL,
    sent_s REAL NOT NULL,
    repeats INTEGER NOT NULL
) STRICT;
CREATE INDEX tasks_open ON tasks(state) WHERE state IN ('out', 'lapsed');
CREATE TABLE participants(
    participant_id TEXT PRIMARY KEY,
    record TEXT NOT NULL,           -- JSON of coordinator.decisions.records.ParticipantRecord
    wall_s REAL NOT NULL            -- time of the last commit that changed the record
) STRICT, WITHOUT ROWID;
CREATE TABLE memories(              -- the strategy's memory of each participant, as of the newest checkpoint
    participant_id TEXT NOT NULL,
    tensor TEXT NOT NULL,
    dtype TEXT NOT NULL,
    shape TEXT NOT NULL,            -- JSON
    crc32 INTEGER NOT NULL,
    bytes BLOB NOT NULL,            -- little-endian
    PRIMARY KEY (participant_id, tensor)
) STRICT;
CREATE TABLE evaluations(
    id INTEGER PRIMARY KEY,
    version INTEGER NOT NULL,
    metrics TEXT NOT NULL,
    detail TEXT NOT NULL,           -- why there are no metrics; empty if there are some
    run_s REAL NOT NULL,
    wall_s REAL NOT NULL
) STRICT;
"""
TABLES += archive_tables.TABLES

ADDED = {
    TIMEOUTS_SINCE: """
CREATE TABLE timeouts(              -- versions that their buffer's timeout made: the buffer was not full
    version INTEGER PRIMARY KEY
) STRICT;
""",
    CONNECTIONS_SINCE: """
CREATE TABLE connections(           -- the last news of the broker in each epoch, for people
    epoch INTEGER PRIMARY KEY,
    state TEXT NOT NULL,            -- connected, disconnected, blocked
    detail TEXT NOT NULL,
    wall_s REAL NOT NULL
) STRICT;
""",
    traffic.TRAFFIC_SINCE: traffic.TABLES,
    traffic.MODELS_SINCE: traffic.MODEL_TABLES,
    distillations.DISTILLATIONS_SINCE: distillations.TABLES,
}
"""Tables that later formats than OLDEST_VERSION have beside TABLES, by the format that added them."""


def tables_since(older: int, newer: int = LEDGER_VERSION) -> str:
    """Return the tables that a ledger of the format `newer` has, and one of `older` lacks."""
    return "".join(tables for added_in, tables in ADDED.items() if older < added_in <= newer)
