-- committed | aborted | in progress; NULL when the number is too old to be known.
SELECT pg_xact_status(CAST(CAST(:xid AS TEXT) AS xid8))
