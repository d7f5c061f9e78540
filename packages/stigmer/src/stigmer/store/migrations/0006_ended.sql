-- What retention looks for, once an hour: executions that ended before a moment. Those that are not over are not in it, so
-- a step's commits do not touch it.
CREATE INDEX executions_ended ON executions (organisation, finished_ms, no) WHERE finished_ms IS NOT NULL;
