-- Executions and their events. Appended only: a later change is a new file.
CREATE TABLE executions (
  no              INTEGER PRIMARY KEY AUTOINCREMENT,
  id              TEXT    NOT NULL UNIQUE,
  -- CreateExecutionRequest without anything secret.
  request         BLOB    NOT NULL,
  idempotency_key TEXT    UNIQUE,
  -- queued | running | waiting | completed | failed | cancelled | budget_exceeded
  state           TEXT    NOT NULL,
  -- The attempt that may append; counts from 1.
  epoch           INTEGER NOT NULL DEFAULT 0,
  -- The last batch of that attempt, and the number of its first event.
  batch           INTEGER NOT NULL DEFAULT 0,
  batch_seq       INTEGER NOT NULL DEFAULT 0,
  lease_until_ms  INTEGER NOT NULL DEFAULT 0,
  -- The last event.
  seq             INTEGER NOT NULL DEFAULT 0,
  -- When a waiting execution must be looked at (an approval expires).
  wake_ms         INTEGER,
  created_ms      INTEGER NOT NULL,
  finished_ms     INTEGER
);

CREATE INDEX executions_state ON executions (state, no);

-- key = executions.no << 24 | seq. body = an encoded stigmer.v1.Event of at most 256 KiB, as it is sent to watchers.
CREATE TABLE events (
  key  INTEGER PRIMARY KEY,
  body BLOB NOT NULL
);

-- The uncut event, where `events` holds a cut one; read by replay only.
CREATE TABLE originals (
  key  INTEGER PRIMARY KEY,
  body BLOB NOT NULL
);
