-- The first of the same session that has not finished.
SELECT no, id, request, state, epoch, seq, created_ms, finished_ms, organisation FROM executions
WHERE organisation = (SELECT organisation FROM executions WHERE no = :no)
  AND session = (SELECT session FROM executions WHERE no = :no) AND finished_ms IS NULL
ORDER BY no LIMIT 1
