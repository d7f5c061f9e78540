-- The fence: no row comes back when the epoch is old, the batch is not the next one, or the execution has finished.
UPDATE executions
SET seq = seq + :count,
    batch = :batch,
    batch_seq = seq + 1,
    state = coalesce(:state, state),
    wake_ms = CASE WHEN :state IS NULL THEN wake_ms ELSE :wake_ms END,
    lease_until_ms = CASE WHEN :release = 1 THEN 0 ELSE lease_until_ms END,
    finished_ms = :finished_ms
WHERE no = :no AND epoch = :epoch AND batch = :batch - 1 AND finished_ms IS NULL
RETURNING seq
