-- No row comes back when another server was faster with the same idempotency key.
INSERT INTO executions (id, request, idempotency_key, state, created_ms)
VALUES (:id, :request, :idempotency_key, 'queued', :now)
ON CONFLICT DO NOTHING
RETURNING no
