-- Those of the same session that came before it.
SELECT no, id, request, state, epoch, seq, created_ms, finished_ms, organisation FROM executions
WHERE organisation = (SELECT organisation FROM executions WHERE no = :no)
  AND session = (SELECT session FROM executions WHERE no = :no) AND no < :no
ORDER BY no
