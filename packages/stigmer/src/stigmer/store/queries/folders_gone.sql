-- Which of these folders, a JSON list, have had no execution since before a moment.
SELECT folder FROM folders_gone
WHERE folder IN (SELECT value FROM json_each(:folders)) AND gone_ms < :before
AND NOT EXISTS (SELECT 1 FROM executions WHERE executions.folder = folders_gone.folder)
