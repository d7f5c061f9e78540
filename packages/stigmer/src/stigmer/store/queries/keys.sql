-- Of one organisation, or with '' of all.
SELECT id, name, digest, scopes, created_by, created_ms, expires_ms, revoked_ms, organisation FROM api_keys
WHERE :organisation = '' OR organisation = :organisation
ORDER BY created_ms, id
