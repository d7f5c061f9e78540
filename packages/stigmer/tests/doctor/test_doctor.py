"""`stigmer doctor`: what it looks at, what decides, and what it must never do."""

from __future__ import annotations

import json
import os
import re
import socket
from pathlib import Path

import pytest
from stigmer.doctor import AREAS

SENTINEL = "sk-sentinel-0123456789abcdef"
DOCS = Path(__file__).parents[4] / "docs"
SOURCES = [*(Path(__file__).parents[2] / "src" / "stigmer" / "doctor").glob("*.py")]
LIST = {"data": [{"id": "claude-haiku-4-5-20251001"}, {"id": "claude-sonnet-5-5"}]}


def anthropic(web, **more: str) -> dict[str, str]:
    """An environment in which the default run goes to this web server with a key."""
    return {"MODE": "cloud", "ANTHROPIC_BASE_URL": web.url, "ANTHROPIC_API_KEY": SENTINEL, **more}


# --- what decides


def test_with_nothing_there_it_says_which_model_to_fetch(report, stigmer) -> None:
    code, rows = report(OLLAMA_HOST="", STIGMER_MODELS=str(stigmer.folder / "none"))
    if rows["ollama.server"]["status"] != "skip":
        pytest.skip("an Ollama listens on this machine")
    assert code == 1
    model = rows["llamacpp.model"]
    assert (model["status"], model["hint"]) == (
        "fail",
        "stigmer models pull qwen2.5-coder:" + model["facts"]["model"][-4:],
    )
    assert "is not on this machine" in model["text"]
    assert [id for id, row in rows.items() if row["status"] == "fail"] == ["llamacpp.model"]


def test_a_key_that_works_is_all_that_a_hosted_run_needs(report, web, stigmer) -> None:
    web.answers["/v1/models"] = (200, LIST)
    code, rows = report(**anthropic(web, STIGMER_LLM_MODEL="claude-haiku-4.5"))
    assert code == 0
    row = rows["provider.anthropic"]
    assert row["status"] == "ok"
    assert row["text"].startswith(
        f"anthropic: the key from env ANTHROPIC_API_KEY (your shell) works at {web.url} (2 models"
    )
    assert row["facts"]["outcome"] == "works"
    assert rows["provider.anthropic.model"]["text"] == "anthropic has the model 'claude-haiku-4-5-20251001'"
    assert web.paths == ["GET /v1/models?limit=1000"]
    assert web.asked[0][2]["x-api-key"] == SENTINEL


def test_a_key_that_is_refused_decides_where_the_default_run_uses_it(report, web) -> None:
    web.answers["/v1/models"] = (
        401,
        {"error": {"type": "authentication_error", "message": f"bad {SENTINEL}"}},
    )
    code, rows = report(**anthropic(web))
    assert code == 1
    row = rows["provider.anthropic"]
    assert (row["status"], row["facts"]["outcome"], row["facts"]["http_status"]) == (
        "fail",
        "key_refused",
        401,
    )
    assert row["text"] == f"anthropic at '{web.url}' answered 401 (authentication_error): bad ***"
    assert row["hint"] == (
        "the key is from env ANTHROPIC_API_KEY (your shell); get a good one, then export ANTHROPIC_API_KEY=…, or: "
        "stigmer secret set ANTHROPIC_API_KEY"
    )


def test_a_refused_key_of_a_provider_that_is_not_used_is_only_worth_a_word(report, web) -> None:
    web.answers["/v1/models"] = (200, LIST)
    web.answers["/openai/models"] = (401, {})
    code, rows = report(
        **anthropic(web, STIGMER_LLM_MODEL="claude-haiku-4.5"),
        OPENAI_BASE_URL=f"{web.url}/openai",
        OPENAI_API_KEY=SENTINEL,
    )
    assert code == 0
    assert (rows["provider.openai"]["status"], rows["provider.openai"]["facts"]["role"]) == ("warn", "other")


