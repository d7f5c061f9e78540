-- Organisations: namespaces of executions, sessions and keys. What there is belongs to the one called `default`.
-- Idempotency keys are unique in their organisation only. SQLite takes no uniqueness away, so the table is written anew;
-- the numbers that it has given out stay given out.
CREATE TABLE executions_anew (
  no              INTEGER PRIMARY KEY AUTOINCREMENT,
  id              TEXT    NOT NULL UNIQUE,
  organisation    TEXT    NOT NULL DEFAULT 'default',
  request         BLOB    NOT NULL,
  idempotency_key TEXT,
  state           TEXT    NOT NULL,
  epoch           INTEGER NOT NULL DEFAULT 0,
  batch           INTEGER NOT NULL DEFAULT 0,
  batch_seq       INTEGER NOT NULL DEFAULT 0,
  lease_until_ms  INTEGER NOT NULL DEFAULT 0,
  seq             INTEGER NOT NULL DEFAULT 0,
  wake_ms         INTEGER,
  created_ms      INTEGER NOT NULL,
  finished_ms     INTEGER,
  session         TEXT,
  worker          TEXT
);

INSERT INTO sqlite_sequence (name, seq) SELECT 'executions_anew', seq FROM sqlite_sequence WHERE name = 'executions';

INSERT INTO executions_anew (
  no, id, request, idempotency_key, state, epoch, batch, batch_seq, lease_until_ms, seq, wake_ms, created_ms, finished_ms,
  session, worker
)
SELECT
  no, id, request, idempotency_key, state, epoch, batch, batch_seq, lease_until_ms, seq, wake_ms, created_ms, finished_ms,
  session, worker
FROM executions;

DROP TABLE executions;

ALTER TABLE executions_anew RENAME TO executions;

CREATE UNIQUE INDEX executions_idempotency ON executions (organisation, idempotency_key) WHERE idempotency_key IS NOT NULL;

-- A page of an organisation's list is read where it stands, however many executions others have.
CREATE INDEX executions_organisation ON executions (organisation, no);

CREATE INDEX executions_state ON executions (state, organisation, no);

CREATE INDEX executions_session ON executions (organisation, session, no) WHERE session IS NOT NULL;

ALTER TABLE api_keys ADD COLUMN organisation TEXT NOT NULL DEFAULT 'default';
