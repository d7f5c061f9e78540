-- In that state, of one organisation, or with NULL of all.
SELECT count(*) FROM executions WHERE state = :state AND (CAST(:organisation AS TEXT) IS NULL OR organisation = :organisation)
