-- What processes of one machine drive, or drove when they died.
SELECT no, id, request, state, epoch, seq, created_ms, finished_ms, organisation, worker FROM executions
WHERE state = 'running' AND substr(worker, 1, length(:machine)) = :machine
ORDER BY no
