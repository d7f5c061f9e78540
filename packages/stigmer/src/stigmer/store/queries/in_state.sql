-- Of every organisation, one after the other; the page after the execution :after of :organisation.
SELECT no, id, request, state, epoch, seq, created_ms, finished_ms, organisation FROM executions
WHERE state = :state AND (organisation, no) > (:organisation, :after)
ORDER BY organisation, no LIMIT :limit
