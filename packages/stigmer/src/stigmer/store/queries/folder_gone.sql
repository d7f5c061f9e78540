-- Notes that a folder has no execution any more, where that is so.
INSERT INTO folders_gone (folder, gone_ms)
SELECT CAST(:folder AS TEXT), CAST(:now AS BIGINT) WHERE NOT EXISTS (SELECT 1 FROM executions WHERE folder = :folder)
ON CONFLICT DO NOTHING
