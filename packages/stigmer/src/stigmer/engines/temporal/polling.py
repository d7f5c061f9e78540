"""The worker's side of Temporal: polls a queue, runs the activity, heartbeats from its first line."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol

from graphton.errors import JournalError
from temporalio import activity
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory
from temporalio.worker import Worker

from stigmer.engines.temporal.workflow import ACTIVITY, ELSEWHERE, HEARTBEAT, AgentExecution

if TYPE_CHECKING:
    from temporalio.client import Client
    from temporalio.worker import WorkerDeploymentConfig

__all__ = ["Drives", "Takes", "poll"]

log = logging.getLogger("stigmer.worker")

BEAT_SECONDS = HEARTBEAT.total_seconds() / 4
HAND_OVER = 0.8
"""The part of the grace time after which what still runs is handed over; the rest is for handing over."""


class Drives(Protocol):
    """What runs one attempt of an execution here."""

    async def drive(self) -> str:
        """Drives it; how it ended: done | waiting | shutdown, or `elsewhere DISK SECONDS`."""
        ...

    def hand_over(self) -> None:
        """Stops it here, so that another worker goes on with the execution."""
        ...


class Takes(Protocol):
    """What takes executions."""

    @property
    def disk(self) -> str:
        """The disk that holds files of executions here; "": none does."""
        ...

    def take(self, execution: str, *, alone: bool = False) -> Drives:
        """The next attempt of an execution. `alone`: the worker that has its files was waited for long enough."""
        ...


async def poll(
    client: Client,
    hands: Takes,
    *,
    queue: str,
    grace: float,
    most: int,
    deployment: WorkerDeploymentConfig | None = None,
    on_ready: Callable[[], None] = lambda: None,
    on_end: Callable[[], None] = lambda: None,
) -> None:
    """Takes executions from the queue until this task is cancelled; then what runs has `grace` seconds.

    `on_ready` and `on_end` are called as it begins and ends to take them.
    """

    @activity.defn(name=ACTIVITY)
    async def run_execution(execution: str, alone: bool = False) -> str:
        if activity.is_worker_shutdown():  # It came by a call for work that was still open.
            raise _ends_here()
        taken = hands.take(execution, alone=alone)
        beating = asyncio.create_task(_beat(), name=f"heartbeat {execution}")
        leaving = asyncio.create_task(_leave(taken, grace * HAND_OVER), name=f"leave {execution}")
        try:
            outcome = await _driven(taken)
        except JournalError as error:
            log.warning("attempt given up execution=%s reason=%r", execution, error.message)
            raise ApplicationError(
                error.message, type=error.code, category=ApplicationErrorCategory.BENIGN
            ) from error
        finally:
            for task in (beating, leaving):
                task.cancel()
            await asyncio.gather(beating, leaving, return_exceptions=True)
        if outcome == "shutdown":
            raise _ends_here()
        if outcome.startswith(ELSEWHERE):
            _, disk, patience = outcome.split(" ")
            return f"{ELSEWHERE} {own_queue(queue, disk)} {patience}"
        return outcome

    limits: dict[str, Any] = {
        "activities": [run_execution],
        "max_concurrent_activities": most,
        "graceful_shutdown_timeout": timedelta(seconds=grace),
        "max_heartbeat_throttle_interval": timedelta(seconds=BEAT_SECONDS),
        "default_heartbeat_throttle_interval": timedelta(seconds=BEAT_SECONDS),
    }
    worker = Worker(
        client,
        task_queue=queue,
        workflows=[AgentExecution],
        deployment_config=deployment,
        **limits,
    )
    workers = [worker]
    if (
        hands.disk
    ):  # What has its files here is taken from a queue of its own, which no version of others serves.
        workers.append(Worker(client, task_queue=own_queue(queue, hands.disk), **limits))
    async with AsyncExitStack() as around:
        for one in workers:
            await around.enter_async_context(one)
        on_ready()
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        on_end()
        await asyncio.gather(*(one.shutdown() for one in workers))  # All at once: the grace time is one.


def own_queue(queue: str, disk: str) -> str:
    """The queue of the worker that has this disk."""
    return f"{queue}@{disk}"


def _ends_here() -> ApplicationError:
    """What Temporal is told so that another worker begins at once."""
    return ApplicationError(
        "this worker ends",
        type="shutdown",
        next_retry_delay=timedelta(milliseconds=1),
        category=ApplicationErrorCategory.BENIGN,
    )


async def _driven(taken: Drives) -> str:
    """Drives it; a cancelled activity (the worker ends, or Temporal has given it to another) hands it over first."""
    driving = asyncio.ensure_future(taken.drive())
    try:
        return await asyncio.shield(driving)
    except asyncio.CancelledError:
        taken.hand_over()
        with suppress(JournalError):
            await driving
        raise


async def _beat() -> None:
    while True:  # Its beginning was the first one.
        await asyncio.sleep(BEAT_SECONDS)
        activity.heartbeat()


async def _leave(taken: Drives, patience: float) -> None:
    """When the worker ends: lets the execution go on for a while, then hands it over."""
    await activity.wait_for_worker_shutdown()
    await asyncio.sleep(patience)
    taken.hand_over()
