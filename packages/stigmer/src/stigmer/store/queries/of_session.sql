SELECT no, id, request, state, epoch, seq, created_ms, finished_ms FROM executions
WHERE session = :session
ORDER BY no
