-- The store's clock, and this transaction's number, by which a lost answer to COMMIT can be asked for again.
SELECT CAST(extract(epoch FROM clock_timestamp()) * 1000 AS BIGINT), CAST(pg_current_xact_id() AS TEXT)
