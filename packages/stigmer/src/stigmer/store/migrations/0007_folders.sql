-- The folder that its place gives an execution's files, as `volume/NAME`. A session's executions share one, and so does a
-- retry. NULL: it has none, or it was accepted before this was noted.
ALTER TABLE executions ADD COLUMN folder TEXT;

CREATE INDEX executions_folder ON executions (folder) WHERE folder IS NOT NULL;

-- Folders that no execution has any more: whoever has such a folder on a disk deletes it.
CREATE TABLE folders_gone (
  folder  TEXT   NOT NULL PRIMARY KEY,
  gone_ms BIGINT NOT NULL
);
