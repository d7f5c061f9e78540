UPDATE executions
SET lease_until_ms = :lease_until_ms
WHERE no = :no AND epoch = :epoch AND finished_ms IS NULL
RETURNING no
