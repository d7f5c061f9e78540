"""Which database this server works on: STIGMER_DATABASE_URL, else the file in its home. Decided here and nowhere else."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from stigmer.home import Home

__all__ = ["VARIABLE", "database_of"]

VARIABLE = "STIGMER_DATABASE_URL"


def database_of(home: Home, environ: Mapping[str, str] | None = None) -> Path | str:
    """The path of a SQLite file, or the address of a PostgreSQL database. An empty variable is not set."""
    environ = os.environ if environ is None else environ
    return environ.get(VARIABLE, "").strip() or home.database
