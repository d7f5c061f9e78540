DELETE FROM originals WHERE key >= :first AND key < :end
