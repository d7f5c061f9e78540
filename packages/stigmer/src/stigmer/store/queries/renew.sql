-- Only while the attempt runs: one that has just ended holds no lease any more.
UPDATE executions
SET lease_until_ms = :lease_until_ms
WHERE no = :no AND epoch = :epoch AND state = 'running' AND finished_ms IS NULL
RETURNING no
