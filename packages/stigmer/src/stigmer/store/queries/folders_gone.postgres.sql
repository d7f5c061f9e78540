-- Which of these folders, a JSON list, have had no execution since before a moment.
SELECT folder FROM folders_gone
WHERE folder IN (SELECT jsonb_array_elements_text(CAST(:folders AS JSONB))) AND gone_ms < :before
AND NOT EXISTS (SELECT 1 FROM executions WHERE executions.folder = folders_gone.folder)
