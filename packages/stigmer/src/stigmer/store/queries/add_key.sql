INSERT INTO api_keys (id, name, digest, scopes, organisation, created_by, created_ms, expires_ms)
VALUES (:id, :name, :digest, :scopes, :organisation, :created_by, :now, :expires_ms)
