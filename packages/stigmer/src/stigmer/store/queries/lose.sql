-- Gives up an attempt that never ended, once: nothing that it still sends is taken, whoever claims next comes after it.
UPDATE executions
SET seq = seq + 1, batch = -1, state = 'queued', lease_until_ms = :now
WHERE no = :no AND epoch = :epoch AND seq = :seen AND batch >= 0 AND finished_ms IS NULL AND lease_until_ms <= :until
RETURNING seq
