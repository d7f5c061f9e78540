SELECT CAST(
  coalesce((SELECT sum(length(body)) FROM events WHERE key >= :first AND key < :end), 0)
  + coalesce((SELECT sum(length(body)) FROM originals WHERE key >= :first AND key < :end), 0) AS BIGINT
)
