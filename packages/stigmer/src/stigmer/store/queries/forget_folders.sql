-- Whoever had these folders has deleted them long ago, or comes no more.
DELETE FROM folders_gone WHERE gone_ms < :before
