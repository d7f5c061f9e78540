-- One writer at a time: nothing to lock.
SELECT :session
