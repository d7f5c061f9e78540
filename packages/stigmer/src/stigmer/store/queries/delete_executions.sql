-- Executions between these numbers, which hold no other than those that are to go.
DELETE FROM executions WHERE no >= :first AND no < :end RETURNING no
