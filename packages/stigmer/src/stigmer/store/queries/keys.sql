-- Of one organisation, or with NULL of all.
SELECT id, name, digest, scopes, created_by, created_ms, expires_ms, revoked_ms, organisation FROM api_keys
WHERE CAST(:organisation AS TEXT) IS NULL OR organisation = :organisation
ORDER BY created_ms, id