def test_flags_say_which_run_is_meant(report, web) -> None:
    web.answers["/v1/models"] = (200, {"data": [{"id": "own-model"}]})
    environment = {"OPENAI_BASE_URL": f"{web.url}/v1", "OPENAI_API_KEY": SENTINEL}
    code, rows = report("--provider", "openai", "--model", "own-model", **environment)
    assert code == 0
    assert rows["settings.run"]["facts"]["settings"]["model"] == {
        "value": "own-model",
        "source": "flag --model",
        "shadowed": [],
    }
    assert rows["provider.openai.model"]["facts"]["found"] is True


def test_a_missing_key_is_the_problem_that_decides(report) -> None:
    code, rows = report("--mode", "cloud")
    assert code == 1
    row = rows["settings.problem.1"]
    assert row["text"].startswith(
        "provider 'anthropic' at https://api.anthropic.com needs a key, and none was found in"
    )
    assert row["hint"].startswith("set ANTHROPIC_API_KEY, e.g. export ANTHROPIC_API_KEY=…")
    assert rows["provider.anthropic"]["facts"]["outcome"] == "no_key"


def test_a_fallback_is_asked_for_its_model_too(report, web) -> None:
    web.answers["/v1/models"] = (200, LIST)
    web.answers["/openai/models"] = (200, {"data": [{"id": "spare"}]})
    code, rows = report(
        "--fallback",
        "openai:spare",
        **anthropic(web, STIGMER_LLM_MODEL="claude-haiku-4.5"),
        OPENAI_BASE_URL=f"{web.url}/openai",
        OPENAI_API_KEY=SENTINEL,
    )
    assert code == 0
    assert rows["provider.openai"]["facts"]["role"] == "fallback"
    assert rows["provider.openai.model"]["text"] == "openai has the model 'spare'"


# --- what it must never do


def test_it_starts_no_daemon_and_makes_no_home(report, stigmer) -> None:
    report("--offline")
    assert not stigmer.home.path.exists()


def test_offline_it_asks_nobody(report, web) -> None:
    code, rows = report("--offline", **anthropic(web))
    assert code == 0
    assert web.asked == []
    row = rows["provider.anthropic"]
    assert row["text"] == (
        f"anthropic at {web.url}: not asked (--offline); a key is there, from env ANTHROPIC_API_KEY (your shell)"
    )
    assert row["status"] == "skip"


def test_no_secret_is_in_what_it_prints(stigmer, web) -> None:
    web.answers["/v1/models"] = (401, {"error": {"message": f"no such key {SENTINEL}"}})
    web.answers["/openai/models"] = (500, SENTINEL.encode())
    web.headers["X-Echo"] = SENTINEL
    environment = {
        **anthropic(web),
        "OPENAI_BASE_URL": f"{web.url}/openai",
        "OPENAI_API_KEY": SENTINEL,
        "HTTPS_PROXY": "http://me:proxy-sentinel-0123@127.0.0.1:9",
        "STIGMER_DATABASE_URL": "postgresql://me:base-sentinel-0123@127.0.0.1:9/stigmer",
    }
    for form in ((), ("--json",), ("-v",), ("--offline",)):
        done = stigmer("doctor", *form, **environment)
        said = done.stdout + done.stderr
        assert SENTINEL in str(web.asked) or form == ("--offline",)
        for secret in (SENTINEL, SENTINEL[3:], "proxy-sentinel-0123", "base-sentinel-0123"):
            assert secret not in said


def test_a_key_goes_only_to_the_address_that_it_is_bound_to(report, web, stigmer) -> None:
    web.answers["/v1/models"] = (200, LIST)
    (stigmer.folder / ".stigmer").mkdir()
    stigmer.home.path.mkdir(mode=0o700)
    stigmer.home.config.write_text(f"llm:\n  provider: openai\n  model: m\n  base_url: {web.url}/v1\n")
    code, rows = report(OPENAI_API_KEY=SENTINEL)
    assert code == 1
    assert SENTINEL not in str(web.asked)
    assert "the key from env OPENAI_API_KEY (your shell) is not sent" in rows["settings.notice.1"]["text"]
    assert rows["provider.openai"]["facts"]["outcome"] == "no_key"


def test_a_redirect_is_not_followed_with_the_key(report, web) -> None:
    web.answers["/v1/models"] = (307, b"")
    web.headers["Location"] = f"{web.url}/elsewhere"
    code, rows = report(**anthropic(web))
    assert code == 1
    assert rows["provider.anthropic"]["facts"]["outcome"] == "redirect"
    assert web.paths == ["GET /v1/models?limit=1000"]


