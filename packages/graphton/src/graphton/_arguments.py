"""A call's arguments against its tool's schema: obvious slips are mended, everything else is told to the model.

Mended is only what can be meant in one way:

    "5" where a number is wanted, "true", JSON in a string     the value itself
    12 where a text is wanted                                  "12"
    one value where a list is wanted                           a list of it
    a choice in another case or with blanks                    the choice
    a field in another case, with - or without _               the field
    null for a field that may be left out                      left out
    a field that the tool does not have                        left out, if the tool changes nothing

A required value is never made up.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["fit", "referred"]


def fit(
    schema: Mapping[str, Any], arguments: dict[str, Any], *, drops: bool = False
) -> tuple[dict[str, Any], list[str]]:
    """The arguments as the schema wants them, and what is wrong with them in words for the model.

    The same object comes back where nothing had to be mended. `drops`: a field that the schema forbids may be left out
    instead of being a problem; so it may not for a tool that changes anything, where it could have meant something.
    """
    work = _Work(schema, drops)
    checked = work.value(schema, arguments, "")
    return (arguments, []) if not work.problems and _same(checked, arguments) else (checked, work.problems)


def referred(reference: str, root: Any) -> Any:
    """What a reference inside a schema points to; None for any other."""
    if not reference.startswith("#"):
        return None
    found = root
    for step in reference.removeprefix("#").split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


@dataclass
class _Work:
    """One check: the schema that references point into, and what was found wrong so far."""

    root: Mapping[str, Any]
    drops: bool
    problems: list[str] = field(default_factory=list)

    def value(self, schema: Any, value: Any, at: str) -> Any:
        """The value, mended where that is obvious; adds to `problems` what is not."""
        schema = self._plain(schema)
        for part in schema.get("allOf", ()):
            value = self.value(part, value, at)
        if alternatives := _alternatives(schema):
            siblings = {key: schema[key] for key in _BESIDE if key in schema}
            value = self._any_of([{**siblings, **self._plain(one)} for one in alternatives], value, at)
            return value
        kinds = _kinds(schema)
        if kinds and not any(_FITS.get(kind, lambda _: True)(value) for kind in kinds):
            mended = self._mended(schema, value, kinds)
            if mended is _BROKEN:
                self.problems.append(f"field {at!r} must be {_article(kinds)}, not {_shown(value)}")
                return value
            value = mended
        value = self._chosen(schema, value, at)
        if isinstance(value, dict) and ("properties" in schema or "additionalProperties" in schema):
            return self._object(schema, value, at)
        if isinstance(value, list) and isinstance(schema.get("items"), Mapping):
            return [self.value(schema["items"], one, f"{at}[{index}]") for index, one in enumerate(value)]
        return value

    def _plain(self, schema: Any) -> Mapping[str, Any]:
        """The schema itself, references followed; one that leads nowhere, or in a circle, allows everything."""
        for _ in range(20):
            if not isinstance(schema, Mapping):
                return {}
            if not isinstance(reference := schema.get("$ref"), str):
                return schema
            schema = referred(reference, self.root)
        return {}

    def _object(self, schema: Mapping[str, Any], value: dict[str, Any], at: str) -> dict[str, Any]:
        properties: Mapping[str, Any] = schema.get("properties", {})
        required = schema.get("required", [])
        # A schema that lists its fields takes no others, unless it says so.
        others = schema.get("additionalProperties", "properties" not in schema)
        value = _renamed(value, properties) if others is False or others is None else value
        checked: dict[str, Any] = {}
        for key, item in value.items():
            here = f"{at}.{key}" if at else key
            if key in properties:
                if item is not None or key in required or self._takes_null(properties[key]):
                    checked[key] = self.value(properties[key], item, here)
            elif others is False or others is None:
                self._unknown(here, key, item, list(properties))
            else:
                checked[key] = self.value(others, item, here) if isinstance(others, Mapping) else item
        self.problems.extend(
            f"missing field {f'{at}.{key}' if at else key!r}{_wanted(self._plain(properties.get(key)))}"
            for key in required
            if key not in value
        )
        return checked

    def _unknown(self, here: str, key: str, item: Any, known: list[str]) -> None:
        import difflib  # Only a wrong key needs it.

        near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
        if item is None or (self.drops and not near):
            return
        tail = f"did you mean {near[0]!r}?" if near else f"the fields are: {', '.join(known) or 'none'}"
        self.problems.append(f"unknown field {here!r}; {tail}")

    def _takes_null(self, schema: Any) -> bool:
        schema = self._plain(schema)
        if alternatives := _alternatives(schema):
            return any(self._takes_null(one) for one in alternatives)
        if not any(word in schema for word in ("type", "enum", "const", "properties", "allOf")):
            return True  # It says nothing, and takes anything.
        return "null" in _kinds(schema) or None in schema.get("enum", ())

    def _any_of(self, alternatives: list[Mapping[str, Any]], value: Any, at: str) -> Any:
        """The first alternative that fits as it is, else the first that fits mended, else its problems."""
        tries: list[tuple[Any, list[str]]] = []
        for schema in alternatives:
            one = _Work(self.root, self.drops)
            tries.append((one.value(schema, value, at), one.problems))
        fitting = [checked for checked, found in tries if not found]
        if fitting:
            return next((checked for checked in fitting if _same(checked, value)), fitting[0])
        self.problems.extend(tries[0][1])
        return value

    def _mended(self, schema: Mapping[str, Any], value: Any, kinds: list[str]) -> Any:
        """What was obviously meant, or _BROKEN."""
        mended = _mend(value, kinds)
        if mended is not _BROKEN or "array" not in kinds or value is None or isinstance(value, list):
            return mended
        # "a, b" may have meant two values.
        if isinstance(value, str) and re.search(r"[,;\n]", value):
            return _BROKEN
        item = _Work(self.root, False)
        one = item.value(schema.get("items", {}), value, "")
        return _BROKEN if item.problems else [one]

    def _chosen(self, schema: Mapping[str, Any], value: Any, at: str) -> Any:
        """The value, where there is a choice one of it."""
        choices = [schema["const"]] if "const" in schema else schema.get("enum")
        if choices is None or any(_same(value, choice) for choice in choices):
            return value
        choice = _mend_choice(value, choices)
        if choice is _BROKEN:
            listed = ", ".join(json.dumps(one, ensure_ascii=False) for one in choices)
            self.problems.append(f"field {at!r} must be one of {listed}, not {_shown(value)}")
            return value
        return choice


_BESIDE = ("type", "properties", "required", "additionalProperties")
"""What stands beside alternatives holds for each of them."""


def _same(one: Any, other: Any) -> bool:
    """Equal as JSON text: here 1, 1.0 and True are three things."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def _renamed(value: dict[str, Any], properties: Mapping[str, Any]) -> dict[str, Any]:
    """The same fields, one that is written differently (`filePath`, `File-Path`) under its own name if only one can be meant."""
    strange = [key for key in value if key not in properties]
    if not strange:
        return value
    folded: dict[str, list[str]] = {}
    for key in (*properties, *strange):
        folded.setdefault(_fold(key), []).append(key)
    names = {
        key: meant[0]
        for key in strange
        if len(meant := [k for k in folded[_fold(key)] if k in properties]) == 1
        and meant[0] not in value
        and len(folded[_fold(key)]) == 2
    }
    return {names.get(key, key): item for key, item in value.items()}


