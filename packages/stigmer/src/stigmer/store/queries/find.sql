SELECT no, id, request, state, epoch, seq, created_ms, finished_ms, organisation FROM executions
WHERE id = :id AND organisation = :organisation
