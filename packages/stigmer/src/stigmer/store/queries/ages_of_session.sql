-- What a prune needs to know of each execution of a session; see ended.sql.
SELECT no, session, finished_ms, seq, length(request) AS bytes, organisation FROM executions
WHERE organisation = :organisation AND session = :session ORDER BY no
