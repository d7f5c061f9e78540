-- What every connection of ours wants: a server that stopped in the middle of a transaction must not hold others up.
SELECT set_config('lock_timeout', '10s', false), set_config('idle_in_transaction_session_timeout', '5s', false)
