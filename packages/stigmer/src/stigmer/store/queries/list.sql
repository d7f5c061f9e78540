SELECT no, id, request, state, epoch, seq, created_ms, finished_ms, organisation FROM executions
WHERE organisation = :organisation AND no < :before
ORDER BY no DESC LIMIT :limit
