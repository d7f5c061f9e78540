DELETE FROM events WHERE key >= :first AND key < :end
