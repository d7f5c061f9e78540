"""The workflow: attempt after attempt, until the execution has finished. Imports nothing but Temporal.

Names are frozen: they stand in histories that must be replayed. What is passed are ids, whatever a run's size. A change of
what it asks of Temporal stands behind `workflow.patched`, and the histories of tests/golden/temporal show that those who
are under way can go on: see docs/temporal.md.
"""

from __future__ import annotations

from datetime import timedelta

from temporalio import workflow
from temporalio.common import RetryPolicy

__all__ = ["ACTIVITY", "HEARTBEAT", "WAKE", "WORKFLOW", "AgentExecution"]

WORKFLOW = "stigmer/agent-execution"
ACTIVITY = "stigmer/run-execution"
WAKE = "wake"

HEARTBEAT = timedelta(seconds=10)
"""A worker that says nothing for so long is gone."""
ATTEMPT_LIMIT = timedelta(days=1)
"""No attempt may be longer: far above every budget of running time."""
RETRY = RetryPolicy(
    initial_interval=timedelta(milliseconds=200),
    backoff_coefficient=2.0,
    maximum_interval=timedelta(seconds=5),
)
"""An attempt that no outcome came of is followed by the next one, for ever: the engine ends runs that get nowhere."""


# Temporal's sandbox imports this module anew for each execution, which costs more than a step; nothing here could be
# different the next time.
@workflow.defn(name=WORKFLOW, sandboxed=False)
class AgentExecution:
    """One execution. Waiting for a person holds this workflow and nothing else."""

    def __init__(self) -> None:
        self._woken = False

    @workflow.run
    async def run(self, execution: str) -> str:
        """Gives `done` when the execution has finished."""
        while True:
            self._woken = False
            outcome: str = await workflow.execute_activity(
                ACTIVITY,
                execution,
                result_type=str,
                heartbeat_timeout=HEARTBEAT,
                start_to_close_timeout=ATTEMPT_LIMIT,
                retry_policy=RETRY,
                cancellation_type=workflow.ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
            )
            if outcome != "waiting":
                return outcome
            await workflow.wait_condition(lambda: self._woken)

    @workflow.signal(name=WAKE)
    def wake(self) -> None:
        """Something that the execution may have waited for has happened."""
        self._woken = True
