SELECT no, id, request, state, epoch, seq, created_ms, finished_ms, organisation FROM executions WHERE state = 'waiting' AND wake_ms <= :now ORDER BY no
