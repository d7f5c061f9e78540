SELECT epoch, batch, batch_seq, finished_ms FROM executions WHERE no = :no
