-- Each organisation that has executions: from one to the next in the index, however many executions there are.
WITH RECURSIVE found (name) AS (
  SELECT min(organisation) FROM executions
  UNION ALL
  SELECT (SELECT min(organisation) FROM executions WHERE organisation > found.name) FROM found WHERE found.name IS NOT NULL
)
SELECT name FROM found WHERE name IS NOT NULL
