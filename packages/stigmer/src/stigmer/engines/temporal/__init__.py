"""The engine on Temporal: a workflow of one activity per attempt; the journal keeps what happens in it."""
