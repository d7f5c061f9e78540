-- What a prune decides by; `bytes` is what the row itself takes, seq tells how many events there are.
SELECT no, session, finished_ms, seq, length(request) AS bytes, organisation FROM executions
WHERE no > :after ORDER BY no LIMIT :limit
