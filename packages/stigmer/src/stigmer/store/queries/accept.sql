INSERT INTO executions (id, request, idempotency_key, state, created_ms)
VALUES (:id, :request, :idempotency_key, 'queued', :now)
RETURNING no
