-- Executions and their events, as 0001_start.sql has them for SQLite. Appended only: a later change is a new file.
CREATE TABLE executions (
  no              BIGINT  GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  id              TEXT    NOT NULL UNIQUE,
  request         BYTEA   NOT NULL,
  idempotency_key TEXT    UNIQUE,
  state           TEXT    NOT NULL,
  epoch           BIGINT  NOT NULL DEFAULT 0,
  batch           BIGINT  NOT NULL DEFAULT 0,
  batch_seq       BIGINT  NOT NULL DEFAULT 0,
  lease_until_ms  BIGINT  NOT NULL DEFAULT 0,
  seq             BIGINT  NOT NULL DEFAULT 0,
  wake_ms         BIGINT,
  created_ms      BIGINT  NOT NULL,
  finished_ms     BIGINT
  -- A row is updated by every commit and never grows: room on its page makes the update cheap.
) WITH (fillfactor = 70);

CREATE INDEX executions_state ON executions (state, no);

CREATE TABLE events (
  key  BIGINT PRIMARY KEY,
  body BYTEA  NOT NULL
);

CREATE TABLE originals (
  key  BIGINT PRIMARY KEY,
  body BYTEA  NOT NULL
);
