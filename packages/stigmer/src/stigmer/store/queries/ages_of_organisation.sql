-- The same of one organisation.
SELECT no, session, finished_ms, seq, length(request) AS bytes, organisation FROM executions
WHERE organisation = :organisation AND no > :after ORDER BY no LIMIT :limit
