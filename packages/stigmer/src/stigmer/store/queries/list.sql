SELECT no, id, request, state, epoch, seq, created_ms, finished_ms FROM executions
WHERE no < :before AND (:state = '' OR state = :state)
ORDER BY no DESC LIMIT :limit
