-- Control events (cancel, decisions, the sweep) belong to no attempt; only a finished execution refuses them, or one
-- that has grown since :seen, if that is not 0.
UPDATE executions
SET seq = seq + :count,
    -- `resumed` queues what waits; it does not touch what runs already.
    state = CASE WHEN :state = 'queued' AND :release = 0 AND state = 'running' THEN state ELSE coalesce(:state, state) END,
    wake_ms = CASE WHEN :state IS NULL THEN wake_ms ELSE :wake_ms END,
    lease_until_ms = CASE WHEN :release = 1 THEN 0 ELSE lease_until_ms END,
    finished_ms = :finished_ms
WHERE no = :no AND finished_ms IS NULL AND (:seen = 0 OR seq = :seen)
RETURNING seq
