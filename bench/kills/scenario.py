"""What the agents do: 20 steps with two or three calls each, and sub-agents; decided by seed, agent and step alone."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from graphton.messages import AssistantMessage
from graphton.testing import Call, FakeRequest, Reply

__all__ = ["AGENT", "ANSWER", "BESIDE", "FACTS", "STEPS", "Script", "Who", "file_of", "key_of"]

STEPS, CHILD_STEPS = 20, 4
HANDS_OVER = (5, 13)
"""The steps in which the lead hands work to two workers side by side."""
ANSWER = "All done."
BESIDE = "Read the other facts."
"""The task of an execution beside the lead's."""
BESIDE_STEPS, BESIDE_WAIT = 5, 0.3
FACTS = [f"fact-{n}.txt" for n in range(BESIDE_STEPS)]
AGENT = """\
apiVersion: stigmer/v1
kind: Agent
metadata: {name: lead}
spec:
  instructions: You lead.
  tools: [run_command, read_file, write_file]
  subagents:
  - name: worker
    description: Does a part of the work.
    instructions: You work.
"""
KINDS = {"append": 6, "slow": 2, "post": 3, "beat": 1, "away": 1, "read": 4, "write": 3}
"""Kinds of calls, each as often as its weight says."""


@dataclass(frozen=True)
class Who:
    """One agent of one run. Its task says who it is, so that its requests can be told from all others."""

    run: int
    path: str
    """As its events have it: "" for the lead."""

    @property
    def task(self) -> str:
        return f"run={self.run} path={self.path};"

    @classmethod
    def of(cls, text: str) -> Who | None:
        found = re.search(r"run=(\d+) path=(\S*);", text)
        return cls(int(found[1]), found[2]) if found else None


def key_of(run: int, path: str, call: str) -> str:
    """The name of one call's effect, which no other call has."""
    return f"{run}:{path}:{call}"


@dataclass(frozen=True)
class Script:
    """The model's part. The same request gets the same reply, whenever and however often it is asked."""

    seed: int
    python: str
    port: int
    """Where the witness server listens."""

    def where(self, request: FakeRequest) -> tuple[Who, int] | None:
        """Who asks, for which step; None for a request that is not of this scenario."""
        who = Who.of(request.last_user_text)
        return (who, 1 + sum(isinstance(m, AssistantMessage) for m in request.messages)) if who else None

    @staticmethod
    def beside(request: FakeRequest) -> Reply | None:
        """The reply to an execution beside the lead's; None for a request that is of none."""
        if request.last_user_text != BESIDE:
            return None
        read = len(request.tool_results)
        if read < BESIDE_STEPS:
            return Reply(calls=(Call("read_file", {"path": FACTS[read]}),), first_token_delay=BESIDE_WAIT)
        return Reply(text="Yes.", first_token_delay=BESIDE_WAIT)

    def reply(self, who: Who, step: int) -> Reply:
        """It streams for a while, so that there is something to break."""
        chance = random.Random(f"{self.seed} {who} {step}")
        stall = chance.uniform(0.0, 0.1)
        if step > (CHILD_STEPS if who.path else STEPS):
            return Reply(text=ANSWER, stall_after=2, stall=stall)
        calls = tuple(self._call(chance, who, f"{step}.{index}") for index in range(chance.randint(2, 3)))
        if not who.path and step in HANDS_OVER:
            calls = (
                *(self._hand_over(who, f"{step}.{n}") for n in range(2)),
                self._call(chance, who, f"{step}.2"),
            )
        return Reply(text=f"Step {step} of the work.", calls=calls, stall_after=3, stall=stall)

    def _hand_over(self, who: Who, call: str) -> Call:
        return Call("task", {"agent": "worker", "task": Who(who.run, f"{who.path}/worker@{call}").task})

    def _call(self, chance: random.Random, who: Who, call: str) -> Call:
        kind = chance.choices(list(KINDS), list(KINDS.values()))[0]
        key = key_of(who.run, who.path, call)
        if kind == "read":
            return Call("read_file", {"path": "fact.txt"})
        if kind == "write":
            return Call("write_file", {"path": file_of(key), "content": key})
        witness = f"{self.python} -I -S witness.py"
        commands = {
            "append": f"echo '{key}' >> lines",
            "slow": f"sleep 0.03; echo '{key}' >> lines; sleep 0.03",
            "post": f"{witness} post {self.port} '{key}'",
            "beat": f"{witness} beat '{key}'",
            "away": f"{witness} away '{key}'",
        }
        return Call("run_command", {"command": commands[kind]})


def file_of(key: str) -> str:
    """Where a write_file call of this scenario writes its key."""
    return "file-" + re.sub(r"[^\w.]", "-", key)
