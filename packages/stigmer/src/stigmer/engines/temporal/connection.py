"""The connection to Temporal: its standard settings, and the two questions that the engine asks."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from stigmer.engines.temporal.workflow import WAKE, WORKFLOW
from stigmer.errors import StigmerError

if TYPE_CHECKING:
    from temporalio.client import Client
    from temporalio.worker import WorkerDeploymentConfig

__all__ = [
    "DEFAULT_QUEUE",
    "TemporalAway",
    "TemporalWorkflows",
    "connect",
    "deployment",
    "reachable",
    "task_queue",
]

DEFAULT_QUEUE = "stigmer"
DEPLOYMENT = ("TEMPORAL_DEPLOYMENT_NAME", "TEMPORAL_WORKER_BUILD_ID")
LIMIT_SECONDS = 10.0
"""So long an answer is waited for: a connection to a machine that has vanished says nothing for ever."""


class TemporalAway(OSError):
    """Temporal does not answer, or not now."""


def task_queue(environ: Mapping[str, str] | None = None) -> str:
    """The queue that workers take executions from: STIGMER_TASK_QUEUE, else `stigmer`."""
    environ = os.environ if environ is None else environ
    return environ.get("STIGMER_TASK_QUEUE", "").strip() or DEFAULT_QUEUE


async def connect(*, lazy: bool = False, limit: float = LIMIT_SECONDS) -> Client:
    """A client by Temporal's own settings: TEMPORAL_ADDRESS, TEMPORAL_NAMESPACE, TEMPORAL_API_KEY, TEMPORAL_TLS_* and
    the profile file (docs.temporal.io, environment configuration). `lazy` does not wait for it.

    Raises StigmerError when a setting cannot be used, TemporalAway when nobody answers.
    """
    from temporalio.client import Client
    from temporalio.envconfig import ClientConfig

    # An empty variable is not set, here too: an empty TEMPORAL_API_KEY would ask for TLS.
    given = {name: value for name, value in os.environ.items() if value.strip()}
    try:
        settings: dict[str, Any] = dict(ClientConfig.load_client_connect_config(override_env_vars=given))
    except (RuntimeError, ValueError, OSError) as error:
        raise StigmerError(
            f"Temporal's settings cannot be used: {error}",
            hint="look at TEMPORAL_ADDRESS, TEMPORAL_NAMESPACE, TEMPORAL_API_KEY and TEMPORAL_TLS_*",
        ) from error
    settings.setdefault("target_host", "localhost:7233")
    try:
        async with asyncio.timeout(limit):
            return await Client.connect(**settings, lazy=lazy)
    except TimeoutError as error:
        where = settings["target_host"]
        raise TemporalAway(f"Temporal at {where!r} did not answer within {limit:g} s") from error
    except RuntimeError as error:
        raise TemporalAway(f"Temporal at {settings['target_host']!r} does not answer: {error}") from error


def deployment(environ: Mapping[str, str] | None = None) -> WorkerDeploymentConfig | None:
    """The worker deployment version that this process is, by TEMPORAL_DEPLOYMENT_NAME and TEMPORAL_WORKER_BUILD_ID, the
    variables that Temporal's worker controller sets; None, without versioning, where neither is set.

    An execution moves on to the version that is current when its workflow is next told something, so a version can go as
    soon as its attempts have ended. Raises StigmerError where one of the two is missing.
    """
    from temporalio.common import VersioningBehavior, WorkerDeploymentVersion
    from temporalio.worker import WorkerDeploymentConfig

    environ = os.environ if environ is None else environ
    name, build = (environ.get(variable, "").strip() for variable in DEPLOYMENT)
    if not name and not build:
        return None
    if not name or not build:
        set_, missing = DEPLOYMENT if name else reversed(DEPLOYMENT)
        raise StigmerError(
            f"{set_} is set and {missing} is not: a worker's version has a name and a build",
            hint=f"set both, or neither: {DEPLOYMENT[0]}=stigmer {DEPLOYMENT[1]}=v1",
        )
    return WorkerDeploymentConfig(
        version=WorkerDeploymentVersion(deployment_name=name, build_id=build),
        use_worker_versioning=True,
        default_versioning_behavior=VersioningBehavior.AUTO_UPGRADE,
    )


async def reachable(client: Client) -> None:
    """Raises TemporalAway when Temporal does not answer."""
    from temporalio.service import RPCError

    try:
        well = await client.service_client.check_health()
    except (RPCError, RuntimeError) as error:
        raise TemporalAway(f"Temporal does not answer: {error}") from error
    if not well:
        raise TemporalAway("Temporal says that it is not well")


class TemporalWorkflows:
    """The workflows of executions, on one task queue."""

    def __init__(self, client: Client, *, queue: str, limit: float = LIMIT_SECONDS) -> None:
        self._client, self._queue, self._limit = client, queue, limit

    async def start(self, execution: str) -> None:
        """Starts the execution's workflow, where none is running."""
        await self._start(execution)

    async def wake(self, execution: str) -> None:
        """Wakes the execution's workflow, or starts it."""
        await self._start(execution, start_signal=WAKE)

    async def reachable(self) -> None:
        """Raises TemporalAway when Temporal does not answer."""
        await reachable(self._client)

    async def _start(self, execution: str, **more: Any) -> None:
        from temporalio.common import WorkflowIDConflictPolicy, WorkflowIDReusePolicy
        from temporalio.service import RPCError

        try:
            async with asyncio.timeout(self._limit):
                await self._client.start_workflow(
                    WORKFLOW,
                    execution,
                    id=execution,
                    task_queue=self._queue,
                    id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE,
                    id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
                    **more,
                )
        except TimeoutError as error:
            raise TemporalAway(f"Temporal did not answer within {self._limit:g} s") from error
        except (RPCError, RuntimeError) as error:  # RuntimeError: a lazy connection that cannot be made.
            raise TemporalAway(str(error)) from error
