-- Nobody seems to drive these: the lease has run out, or nobody has begun, or gone on, since :idle.
SELECT no, id, request, state, epoch, seq, created_ms, finished_ms FROM executions
WHERE (state = 'running' AND lease_until_ms <= :now)
   OR (state = 'queued' AND lease_until_ms <= :idle AND (epoch > 0 OR created_ms <= :idle))
ORDER BY no
