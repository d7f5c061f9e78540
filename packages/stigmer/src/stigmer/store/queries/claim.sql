UPDATE executions
SET epoch = epoch + 1, batch = 0, batch_seq = 0, lease_until_ms = :lease_until_ms
WHERE no = :no AND finished_ms IS NULL AND lease_until_ms <= :now
RETURNING epoch
