-- The folders of the executions between these numbers.
SELECT DISTINCT folder FROM executions WHERE no >= :first AND no < :end AND folder IS NOT NULL
