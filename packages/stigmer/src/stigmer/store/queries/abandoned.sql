-- Nobody seems to drive these: the lease has run out, or they have been queued since :idle, and not behind another one of
-- their session.
SELECT no, id, request, state, epoch, seq, created_ms, finished_ms, organisation FROM executions
WHERE (state = 'running' AND lease_until_ms <= :now)
   OR (state = 'queued' AND lease_until_ms <= :idle AND created_ms <= :idle
       AND NOT EXISTS (
         SELECT 1 FROM executions AS earlier
         WHERE earlier.organisation = executions.organisation AND earlier.session = executions.session
           AND earlier.no < executions.no AND earlier.finished_ms IS NULL
       ))
ORDER BY no
