"""`stigmer key`: a key is made, shown once, listed and ended."""

from __future__ import annotations

import json
from typing import Any


def test_a_key_is_shown_once_and_ended(stigmer: Any) -> None:
    made = stigmer("key", "create", "--name", "ci")
    assert made.returncode == 0, made.stderr
    secret = made.stdout.strip()
    assert secret.startswith("stk_")
    assert "ci: run; keep it, it is not shown again" in made.stderr
    listed = stigmer("key", "list")
    assert secret not in listed.stdout
    (one,) = stigmer.events("key", "list")
    assert (one["name"], one["scopes"], one["revoked_ms"]) == ("ci", ["run"], None)
    assert listed.stdout.startswith(one["id"])
    assert "holds" in listed.stdout
    assert stigmer("key", "revoke", one["id"]).stderr.strip() == f"{one['id']} holds no more"
    assert stigmer("key", "revoke", one["id"]).stderr.strip() == f"{one['id']} had ended before"
    assert "ended" in stigmer("key", "list").stdout


def test_a_key_says_whose_it_is(stigmer: Any) -> None:
    assert stigmer("key", "create").returncode == 2
    wrong = stigmer("key", "create", "--name", "a\tb")
    assert wrong.returncode == 2
    assert "--name says who or what the key is for" in wrong.stderr
    made = stigmer("key", "create", "--name", "me", "--admin", "--expires-days", "7", "--json")
    key = json.loads(made.stdout)
    assert key["scopes"] == ["admin"]
    assert round((key["expires_ms"] - key["created_ms"]) / (24 * 3600 * 1000), 3) == 7
    assert key["secret"].startswith(key["id"])


def test_without_keys_the_list_says_how_to_make_one(stigmer: Any) -> None:
    listed = stigmer("key", "list")
    assert listed.stdout == ""
    assert "stigmer key create --name ci" in listed.stderr


def test_a_key_is_made_for_an_organisation_whose_runs_its_owner_can_name(stigmer: Any, fake: Any) -> None:
    made = stigmer("key", "create", "--name", "ann", "--organisation", "acme", "--admin")
    assert "ann: admin of acme; keep it, it is not shown again" in made.stderr
    assert stigmer("key", "list").stdout.rstrip().endswith("ann of acme")
    (one,) = stigmer.events("key", "list")
    assert one["organisation"] == "acme"
    fake.script({"text": "Hello."})
    stigmer.environment |= {**fake.environment, "STIGMER_ORGANISATION": "acme"}
    assert stigmer("run", "Say hello.").returncode == 0
    assert len(stigmer.events("list", "execution")) == 1
    stigmer.environment["STIGMER_ORGANISATION"] = "default"
    assert stigmer.events("list", "execution") == []
    stigmer.environment["STIGMER_ORGANISATION"] = "a b"
    wrong = stigmer("list", "execution")
    assert wrong.returncode == 2
    assert "STIGMER_ORGANISATION 'a b' is no organisation's name" in wrong.stderr
