-- The one that was used last comes first; `first` and `last` are the numbers of its executions.
SELECT session, count(*), min(no) AS first, max(no) AS last
FROM executions WHERE organisation = :organisation AND session IS NOT NULL
GROUP BY session ORDER BY max(no) DESC LIMIT :limit
