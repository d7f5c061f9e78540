-- The process that drives it, in words that its machine can check: what a dead process held need not wait for its lease.
ALTER TABLE executions ADD COLUMN worker TEXT;
