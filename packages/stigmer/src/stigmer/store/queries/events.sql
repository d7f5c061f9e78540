SELECT key, body FROM events WHERE key >= :first AND key < :end ORDER BY key LIMIT :limit
