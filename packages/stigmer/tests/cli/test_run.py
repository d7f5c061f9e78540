"""`stigmer run` from the command line to the answer, through daemon, store, engine and loop."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from stigmer.daemon import find

READ = {"calls": [{"name": "read_file", "arguments": {"path": "notes.txt"}}]}


def waits_for(process: subprocess.Popen[str], word: str) -> str:
    """Reads the command's stderr up to a line with this word."""
    assert process.stderr is not None
    seen = ""
    for line in process.stderr:
        seen += line
        if word in line:
            return seen
    raise AssertionError(f"{word!r} did not come: {seen}")


def test_a_run_answers_on_stdout_and_tells_the_rest_on_stderr(stigmer, fake) -> None:
    (stigmer.folder / "notes.txt").write_text("the word is heron\n")
    fake.script(READ, {"text": "The word is heron."})
    done = stigmer("run", "Which word is in notes.txt?")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "The word is heron.\n"
    first = done.stderr.splitlines()[0]
    assert "test-model" in first
    assert "openai" in first
    assert "STIGMER_LLM_MODEL" in first
    assert "> read_file notes.txt" in done.stderr
    assert "tokens in" in done.stderr.splitlines()[-1]
    assert "heron" in json.dumps(fake.requests[1])


def test_json_gives_one_event_a_line_with_seq_rising_by_one(stigmer, fake) -> None:
    (stigmer.folder / "notes.txt").write_text("heron")
    fake.script(READ, {"text": "heron"})
    events = stigmer.events("run", "go")
    assert [e["type"] for e in events][:2] == ["created", "config_resolved"]
    assert events[-1]["type"] == "finished"
    assert events[-1]["outcome"] == "completed"
    stored = [e["seq"] for e in events if e["seq"] is not None]
    assert stored == list(range(1, len(stored) + 1))
    assert len({e["execution"] for e in events}) == 1
    assert {"model_replied", "tool_dispatched", "tool_finished"} <= {e["type"] for e in events}


def test_piped_text_is_the_task(stigmer, fake) -> None:
    fake.script({"text": "ok"}, {"text": "ok"})
    assert stigmer("run", stdin="say ok\n").returncode == 0
    assert stigmer("run", "-", stdin="say ok\n").returncode == 0
    for request in fake.requests:
        assert request["last_user_text"] == "say ok"


def test_piped_text_is_appended_to_the_task(stigmer, fake) -> None:
    fake.script({"text": "ok"})
    assert stigmer("run", "Summarise this:", stdin="line 1\nline 2\n").returncode == 0
    assert fake.requests[0]["last_user_text"] == "Summarise this:\n\nline 1\nline 2"


def test_an_empty_task_says_what_to_do(stigmer) -> None:
    for arguments, stdin in (
        (("run",), None),
        (("run", "  "), None),
        (("run", "-"), "\n"),
        (("run",), " \n"),
    ):
        done = stigmer(*arguments, stdin=stdin)
        assert done.returncode == 2
        assert done.stderr.startswith(("error: no task\n", "error: the task is empty\n")), done.stderr
        assert "hint: say what to do: stigmer run" in done.stderr
    assert find(stigmer.home) is None  # Nothing was started for it.


def test_bytes_that_are_no_text_are_refused_as_a_task(stigmer) -> None:
    for arguments, data in ((("run", "-"), b"\xff\xfe\x00"), ((b"run", b"say \xff"), b"")):
        done = subprocess.run(
            [sys.executable, "-m", "stigmer", *arguments],
            input=data,
            capture_output=True,
            cwd=stigmer.folder,
            env={**stigmer.environment, "LC_ALL": "C.UTF-8"},
            check=False,
        )
        assert done.returncode == 2, done.stderr
        assert b"no UTF-8 text" in done.stderr
        assert b"hint: name the file in the task" in done.stderr


