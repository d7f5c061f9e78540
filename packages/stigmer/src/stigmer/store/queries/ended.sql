-- Of the executions that ended before a moment and have a number below `below`: those without a session, and the last one
-- of each session. The page that follows (ended, after), the oldest first. `bytes` is what the row itself takes, seq tells
-- how many events there are.
SELECT no, session, finished_ms, seq, length(request) AS bytes, organisation FROM executions
WHERE organisation = :organisation AND finished_ms < :before AND (finished_ms, no) > (:ended, :after) AND no < :below
AND (session IS NULL OR NOT EXISTS (
  SELECT 1 FROM executions AS later
  WHERE later.organisation = executions.organisation AND later.session = executions.session AND later.no > executions.no
))
ORDER BY finished_ms, no LIMIT :limit
