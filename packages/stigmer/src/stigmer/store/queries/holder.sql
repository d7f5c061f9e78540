-- Who drives an execution that runs, or at which server its worker's line is.
SELECT worker FROM executions WHERE no = :no AND state = 'running'
