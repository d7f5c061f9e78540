SELECT no, id, request, state, epoch, seq, created_ms, finished_ms FROM executions WHERE no = :no
