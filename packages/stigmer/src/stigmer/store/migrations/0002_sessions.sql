-- A session is what its executions have in common: they are one conversation, and run one after the other.
ALTER TABLE executions ADD COLUMN session TEXT;

CREATE INDEX executions_session ON executions (session, no) WHERE session IS NOT NULL;
