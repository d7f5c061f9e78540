"""The `retention` setting: strictly read, from the user's file and the daemon's environment only."""

from __future__ import annotations

from pathlib import Path

import pytest
from stigmer.config import Retention, layer_from_file, retention
from stigmer.errors import ConfigError


def problems(text: str, tmp_path: Path) -> tuple[str, ...]:
    return layer_from_file(tmp_path / "config.yaml", text, home=tmp_path).problems


@pytest.mark.parametrize(
    ("text", "means"),
    [
        ("retention: {days: 90, keep: 1000}\n", Retention(90, 1000)),
        ("retention:\n  keep: 5\n", Retention(None, 5)),
        ("retention:\n", Retention()),
        ("mode: local\n", Retention()),
    ],
)
def test_a_file_says_days_and_count(text: str, means: Retention, tmp_path: Path) -> None:
    layer = layer_from_file(tmp_path / "config.yaml", text, home=tmp_path)
    assert layer.problems == ()
    assert layer.retention == means


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "retention: 90\n",
            "retention 90 in file ~/config.yaml, line 1 is no map, e.g. retention: {days: 90",
        ),
        (
            "retention: {days: 0}\n",
            "retention.days 0 in file ~/config.yaml, line 1 is not a whole number of days",
        ),
        ("retention: {days: true}\n", "retention.days True in file"),
        ("retention: {keep: 1.5}\n", "retention.keep 1.5 in file"),
        (
            "retention: {kep: 5}\n",
            "unknown key 'kep' in `retention:` in file ~/config.yaml, line 1: did you mean",
        ),
        ("retension: {keep: 5}\n", "did you mean `retention`?"),
    ],
)
def test_what_is_wrong_in_a_file_is_told_with_its_line(text: str, problem: str, tmp_path: Path) -> None:
    (told,) = problems(text, tmp_path)
    assert problem in told


def test_a_project_may_not_say_what_is_deleted(tmp_path: Path) -> None:
    layer = layer_from_file(tmp_path / "config.yaml", "retention: {days: 1}\n", "project_file")
    (told,) = layer.problems
    assert "may not stand in a project's file" in told
    assert not layer.retention


def test_the_environment_says_it_too_and_all_faults_are_told_together() -> None:
    assert retention({"STIGMER_RETENTION_DAYS": " 30 ", "STIGMER_RETENTION_KEEP": ""}) == Retention(30)
    with pytest.raises(ConfigError) as caught:
        retention({"STIGMER_RETENTION_DAYS": "-1", "STIGMER_RETENTION_KEEP": "0"})
    assert caught.value.problems == (
        "STIGMER_RETENTION_DAYS '-1' is not a whole number of days from 1 to 36500, e.g. 90",
        "STIGMER_RETENTION_KEEP '0' is not a whole number of executions from 1 to 1000000000, e.g. 1000",
    )
