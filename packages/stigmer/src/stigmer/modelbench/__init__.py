"""The scoreboard of local models: tasks, programs that check what came out, and how the figures are counted.

`task.py` says what a task is, `checks.py` what "right" can mean, `tasks.py` which tasks there are (one file a kind).
`_attempt.py` does one task with the agent as `stigmer run` would; `__main__.py` does many in a process of its own,
because the command line reaches no provider. `results.py` keeps what came out, `scores.py` counts it.
"""

__all__: list[str] = []
