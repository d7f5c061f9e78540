"""The workflow: attempt after attempt, until the execution has finished. Imports nothing but Temporal.

Names are frozen: they stand in histories that must be replayed. What is passed are ids, whatever a run's size. A change of
what it asks of Temporal stands behind `workflow.patched`, and the histories of tests/golden/temporal show that those who
are under way can go on: see docs/temporal.md.
"""

from __future__ import annotations

from datetime import timedelta

from temporalio import workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import ActivityError, TimeoutError, TimeoutType

__all__ = ["ACTIVITY", "ELSEWHERE", "HEARTBEAT", "WAKE", "WORKFLOW", "AgentExecution"]

WORKFLOW = "stigmer/agent-execution"
ACTIVITY = "stigmer/run-execution"
WAKE = "wake"

ELSEWHERE = "elsewhere"
"""An attempt that did not begin, because the files of the execution are with another worker: `elsewhere QUEUE SECONDS`
names that one's own queue, and how long it is waited for."""

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
        queue, patience = "", ""
        while True:
            self._woken = False
            outcome = await _attempt(execution, queue, patience)
            if outcome.startswith(ELSEWHERE):
                _, queue, patience = outcome.split(" ")
                continue
            if outcome != "waiting":
                return outcome
            await workflow.wait_condition(lambda: self._woken)

    @workflow.signal(name=WAKE)
    def wake(self) -> None:
        """Something that the execution may have waited for has happened."""
        self._woken = True


async def _attempt(execution: str, queue: str, patience: str) -> str:
    """One attempt, by any worker; or by the one whose queue it is, and by any one after all where that one is gone."""
    if not queue:
        return await _run([execution])
    try:
        return await _run([execution], queue=queue, patience=timedelta(seconds=float(patience)))
    except ActivityError as error:
        why = error.cause
        if not isinstance(why, TimeoutError) or why.type is not TimeoutType.SCHEDULE_TO_START:
            raise
    return await _run([execution, True])


async def _run(
    arguments: list[object], *, queue: str | None = None, patience: timedelta | None = None
) -> str:
    outcome: str = await workflow.execute_activity(
        ACTIVITY,
        args=arguments,
        result_type=str,
        task_queue=queue,
        schedule_to_start_timeout=patience,
        heartbeat_timeout=HEARTBEAT,
        start_to_close_timeout=ATTEMPT_LIMIT,
        retry_policy=RETRY,
        cancellation_type=workflow.ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
    )
    return outcome
