SELECT id, name, digest, scopes, created_by, created_ms, expires_ms, revoked_ms, organisation FROM api_keys WHERE id = :id
