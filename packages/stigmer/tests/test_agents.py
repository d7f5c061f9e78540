"""Agent files: what is accepted, every fault with its line, and a JSON Schema that says the same."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from graphton.toolsets import default_tools
from ruamel.yaml import YAML
from stigmer.agents import (
    BUDGET_KEYS,
    CHILD_KEYS,
    LATER,
    LLM_KEYS,
    SPEC_KEYS,
    TOOLS,
    AgentError,
    find_agent,
    from_record,
    parse_agent,
    read_agent,
    to_record,
)
from stigmer.config import SETTINGS

ROOT = Path(__file__).parents[3]
SCHEMA = json.loads((ROOT / "docs" / "agent.schema.json").read_text())
HEAD = "apiVersion: stigmer/v1\nkind: Agent\nmetadata: {name: a}\n"
SMALL = HEAD + "spec: {}\n"


def problems(text: str | bytes, *, named: str = "") -> list[str]:
    data = text if isinstance(text, bytes) else text.encode()
    try:
        parse_agent(data, "a.yaml", named=named)
    except AgentError as error:
        return list(error.problems)
    return []


def test_the_example_is_valid_and_says_what_it_says() -> None:
    agent = read_agent(ROOT / "examples" / "agent.yaml", "examples/agent.yaml")
    assert agent.name == "reviewer"
    assert agent.tools == ("list_files", "find_files", "search_files", "read_file")
    assert agent.llm["cloud"] == {"model": "claude-sonnet-5.5", "max_tokens": 8000}
    assert agent.instructions.startswith("You review texts")
    assert re.fullmatch("[0-9a-f]{8}", agent.revision)


def test_the_revision_is_the_content() -> None:
    first = parse_agent(SMALL.encode(), "a.yaml")
    assert first.revision == parse_agent(SMALL.encode(), "elsewhere/b.yaml").revision
    assert first.revision != parse_agent((SMALL + "# more\n").encode(), "a.yaml").revision
    assert first.tools is None
    assert parse_agent((HEAD + "spec: {tools: []}\n").encode(), "a.yaml").tools == ()


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ["defines no agent", "apiVersion: stigmer/v1"]),
        ("- a\n", ["defines no agent"]),
        (SMALL.replace("stigmer/v1", "stigmer/v2"), ["line 1", "'stigmer/v2'", "apiVersion: stigmer/v1"]),
        (SMALL.replace("Agent", "Agnet"), ["line 2", "kind 'Agnet'", "kind: Agent"]),
        ("kind: Agent\nmetadata: {name: a}\nspec: {}\n", ["apiVersion is missing"]),
        ("apiVersion: stigmer/v1\nkind: Agent\nspec: {}\n", ["metadata is missing", "{name: reviewer}"]),
        (HEAD, ["spec is missing", "instructions"]),
        (SMALL.replace("name: a", ""), ["metadata.name is missing"]),
        (SMALL.replace("name: a", "name: Support Bot"), ["line 3", "'Support Bot'", "e.g. reviewer"]),
        (SMALL.replace("name: a", "name: default"), ["'default'", "not default"]),
        (SMALL.replace("name: a", "name: a, labels: {}"), ["line 3", "'metadata: labels'", "known are name"]),
        (HEAD + "spec: 3\n", ["line 4", "spec is no map"]),
        (HEAD + "spec:\n  descripton: x\n", ["line 5", "'spec: descripton'", "did you mean 'description'?"]),
        (HEAD + "spec:\n  model: x\n", ["line 5", "'model' belongs under `llm:`"]),
        (SMALL + "instructions: x\n", ["line 5", "'instructions' belongs under `spec:`"]),
        (HEAD + "spec:\n  instructions: 3\n", ["line 5", "instructions 3 is no text"]),
        (
            HEAD + "spec:\n  tools: read_file\n",
            ["line 5", "'read_file' is no list", "[read_file, search_files]"],
        ),
        (HEAD + "spec:\n  tools:\n  - read_fil\n", ["line 6", "'read_fil'", "did you mean 'read_file'?"]),
        (HEAD + "spec:\n  tools: [todos, todos]\n", ["'todos' stands there a second time"]),
        (HEAD + "spec:\n  tools: [task]\n", ["'task' comes by itself with sub-agents", "`subagents:`"]),
        (HEAD + "spec:\n  subagents: reader\n", ["line 5", "subagents 'reader' is no list", "name: reader"]),
        (HEAD + "spec:\n  subagents: [3]\n", ["line 5", "3 in subagents is no map"]),
        (HEAD + "spec:\n  subagents:\n  - {name: A b, description: d}\n", ["line 6", "name 'A b' is none"]),
        (HEAD + "spec:\n  subagents:\n  - name: r\n", ["line 6", "sub-agent 'r' has no description"]),
        (
            HEAD + "spec:\n  subagents:\n  - {name: r, description: d, approvals: []}\n",
            ["line 6", "'subagents: approvals'"],
        ),
        (
            HEAD + "spec:\n  subagents:\n  - {name: r, description: d}\n  - {name: r, description: d}\n",
            ["line 7", "sub-agent 'r' stands there a second time"],
        ),
        (
            HEAD + "spec:\n  subagents:\n  - {name: r, description: d, tools: [nope]}\n",
            ["line 6", "no tool 'nope'"],
        ),
        (
            HEAD + "spec:\n  approvals:\n  - {tool: run_command, verdict: maybe}\n",
            ["line 6", "`verdict` of an approval rule is 'maybe'", "e.g. approvals: [{tool: run_command"],
        ),
        (HEAD + "spec:\n  on_unknown: retry\n", ["line 5", "on_unknown 'retry' is not ask, tell or stop"]),
        (HEAD + "spec:\n  budget: 5\n", ["line 5", "budget 5 is no map"]),
        (HEAD + "spec:\n  budget: {steps: 1.5}\n", ["line 5", "steps 1.5 is no whole number above 0"]),
        (HEAD + "spec:\n  budget: {usd: 0}\n", ["line 5", "usd 0 is no number above 0"]),
        (HEAD + "spec:\n  budget: {step: 1}\n", ["line 5", "'budget: step'", "did you mean 'steps'?"]),
        (HEAD + "spec:\n  llm: qwen3\n", ["line 5", "llm 'qwen3' is no map"]),
        (HEAD + "spec:\n  llm:\n    max_tokens: 8k\n", ["line 6", "max_tokens '8k'", "e.g. 8192"]),
        (HEAD + "spec:\n  llm:\n    provider: antropic\n", ["line 6", "did you mean 'anthropic'?"]),
        (HEAD + "spec:\n  llm:\n    local: 3\n", ["line 6", "local is no map", "qwen3:8b"]),
        (HEAD + "spec:\n  llm:\n    modle: x\n", ["line 6", "'llm: modle'", "did you mean 'model'?"]),
        (
            HEAD + "spec:\n  llm:\n    cloud: {provider: openai, model: 'anthropic:x'}\n",
            ["'anthropic:x'", "'openai'", "a.yaml:6"],
        ),
        (HEAD + "spec:\n  description: a\n  description: b\n", ["line 6", "'description'", "second time"]),
        (HEAD + "spec:\n\tdescription: a\n", ["line 5", "a tab"]),
        (b"\xff\xfe", ["line 1", "not UTF-8"]),
        (b"x: " + b"y" * 1_100_000, ["larger than 1 MB", "no agent file"]),
        ("[" * 5000, ["too deep"]),
    ],
)
def test_a_fault_names_line_value_and_a_way_out(text: str | bytes, parts: list[str]) -> None:
    (problem,) = problems(text)
    assert problem.startswith(("file a.yaml", "model "))
    for part in parts:
        assert part in problem


@pytest.mark.parametrize("key", ["base_url", "api_key", "api_key_env"])
@pytest.mark.parametrize("place", ["{}", "local: {{{}}}", "cloud: {{{}}}"])
def test_an_address_or_a_key_is_an_error_wherever_it_stands(key: str, place: str) -> None:
    inner = place.format(f"{key}: 'https://evil.example'")
    (problem,) = problems(f"{HEAD}spec:\n  llm: {{{inner}}}\n")
    assert f"{key!r} may not stand in an agent's file" in problem
    assert "the user's" in problem
    assert "evil" not in problem


@pytest.mark.parametrize("key", LATER)
def test_what_later_versions_do_is_refused_not_ignored(key: str) -> None:
    (problem,) = problems(f"{HEAD}spec:\n  {key}: []\n")
    assert (
        problem == f"file a.yaml, line 5: {key!r} is not supported by this version of stigmer: leave it out"
    )


def test_all_problems_come_together_in_the_order_of_their_lines() -> None:
    text = HEAD + "spec:\n  tools: [nope]\n  mcp: []\n  llm: {max_tokens: 0, base_url: x}\n  more: 1\n"
    found = problems(text)
    assert [int(re.findall(r"line (\d+)", one)[0]) for one in found] == [5, 6, 7, 7, 8]
    with pytest.raises(AgentError, match=r"^5 problems:\n- file a\.yaml, line 5"):
        parse_agent(text.encode(), "a.yaml")


def test_a_file_of_a_folder_is_called_like_its_agent() -> None:
    assert problems(SMALL, named="a") == []
    (problem,) = problems(SMALL, named="b")
    assert "line 3: name 'a' in a file that is called b.yaml" in problem


def test_nothing_said_is_nothing_set() -> None:
    nulls = "\n".join(f"    {key}:" for key in (*LLM_KEYS, "local", "cloud"))
    agent = parse_agent(f"{HEAD}spec:\n  description:\n  tools:\n  llm:\n{nulls}\n".encode(), "a.yaml")
    assert (agent.llm, agent.tools, agent.description) == ({}, None, "")


def test_a_record_carries_the_whole_agent_and_gives_the_same_layer() -> None:
    text = (
        HEAD + "spec:\n  instructions: Be brief.\n  tools: [todos]\n  llm:\n    temperature: 0\n"
        "    fallbacks: ['qwen3:8b']\n    local: {model: 'qwen3:8b'}\n    cloud: {max_tokens: 100, thinking: off}\n"
    )
    agent = parse_agent(text.encode(), "a.yaml")
    record = to_record(agent, trusted=True)
    assert (record.instructions, list(record.tools.names), record.trusted) == ("Be brief.", ["todos"], True)
    layer = from_record(type(record).FromString(record.SerializeToString()))
    assert layer.problems == ()
    assert {name: said.raw for name, said in layer.said.items()} == {
        "temperature": 0.0,
        "fallbacks": ("qwen3:8b",),
    }
    assert layer.said["temperature"].source == f"agent a@{agent.revision}"
    assert layer.modes["local"]["model"].raw == "qwen3:8b"
    assert {name: said.raw for name, said in layer.modes["cloud"].items()} == {
        "max_tokens": 100,
        "thinking": "off",
    }
    assert not to_record(parse_agent(SMALL.encode(), "a.yaml"), trusted=False).HasField("tools")


def test_a_name_is_looked_for_as_the_projects_file_is(tmp_path: Path) -> None:
    home = tmp_path / "home"
    agents = tmp_path / "repo" / ".stigmer" / "agents"
    agents.mkdir(parents=True)
    (agents / "reviewer.yaml").write_text(SMALL)
    (tmp_path / "repo" / ".git").mkdir()
    deep = tmp_path / "repo" / "a" / "b"
    deep.mkdir(parents=True)
    assert find_agent("reviewer", deep, home=home) == (agents / "reviewer.yaml", "reviewer", ())
    with pytest.raises(
        AgentError, match=r"no agent 'reviewr' in \.stigmer/agents of .*: did you mean 'reviewer'\?"
    ):
        find_agent("reviewr", deep, home=home)
    with pytest.raises(AgentError, match="there are reviewer"):
        find_agent("zzz", deep, home=home)
    with pytest.raises(AgentError, match=r"there is no agent file './nope\.yaml'"):
        find_agent("./nope.yaml", deep, home=home)


def test_an_agent_that_others_may_write_to_is_not_used(tmp_path: Path) -> None:
    agents = tmp_path / "repo" / ".stigmer" / "agents"
    agents.mkdir(parents=True)
    (tmp_path / "repo" / ".git").mkdir()
    (agents / "reviewer.yaml").write_text(SMALL)
    for place in (agents / "reviewer.yaml", agents, agents.parent):
        before = place.stat().st_mode
        place.chmod(0o777)
        with pytest.raises(AgentError, match="may be written to by other users"):
            find_agent("reviewer", tmp_path / "repo", home=tmp_path / "home")
        place.chmod(before)


def test_the_tools_are_the_built_in_ones(tmp_path: Path) -> None:
    assert sorted(TOOLS) == sorted(tool.name for tool in default_tools(tmp_path))


# The schema


def accepts(schema: Any, value: Any) -> bool:
    """JSON Schema, as far as ours goes."""
    kinds: dict[str, Any] = {"object": dict, "array": list, "string": str, "null": type(None)}
    kinds |= {"integer": int, "number": (int, float)}
    checks = {
        "$ref": lambda ref: accepts(pointed(ref), value),
        "type": lambda types: any(
            isinstance(value, kinds[one]) and not (isinstance(value, bool) and one in ("integer", "number"))
            for one in ([types] if isinstance(types, str) else types)
        ),
        "const": lambda wanted: value == wanted,
        "enum": lambda allowed: value in allowed,
        "not": lambda other: not accepts(other, value),
        "oneOf": lambda options: sum(accepts(one, value) for one in options) == 1,
        "pattern": lambda form: not isinstance(value, str) or re.search(form, value) is not None,
        "minLength": lambda least: not isinstance(value, str) or len(value) >= least,
        "minimum": lambda least: not isinstance(value, int | float) or value >= least,
        "maximum": lambda most: not isinstance(value, int | float) or value <= most,
        "exclusiveMinimum": lambda least: not isinstance(value, int | float) or value > least,
        "minItems": lambda least: not isinstance(value, list) or len(value) >= least,
        "items": lambda inner: not isinstance(value, list) or all(accepts(inner, one) for one in value),
        "uniqueItems": lambda _: not isinstance(value, list) or len(set(map(str, value))) == len(value),
        "required": lambda names: not isinstance(value, dict) or set(names) <= set(value),
        "additionalProperties": lambda other: (
            not isinstance(value, dict)
            or all(
                name in schema.get("properties", {}) or (other is not False and accepts(other, one))
                for name, one in value.items()
            )
        ),
        "properties": lambda inner: (
            not isinstance(value, dict)
            or all(accepts(inner[name], one) for name, one in value.items() if name in inner)
        ),
    }
    words = schema.keys() - {"description", "title", "$schema", "$defs"}
    assert words <= set(checks)
    return all(checks[word](schema[word]) for word in words)


def pointed(ref: str) -> Any:
    found: Any = SCHEMA
    for part in ref.removeprefix("#/").split("/"):
        found = found[part]
    return found


def tree(text: str) -> Any:
    return json.loads(json.dumps(YAML(typ="safe", pure=True).load(text)))


def test_the_schema_names_what_the_parser_reads() -> None:
    spec = SCHEMA["properties"]["spec"]["properties"]
    assert tuple(spec) == SPEC_KEYS
    assert tuple(SCHEMA["$defs"]["tool"]["enum"]) == TOOLS
    assert tuple(SCHEMA["$defs"]["subagent"]["properties"]) == CHILD_KEYS
    assert tuple(SCHEMA["$defs"]["budget"]["properties"]) == BUDGET_KEYS
    assert tuple(SCHEMA["$defs"]["settings"]["properties"]) == LLM_KEYS
    assert tuple(SCHEMA["$defs"]["llm"]["properties"]) == (*LLM_KEYS, "local", "cloud")
    assert set(LLM_KEYS) <= set(SETTINGS)


@pytest.mark.parametrize(
    "spec",
    [
        "{}",
        "{description: x, instructions: y, tools: [], llm: {}}",
        "{tools: [read_file, todos]}",
        "{llm: {provider: ollama, model: 'qwen3:8b', max_tokens: 1, temperature: 2, thinking: high}}",
        "{llm: {fallbacks: ['qwen3:8b'], local: {context_window: 4096}, cloud: {model: claude-sonnet-4.5}}}",
        "{llm: , tools: , description: , instructions: }",
        "{llm: {local: , model: , thinking: }}",
        "{subagents: [{name: r, description: d}], approvals: [], on_unknown: ask, budget: {}}",
        "{subagents: [{name: r, description: d, llm: {model: x}, subagents: [{name: s, description: e}]}]}",
        "{approvals: [{tool: run_command, when: {command: git *}, verdict: allow}, {tool: '*', verdict: deny}]}",
        "{budget: {steps: 1, tokens: 2, usd: 0.5, seconds: 1.5, children: 1, depth: 1}}",
        "{subagents: , approvals: , on_unknown: , budget: }",
        "{workspace: none}",
        "{workspace: volume}",
        "{workspace: }",
    ],
)
def test_schema_and_parser_accept_the_same(spec: str) -> None:
    text = f"{HEAD}spec: {spec}\n"
    assert problems(text) == []
    assert accepts(SCHEMA, tree(text))


@pytest.mark.parametrize(
    "text",
    [
        HEAD,
        SMALL.replace("v1", "v2"),
        SMALL.replace("Agent", "Skill"),
        SMALL.replace("name: a", "name: A B"),
        SMALL.replace("name: a", "name: default"),
        SMALL.replace("name: a", "name: a, x: 1"),
        SMALL + "more: 1\n",
        *(
            f"{HEAD}spec: {spec}\n"
            for spec in (
                "3",
                "{mcp: []}",
                "{instructions: 3}",
                "{tools: todos}",
                "{tools: [task]}",
                "{tools: [todos, todos]}",
                "{llm: 3}",
                "{llm: {base_url: 'http://x'}}",
                "{llm: {local: {api_key: x}}}",
                "{llm: {local: {local: {model: x}}}}",
                "{llm: {max_tokens: 0}}",
                "{llm: {max_tokens: '8192'}}",
                "{llm: {max_tokens: true}}",
                "{llm: {temperature: 2.5}}",
                "{llm: {thinking: much}}",
                "{llm: {model: ''}}",
                "{llm: {fallbacks: []}}",
                "{llm: {fallbacks: 'qwen3:8b'}}",
                "{subagents: [{name: r}]}",
                "{subagents: [{name: 1r, description: d}]}",
                "{subagents: [{name: r, description: d, budget: {steps: 1}}]}",
                "{approvals: [{tool: x}]}",
                "{approvals: [{tool: x, verdict: ask, why: y}]}",
                "{approvals: [{tool: x, verdict: ask, when: {n: 3}}]}",
                "{on_unknown: retry}",
                "{budget: {steps: 0}}",
                "{budget: {usd: 0}}",
                "{workspace: moon}",
                "{workspace: [none]}",
            )
        ),
    ],
)
def test_schema_and_parser_refuse_the_same(text: str) -> None:
    assert problems(text)
    assert not accepts(SCHEMA, tree(text))
