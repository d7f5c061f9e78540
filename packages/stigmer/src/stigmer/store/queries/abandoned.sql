-- Nobody seems to drive these: the lease has run out, or they have been queued since :idle.
SELECT no, id, request, state, epoch, seq, created_ms, finished_ms FROM executions
WHERE (state = 'running' AND lease_until_ms <= :now)
   OR (state = 'queued' AND lease_until_ms <= :idle AND created_ms <= :idle)
ORDER BY no
