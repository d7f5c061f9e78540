-- Keys that let callers in. Of the key itself only its SHA-256, in hex, is kept.
CREATE TABLE api_keys (
  id         TEXT   NOT NULL PRIMARY KEY,
  name       TEXT   NOT NULL,
  digest     TEXT   NOT NULL,
  -- Words with a blank between them: read | run | worker | admin.
  scopes     TEXT   NOT NULL,
  created_by TEXT   NOT NULL,
  created_ms BIGINT NOT NULL,
  -- NULL: never.
  expires_ms BIGINT,
  revoked_ms BIGINT
);