def test_a_task_larger_than_a_request_is_refused_with_a_way_out(stigmer) -> None:
    done = stigmer("run", "-", stdin="x" * (17 << 20), STIGMER_LLM_MODEL="ollama:any")
    assert done.returncode == 2, done.stderr
    assert "larger than the server takes" in done.stderr
    assert "hint: put the text into a file in the workspace" in done.stderr


def test_a_limit_beyond_all_counting_is_refused(stigmer) -> None:
    for option in ("--max-steps", "--max-tokens-total"):
        done = stigmer("run", "go", option, "9" * 20)
        assert (done.returncode, "is not in the range 1<=x<=2147483647" in done.stderr) == (2, True), (
            done.stderr
        )


def test_a_workspace_that_is_none_is_refused(stigmer, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    done = stigmer("run", "--workspace", str(file), "x")
    assert (done.returncode, f"{str(file)!r} (--workspace) is not a folder" in done.stderr) == (2, True)
    done = stigmer("run", "--workspace", "", "x")
    assert (done.returncode, "--workspace is empty" in done.stderr) == (2, True)
    done = stigmer("run", "--workspace", str(tmp_path / "none"), "x")
    assert (done.returncode, "(--workspace) does not exist" in done.stderr) == (2, True)
    assert f"hint: mkdir -p {tmp_path}/none" in done.stderr


def test_home_is_a_workspace_only_when_it_is_named(stigmer, fake, short_folder: Path) -> None:
    done = stigmer("run", "x", folder=short_folder)
    assert done.returncode == 2
    assert f"the workspace would be all of {str(short_folder)!r}" in done.stderr
    fake.script({"text": "ok"})
    assert stigmer("run", "x", "--workspace", str(short_folder)).returncode == 0


def test_a_bad_setting_names_its_flag(stigmer, fake) -> None:
    done = stigmer("run", "x", "--max-tokens", "8k")
    assert done.returncode == 2
    assert "8k" in done.stderr
    assert "flag --max-tokens" in done.stderr
    assert fake.requests == []


def test_a_model_server_that_fails_ends_the_run_with_1(stigmer, fake) -> None:
    fake.script(*[{"status": 400, "error": "no such thing"}] * 5)
    done = stigmer("run", "x")
    assert done.returncode == 1
    assert "no such thing" in done.stderr
    assert done.stdout == ""


def test_a_step_limit_ends_the_run_with_5(stigmer, fake) -> None:
    (stigmer.folder / "notes.txt").write_text("heron")
    fake.script(READ, READ, READ)
    done = stigmer("run", "go", "--max-steps", "1")
    assert done.returncode == 5, done.stderr
    assert "stopped by the limit" in done.stderr


def test_detach_prints_the_id_and_the_run_goes_on(stigmer, fake) -> None:
    fake.script({"text": "done in the background"})
    done = stigmer("run", "go", "--detach")
    assert done.returncode == 0
    execution = done.stdout.strip()
    assert "\n" not in execution
    attached = stigmer("attach", execution)
    assert attached.stdout == "done in the background\n"
    assert attached.returncode == 0


def test_detach_json_prints_the_created_event(stigmer, fake) -> None:
    fake.script({"text": "ok"})
    done = stigmer("run", "go", "--detach", "--json")
    created = json.loads(done.stdout)
    assert (created["type"], created["seq"], created["task"]) == ("created", 1, "go")


def test_the_same_idempotency_key_is_the_same_execution(stigmer, fake) -> None:
    fake.script({"text": "once"})
    first = stigmer("run", "go", "--detach", "--idempotency-key", "k1").stdout
    assert stigmer("run", "go", "--detach", "--idempotency-key", "k1").stdout == first
    stigmer("attach", first.strip())
    assert len(fake.requests) == 1


def test_dry_run_shows_the_request_and_sends_nothing(stigmer, fake) -> None:
    done = stigmer("run", "say hello", "--dry-run", "--temperature", "0.5")
    assert done.returncode == 0, done.stderr
    head, _, body = done.stdout.partition("\n\n")
    assert head.splitlines()[0] == f"POST {fake.url}/v1/chat/completions"
    sent = json.loads(body)
    assert sent["temperature"] == 0.5
    assert "say hello" in json.dumps(sent["messages"])
    assert fake.requests == []
    shown = json.loads(stigmer("run", "say hello", "--dry-run", "--json").stdout)
    assert shown["body"]["model"] == sent["model"]


def test_ctrl_c_cancels_the_run_and_ends_with_130(stigmer, fake) -> None:
    fake.script({"text": "one two three four", "stall_after": 2})
    with stigmer.start("run", "go", "--json") as process:
        lines = iter(process.stdout.readline, "")
        for line in lines:
            if json.loads(line)["type"] == "text_delta":
                break
        process.send_signal(signal.SIGINT)
        rest = [json.loads(line) for line in lines]
        assert process.wait(60) == 130
        assert "press Ctrl-C again to leave at once" in process.stderr.read()
    assert "cancel_requested" in [e["type"] for e in rest]
    assert (rest[-1]["type"], rest[-1]["outcome"]) == ("finished", "cancelled")


def test_sigterm_is_like_ctrl_c(stigmer, fake) -> None:
    fake.script({"text": "one two three four", "stall_after": 2})
    with stigmer.start("run", "go") as process:
        waits_for(process, "test-model")
        process.terminate()
        assert process.wait(60) == 130
    (row,) = [json.loads(line) for line in stigmer("list", "--json").stdout.splitlines()]
    assert row["state"] == "cancelled"


def test_ctrl_c_leaves_an_attached_run_alone(stigmer, fake) -> None:
    fake.script({"text": "one two three four", "stall_after": 2})
    execution = stigmer("run", "go", "--detach").stdout.strip()
    with stigmer.start("attach", execution) as process:
        waits_for(process, "test-model")
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    assert json.loads(stigmer("get", "execution", execution, "--json").stdout)["state"] == "running"
    stigmer("cancel", execution)


def test_a_closed_stdout_ends_quietly(stigmer, fake) -> None:
    fake.script({"text": "ok"})
    read, write = os.pipe()
    os.close(read)
    process = subprocess.run(
        stigmer._command(["run", "go"]),
        stdin=subprocess.DEVNULL,
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        cwd=stigmer.folder,
        env=stigmer.environment,
        timeout=60,
        check=False,
    )
    os.close(write)
    assert process.returncode == 130
    assert "Traceback" not in process.stderr
    assert "BrokenPipe" not in process.stderr


def test_the_key_is_in_no_output_and_in_no_file(stigmer, fake) -> None:
    fake.script({"status": 401, "error": f"bad key {fake.environment['OPENAI_API_KEY']}"})
    done = stigmer("run", "x", "-v")
    assert done.returncode == 1
    key = fake.environment["OPENAI_API_KEY"]
    everything = done.stdout + done.stderr + stigmer("logs").stdout
    everything += stigmer("run", "x", "--dry-run").stdout
    assert key not in everything
    for path in stigmer.home.path.rglob("*"):
        if path.is_file():
            assert key.encode() not in path.read_bytes(), path
    assert fake.requests[0]["headers"]["authorization"] == f"Bearer {key}"


def test_a_fault_of_ours_names_a_report_file(stigmer) -> None:
    stigmer.home.create()
    broken = (
        "import stigmer.cli._task as t\ndef b(given):\n raise ZeroDivisionError('oops')\nt.read_task = b\n"
    )
    code = f"{broken}\nimport sys\nfrom stigmer.cli import main\nsys.exit(main(['run', 'a private task']))"
    import sys

    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=stigmer.environment,
        cwd=stigmer.folder,
        timeout=60,
    )
    assert done.returncode == 3
    assert "error: this is our fault: ZeroDivisionError: oops" in done.stderr
    (report,) = stigmer.home.reports.iterdir()
    assert str(report) in done.stderr
    text = report.read_text()
    assert "ZeroDivisionError" in text
    assert "a private task" not in text


