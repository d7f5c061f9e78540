-- At most :limit events and about :room bytes, one at least: what is not wanted never leaves the server.
SELECT key, body
FROM (
  SELECT key, body, sum(length(body)) OVER (ORDER BY key) - length(body) AS before
  FROM (
    SELECT key, body FROM events WHERE key >= :first AND key < :end ORDER BY key LIMIT :limit
  ) AS page
) AS sized
WHERE before < :room
ORDER BY key
