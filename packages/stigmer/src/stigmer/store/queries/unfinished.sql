SELECT no, id, request, state, epoch, seq, created_ms, finished_ms, organisation FROM executions WHERE state IN ('queued', 'running', 'waiting') ORDER BY no