# --- how it is shown


def test_people_read_areas_marks_and_hints(stigmer, web) -> None:
    web.answers["/v1/models"] = (401, {})
    done = stigmer("doctor", **anthropic(web), TERM="xterm", PYTHONIOENCODING="utf-8")
    assert done.returncode == 1
    titles = [line for line in done.stdout.splitlines() if line and not line.startswith(" ")]
    assert titles == [*AREAS.values(), "The default run would not work: 1 of these decide it."]
    assert f"  ✗ anthropic at '{web.url}' answered 401\n      hint: the key is from env" in done.stdout
    assert "      provider" in done.stdout
    assert "***cdef" in done.stdout
    assert done.stdout.endswith(f"  provider.anthropic: anthropic at '{web.url}' answered 401\n")


@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {"TERM": "xterm", "PYTHONIOENCODING": "ascii"}])
def test_where_signs_cannot_be_shown_words_stand(stigmer, environment) -> None:
    done = stigmer("doctor", "--offline", **environment)
    assert "  ok   stigmer " in done.stdout
    assert "✓" not in done.stdout


def test_every_check_and_outcome_is_documented() -> None:
    text = (DOCS / "doctor.md").read_text("utf-8")
    listed = set(re.findall(r"`([a-z_]+(?:\.[a-zN_]+)+)`", text))
    code = "".join(path.read_text("utf-8") for path in SOURCES)
    ids = {id for area in AREAS for id in re.findall(rf'"({area}\.[a-z_]+)"', code)}
    assert len(ids) > 15
    assert ids - listed == set()
    assert [one for one in OUTCOMES if f'"{one}"' not in code or f"`{one}`" not in text] == []


OUTCOMES = (
    "works",
    "no_key",
    "no_address",
    "not_asked",
    "key_refused",
    "forbidden",
    "no_list",
    "rate_limited",
    "redirect",
)
"""Those of the words that stand in the code as they are; the others are ConnectError's and a time-out's."""


# --- PostgreSQL


def test_a_postgresql_database_is_reached_and_shown_without_its_password(report, postgres) -> None:
    url = postgres.database()
    _, rows = report("--mode", "cloud", STIGMER_DATABASE_URL=url)
    row = rows["home.database"]
    assert row["status"] == "ok"
    assert re.match(r"PostgreSQL \d+ at postgresql://postgres@127\.0\.0\.1:", row["text"])
    assert row["text"].endswith("schema not made yet: the first run makes it")


def test_a_postgresql_database_that_is_not_there_decides(report) -> None:
    url = "postgresql://me:base-sentinel@127.0.0.1:9/stigmer"
    code, rows = report("--mode", "cloud", STIGMER_DATABASE_URL=url)
    row = rows["home.database"]
    assert (code, row["status"]) == (1, "fail")
    assert row["text"].startswith("the database 'postgresql://***@127.0.0.1:9/stigmer' cannot be used")


# --- the examiner


def test_an_examiner_that_dies_leaves_a_word_and_the_rest(stigmer) -> None:
    broken = stigmer.folder / "broken"
    broken.mkdir()
    (broken / "sitecustomize.py").write_text(
        "import sys\nif sys.orig_argv[-1] == 'stigmer.doctor':\n    sys.exit('no examiner today')\n"
    )
    path = os.pathsep.join(filter(None, [str(broken), stigmer.environment.get("PYTHONPATH", "")]))
    done = stigmer("doctor", "--json", "--offline", PYTHONPATH=path)
    rows = {row["id"]: row for row in json.loads(done.stdout)["checks"]}
    assert (done.returncode, rows["network.examiner"]["status"]) == (1, "fail")
    assert (
        rows["network.examiner"]["text"]
        == "the process that asks servers ended: SystemExit: no examiner today"
    )
    assert "home.folder" in rows


