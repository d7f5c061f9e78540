-- Organisations, as 0005_organisations.sql has them for SQLite. A server of the version before, which goes on while a
-- cluster is brought up to date, works in `default`.
ALTER TABLE executions ADD COLUMN organisation TEXT NOT NULL DEFAULT 'default';

ALTER TABLE executions DROP CONSTRAINT executions_idempotency_key_key;

DROP INDEX executions_state;

DROP INDEX executions_session;

CREATE UNIQUE INDEX executions_idempotency ON executions (organisation, idempotency_key) WHERE idempotency_key IS NOT NULL;

CREATE INDEX executions_organisation ON executions (organisation, no);

CREATE INDEX executions_state ON executions (state, organisation, no);

CREATE INDEX executions_session ON executions (organisation, session, no) WHERE session IS NOT NULL;

ALTER TABLE api_keys ADD COLUMN organisation TEXT NOT NULL DEFAULT 'default';