def _fold(key: str) -> str:
    return re.sub(r"[\s_.-]", "", key).lower()


def _wanted(schema: Mapping[str, Any]) -> str:
    kinds = _kinds(schema)
    return f" ({' or '.join(kinds)})" if kinds else ""


def _kinds(schema: Mapping[str, Any]) -> list[str]:
    kind = schema.get("type")
    return [kind] if isinstance(kind, str) else list(kind or [])


def _alternatives(schema: Mapping[str, Any]) -> list[Any]:
    return list(schema.get("anyOf") or schema.get("oneOf") or [])


_FITS: dict[str, Callable[[Any], bool]] = {
    "string": lambda value: isinstance(value, str),
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "boolean": lambda value: isinstance(value, bool),
    "array": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, dict),
    "null": lambda value: value is None,
}


_BROKEN: Any = object()


def _mend(value: Any, kinds: list[str]) -> Any:
    """What was obviously meant, or _BROKEN. Never changes a value that could have been meant as it is."""
    if isinstance(value, float) and value.is_integer() and "integer" in kinds:
        return int(value)
    if not isinstance(value, str):
        if "string" in kinds and isinstance(value, int) and not isinstance(value, bool):
            return json.dumps(value)  # Of a float nobody knows how it was written: 1.10 has become 1.1.
        return _BROKEN
    text = value.strip()
    if "boolean" in kinds and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if "null" in kinds and text.lower() in ("null", "none"):
        return None
    if "integer" in kinds and re.fullmatch(r"[+-]?[0-9]{1,18}(\.0{1,9})?", text):
        return int(text.split(".")[0])
    if "number" in kinds and re.fullmatch(
        r"[+-]?([0-9]{1,30}(\.[0-9]{0,30})?|\.[0-9]{1,30})([eE][+-]?[0-9]{1,3})?", text
    ):
        number = float(text) if re.search(r"[.eE]", text) else int(text)
        return number if math.isfinite(number) else _BROKEN
    if "object" in kinds or "array" in kinds:
        try:
            parsed = json.loads(text)
        except (ValueError, RecursionError):
            return _BROKEN
        if any(kind in kinds and _FITS[kind](parsed) for kind in ("object", "array")):
            return parsed
    return _BROKEN


def _mend_choice(value: Any, choices: list[Any]) -> Any:
    """A choice written in another case or with blanks around it, if there is exactly one."""
    if not isinstance(value, str):
        return _BROKEN
    near = [one for one in choices if isinstance(one, str) and one.lower() == value.strip().lower()]
    return near[0] if len(near) == 1 else _BROKEN


_ARTICLES = {"integer": "an integer", "object": "an object", "array": "an array"}


def _article(kinds: list[str]) -> str:
    return " or ".join(_ARTICLES.get(kind, f"a {kind}") for kind in kinds)


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
