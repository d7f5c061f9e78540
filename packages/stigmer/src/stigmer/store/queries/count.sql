SELECT count(*) FROM executions WHERE state = :state
