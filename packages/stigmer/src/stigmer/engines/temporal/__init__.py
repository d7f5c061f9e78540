"""The engine on Temporal: a workflow of one activity per attempt; the journal keeps what happens in it."""

from __future__ import annotations

from stigmer.errors import StigmerError

__all__ = ["insist_on_temporalio"]


def insist_on_temporalio() -> None:
    """Raises StigmerError where Temporal's SDK, which is an extra, is not installed."""
    try:
        import temporalio.client  # noqa: F401
    except ImportError as error:
        raise StigmerError(
            f"the engine temporal needs Temporal's SDK, and it is missing: {error}",
            hint="pip install 'stigmer[temporal]'; in a clone: uv sync --all-packages --extra temporal",
        ) from error
