SELECT coalesce(originals.body, events.body)
FROM events LEFT JOIN originals ON originals.key = events.key
WHERE events.key >= :first AND events.key < :end
ORDER BY events.key