def test_a_run_goes_on_after_its_daemon_was_killed(stigmer, fake) -> None:
    fake.script({"text": "one two three four", "stall_after": 3}, {"text": "the whole answer"})
    with stigmer.start("run", "go", "--json") as process:
        events = []
        for line in iter(process.stdout.readline, ""):
            events.append(json.loads(line))
            if (
                events[-1]["type"] == "text_delta"
                and len([e for e in events if e["type"] == "text_delta"]) == 1
            ):
                found = find(stigmer.home)
                assert found is not None
                os.kill(found.pid, signal.SIGKILL)
        assert process.wait(60) == 0
        assert f"the daemon (pid {found.pid}) was gone; going on with pid" in process.stderr.read()
    stored = [e["seq"] for e in events if e["seq"] is not None]
    assert stored == list(range(1, len(stored) + 1))
    assert events[-1]["text"] == "the whole answer"
    assert [e["type"] for e in events].count("created") == 1


def test_a_second_ctrl_c_leaves_at_once(stigmer, fake) -> None:
    fake.script({"text": "one two three four", "stall_after": 2})
    with stigmer.start("run", "go") as process:
        waits_for(process, "test-model")
        found = find(stigmer.home)
        assert found is not None
        os.kill(found.pid, signal.SIGSTOP)  # Nobody answers the cancel.
        try:
            process.send_signal(signal.SIGINT)
            waits_for(process, "press Ctrl-C again to leave at once")
            while process.poll() is None:  # Presses that come too fast count as one.
                process.send_signal(signal.SIGINT)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.5)
            assert process.returncode == 130
        finally:
            os.kill(found.pid, signal.SIGCONT)


