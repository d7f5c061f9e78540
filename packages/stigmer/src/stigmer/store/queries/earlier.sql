-- Those of the same session that came before it.
SELECT no, id, request, state, epoch, seq, created_ms, finished_ms FROM executions
WHERE session = (SELECT session FROM executions WHERE no = :no) AND no < :no
ORDER BY no
