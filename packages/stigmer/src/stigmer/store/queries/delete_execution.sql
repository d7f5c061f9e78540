DELETE FROM executions WHERE no = :no
