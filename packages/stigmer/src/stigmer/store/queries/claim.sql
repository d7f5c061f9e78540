-- Executions of one session run in the order of their numbers: none begins while one before it has not finished.
UPDATE executions
SET epoch = epoch + 1, batch = 0, batch_seq = 0, lease_until_ms = :lease_until_ms, worker = :process
WHERE no = :no AND finished_ms IS NULL AND lease_until_ms <= :now
  AND NOT EXISTS (
    SELECT 1 FROM executions AS earlier
    WHERE earlier.organisation = executions.organisation AND earlier.session = executions.session
      AND earlier.no < executions.no AND earlier.finished_ms IS NULL
  )
RETURNING epoch