def test_what_else_the_examiner_prints_is_no_check(stigmer) -> None:
    noisy = stigmer.folder / "noisy"
    noisy.mkdir()
    (noisy / "sitecustomize.py").write_text(
        "import sys\nif sys.orig_argv[-1] == 'stigmer.doctor':\n    print('noise\\n{\"id\": 1}\\n[]')\n"
    )
    path = os.pathsep.join(filter(None, [str(noisy), stigmer.environment.get("PYTHONPATH", "")]))
    done = stigmer("doctor", "--json", "--offline", PYTHONPATH=path)
    rows = {row["id"] for row in json.loads(done.stdout)["checks"]}
    assert "llamacpp.library" in rows
    assert "network.examiner" not in rows


# --- a home or a daemon that is in the way


def test_a_home_that_cannot_be_used_leaves_the_rest_of_the_report(report, stigmer) -> None:
    (stigmer.folder / "home").write_text("")
    code, rows = report(STIGMER_HOME=str(stigmer.folder / "home"))
    assert code == 1
    assert rows["home.folder"]["text"] == f"STIGMER_HOME {str(stigmer.folder / 'home')!r} is not a folder"
    assert rows["program.version"]["status"] == "ok"


def test_a_running_daemon_is_asked_for_the_settings(report, stigmer, web) -> None:
    web.answers["/v1/models"] = (200, {"data": [{"id": "own-model"}]})
    environment = {"OPENAI_BASE_URL": f"{web.url}/v1", "OPENAI_API_KEY": SENTINEL}
    up = stigmer("up", "--provider", "openai", "--model", "own-model", **environment)
    assert up.returncode == 0
    code, rows = report()
    assert code == 0
    assert rows["home.daemon"]["text"].startswith(
        f"the daemon runs (pid {rows['home.daemon']['facts']['pid']})"
    )
    assert rows["home.database"]["text"].endswith("whole")
    assert "as the running daemon resolves it" in rows["settings.run"]["text"]
    row = rows["settings.daemon_key"]
    assert row["status"] == "skip"
    assert "is the daemon's alone (env OPENAI_API_KEY)" in row["text"]
    assert web.asked == []
    assert "home.surroundings" not in rows
    _, rows = report("--offline", HTTPS_PROXY="http://proxy.example:3128")
    row = rows["home.surroundings"]
    assert row["text"] == "the running daemon was started with another HTTPS_PROXY than this shell has"
    assert row["hint"] == "to use this shell's: stigmer down; the next run starts a new one"


def test_a_daemon_that_listens_and_says_nothing_decides(report, stigmer) -> None:
    stigmer.home.path.mkdir(mode=0o700)
    said = {"address": f"unix:{stigmer.home.socket}", "pid": os.getpid(), "version": "0.0.9"}
    stigmer.home.address.write_text(json.dumps(said))
    stigmer.home.token.write_text("word")
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(stigmer.home.socket))
        silent.listen()
        code, rows = report("--offline")
    assert code == 1
    assert rows["home.daemon"]["status"] == "warn"
    assert "is of version 0.0.9, and this is" in rows["home.daemon"]["text"]
    row = rows["home.daemon_answer"]
    assert row["text"].startswith(f"the daemon (pid {os.getpid()}) listens and does not answer: ")
    assert row["hint"] == "stigmer down; the next run starts a new one"
    assert "as a daemon started from here would resolve it" in rows["settings.run"]["text"]
    stigmer.home.address.unlink()


# --- before it is needed


def test_up_says_what_keeps_runs_from_beginning(stigmer) -> None:
    done = stigmer("up", "--mode", "cloud")
    assert done.returncode == 0
    listens, note, more = done.stderr.splitlines()
    assert "listens on" in listens
    assert note.startswith(
        "note: no run from here would begin: provider 'anthropic' at https://api.anthropic.com needs a key"
    )
    assert more == "for more: stigmer doctor"
    said = json.loads(stigmer("up", "--json", "--mode", "cloud").stdout)
    assert said["problems"][0].startswith("provider 'anthropic'")
    assert "setting problem=" in stigmer.home.log.read_text()


def test_a_bad_setting_of_the_daemon_is_a_usage_fault(stigmer) -> None:
    done = stigmer("up", STIGMER_ALLOWED_HOSTS="nonsense")
    assert done.returncode == 2
    assert (
        "the daemon did not start: STIGMER_ALLOWED_HOSTS: 'nonsense' is no provider with an address"
        in done.stderr
    )
