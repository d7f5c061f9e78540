-- A second time changes nothing: when it ended is kept.
UPDATE api_keys SET revoked_ms = :now
WHERE id = :id AND revoked_ms IS NULL AND (CAST(:organisation AS TEXT) IS NULL OR organisation = :organisation)
RETURNING id
