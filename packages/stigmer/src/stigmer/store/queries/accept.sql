-- No row comes back when another server was faster with the same idempotency key.
INSERT INTO executions (id, organisation, request, idempotency_key, session, folder, state, created_ms)
VALUES (:id, :organisation, :request, :idempotency_key, :session, :folder, 'queued', :now)
ON CONFLICT DO NOTHING
RETURNING no
