-- The number of the last one of the newest that have ended; none where there are not so many.
SELECT no FROM executions WHERE organisation = :organisation AND finished_ms IS NOT NULL
ORDER BY no DESC LIMIT 1 OFFSET :others
