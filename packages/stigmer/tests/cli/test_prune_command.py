"""`stigmer prune`: it asks, says what goes and how much that is, and never deletes unasked."""

from __future__ import annotations

import json
import re

SURE = "for good? [y/N] "


def three_runs(stigmer, fake) -> None:
    fake.script({"text": "1"}, {"text": "2"}, {"text": "3"})
    for task in ("a", "b", "c"):
        assert stigmer("run", task).returncode == 0


def tasks(stigmer) -> list[str]:
    return [json.loads(line)["task"] for line in stigmer("list", "--json").stdout.splitlines()]


def test_what_would_go_is_shown_and_what_is_meant_goes(stigmer, fake) -> None:
    three_runs(stigmer, fake)
    done = stigmer("prune", "--keep", "1", "--dry-run")
    assert done.returncode == 0
    assert re.fullmatch(r"would go: 2 executions of [\d.]+ kB, kept: the newest 1\n", done.stderr)
    done = stigmer("prune", "--keep", "1")
    assert done.returncode == 2
    assert "nobody is here to ask whether 2 executions of" in done.stderr
    assert "stigmer prune --yes" in done.stderr
    assert tasks(stigmer) == ["c", "b", "a"]
    done = stigmer("prune", "--older-than", "30", "--keep", "1", "--yes")
    assert done.stderr == "nothing to prune: kept: the last 30 days and the newest 1\n"
    found = json.loads(stigmer("prune", "--keep", "1", "--yes", "--json").stdout)
    assert found.pop("bytes") > 1000
    assert found == {
        "executions": 2,
        "sessions": 0,
        "older_than_days": None,
        "keep": 1,
        "dry_run": False,
        "compacted": True,
    }
    assert tasks(stigmer) == ["c"]


def test_without_options_the_setting_says_what_goes(stigmer, fake) -> None:
    three_runs(stigmer, fake)
    done = stigmer("prune", "--yes")
    assert done.returncode == 2
    assert "nothing says what may go: there is no `retention` setting" in done.stderr
    (stigmer.home.path / "config.yaml").write_text("retention: {keep: 2}\n")
    assert "pruned: 1 execution of" in stigmer("prune", "--yes").stderr
    assert tasks(stigmer) == ["c", "b"]
    done = stigmer("config", "set", "retention.days", "3")
    assert done.returncode == 2
    assert "retention: {days: 90}" in done.stderr


def test_a_person_is_asked_and_may_say_no(at_a_terminal, stigmer, fake) -> None:
    three_runs(stigmer, fake)
    code, shown = at_a_terminal("prune", "--older-than", "0", does=[(SURE, "")])
    assert (code, "nothing is deleted" in shown) == (1, True), shown
    assert "Delete 3 executions of" in shown
    code, shown = at_a_terminal("prune", "--older-than", "0", does=[(SURE, "y")])
    assert code == 0, shown
    assert "pruned: 3 executions" in shown
    assert tasks(stigmer) == []
