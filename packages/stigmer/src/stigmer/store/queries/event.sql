SELECT body FROM events WHERE key = :key
