"""`stigmer migrate`: a shared database is brought up to this version, and says so."""

from __future__ import annotations

import json
from typing import Any

from stigmer.store._dialect import migrations

KNOWN = len(migrations())
PASSWORD = "pa%40ss-w0rd"


def version(postgres: Any, url: str) -> int:
    ((found,),) = postgres.run("SELECT max(version) FROM stigmer_schema", on=url.rpartition("/")[2])
    return int(found)


def test_a_new_database_gets_its_schema_once(stigmer: Any, postgres: Any) -> None:
    url = postgres.database()
    stigmer.environment["STIGMER_DATABASE_URL"] = url
    first = stigmer("migrate")
    assert first.returncode == 0, first.stderr
    assert first.stderr == f"{url} is brought up to date: schema {KNOWN}, made anew\n"
    assert version(postgres, url) == KNOWN
    again = stigmer("migrate")
    assert (again.returncode, again.stderr) == (0, f"{url} is up to date: schema {KNOWN}\n")
    assert not stigmer.home.path.exists()


def test_an_older_database_is_brought_up(stigmer: Any, postgres: Any) -> None:
    url = postgres.database()
    database = url.rpartition("/")[2]
    postgres.run(migrations(dialect="postgres")[0], on=database)
    postgres.run("CREATE TABLE stigmer_schema (version BIGINT NOT NULL)", on=database)
    postgres.run("INSERT INTO stigmer_schema VALUES (1)", on=database)
    done = stigmer("migrate", "--json", STIGMER_DATABASE_URL=url)
    assert json.loads(done.stdout) == {"database": url, "before": 1, "schema": KNOWN}
    assert version(postgres, url) == KNOWN


def test_a_database_of_a_newer_version_is_refused_untouched(stigmer: Any, postgres: Any) -> None:
    url = postgres.database()
    assert stigmer("migrate", STIGMER_DATABASE_URL=url).returncode == 0
    postgres.run("INSERT INTO stigmer_schema VALUES (1000)", on=url.rpartition("/")[2])
    refused = stigmer("migrate", STIGMER_DATABASE_URL=url)
    assert refused.returncode == 1
    assert f"was written by a newer stigmer (schema 1000, this program knows {KNOWN})" in refused.stderr
    assert version(postgres, url) == 1000


def test_without_an_address_nothing_is_made(stigmer: Any) -> None:
    refused = stigmer("migrate")
    assert refused.returncode == 2
    assert refused.stderr == (
        "error: STIGMER_DATABASE_URL is not set; the database of a home is brought up to date by its own daemon\n"
        "hint: STIGMER_DATABASE_URL=postgresql://stigmer:PASSWORD@db.example.com:5432/stigmer stigmer migrate\n"
    )
    assert not stigmer.home.path.exists()


def test_a_database_that_is_away_is_told_without_its_password(stigmer: Any) -> None:
    url = f"postgresql://ann:{PASSWORD}@127.0.0.1:1/none"
    refused = stigmer("migrate", STIGMER_DATABASE_URL=url)
    assert refused.returncode == 1
    assert "the database 'postgresql://ann:***@127.0.0.1:1/none' cannot be used" in refused.stderr
    assert "w0rd" not in refused.stdout + refused.stderr
