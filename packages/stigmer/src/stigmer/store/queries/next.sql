-- The first of the same session that has not finished.
SELECT no, id, request, state, epoch, seq, created_ms, finished_ms FROM executions
WHERE session = (SELECT session FROM executions WHERE no = :no) AND finished_ms IS NULL
ORDER BY no LIMIT 1
