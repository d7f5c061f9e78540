SELECT pg_notify('stigmer_events', :payload)