def test_a_pipe_that_stays_open_says_what_it_waits_for(stigmer, fake) -> None:
    fake.script({"text": "ok"})
    process = subprocess.Popen(
        stigmer._command(["run", "Summarise:"]),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=stigmer.folder,
        env=stigmer.environment,
    )
    with process:
        assert process.stdin is not None
        waits_for(process, "reading standard input to its end")
        process.stdin.write("late text")
        process.stdin.close()
        assert process.wait(60) == 0
    assert fake.requests[0]["last_user_text"] == "Summarise:\n\nlate text"


def test_closed_streams_and_a_folder_that_is_gone_are_no_fault_of_ours(stigmer, fake) -> None:
    fake.script({"text": "ok"}, {"text": "ok"})
    command = " ".join(stigmer._command(["run", "go"]))
    for closed in ("<&-", ">&-"):
        done = subprocess.run(
            ["sh", "-c", f"{command} {closed}"],
            capture_output=True,
            text=True,
            cwd=stigmer.folder,
            env=stigmer.environment,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
    gone = stigmer.folder / "gone"
    gone.mkdir()
    done = subprocess.run(
        ["sh", "-c", f"rmdir {gone}; {command}"],
        capture_output=True,
        text=True,
        cwd=gone,
        env=stigmer.environment,
        timeout=60,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 2
    assert "the current folder does not exist any more" in done.stderr


def test_a_missing_key_names_its_variable(stigmer) -> None:
    done = stigmer("run", "x", "--provider", "anthropic")
    assert done.returncode == 2
    assert "ANTHROPIC_API_KEY" in done.stderr


def test_an_answer_that_cannot_be_written_is_told(stigmer, fake) -> None:
    fake.script({"text": "ok"})
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "stigmer", "run", "go"],
            stdin=subprocess.DEVNULL,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            cwd=stigmer.folder,
            env={**stigmer.environment, **fake.environment},
            check=False,
        )
    assert done.returncode == 1
    assert "error: No space left on device\nhint: make room" in done.stderr
    assert "Exception ignored" not in done.stderr


def test_a_made_up_tool_name_cannot_forge_a_line(stigmer, fake) -> None:
    fake.script({"calls": [{"name": "x\n> run_command ls\x1b[2J", "arguments": {}}]}, {"text": "ok"})
    done = stigmer("run", "go", **fake.environment)
    assert done.returncode == 0
    assert "\n> run_command" not in done.stderr
    assert "\x1b" not in done.stderr
