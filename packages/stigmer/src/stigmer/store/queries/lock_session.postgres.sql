-- Until the transaction's end no other server adds to this session: its executions get their numbers in order.
SELECT pg_advisory_xact_lock(hashtextextended(CAST(:session AS TEXT), 0))
