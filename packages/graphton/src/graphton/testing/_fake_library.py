"""The models that FakeProviders' Ollama has, and those that it can pull: tags, ps, show, pull, delete."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from graphton.models import ModelRef, lookup
from graphton.testing._fake_script import Reply

__all__ = ["Library", "tagged"]

_LOCAL = ("qwen2.5-coder:7b", "qwen2.5-coder:1.5b", "qwen2.5-coder:0.5b")
_TEMPLATE = "{{ range .Messages }}{{ .Role }}: {{ .Content }}\n{{ end }}{{ .Tools }}"
_SIZE = 1_117_320_768
_BLOCK = 250_000_000
"""Bytes between two words of a pull's progress."""

Page = tuple[int, bytes]


class Library:
    """What is installed, what a registry has, what is loaded. Without `models` every name is installed."""

    def __init__(
        self, models: Mapping[str, Sequence[str]] | None, registry: Mapping[str, Sequence[str]] | None
    ) -> None:
        self._models = None if models is None else dict(models)
        self._registry = dict(registry or {})
        self._sizes: dict[str, int] = {}
        self._remote: dict[str, str] = {}
        self._templates: dict[str, str] = {}
        self._trouble = ""
        self.loaded: dict[str, int] = {}
        """Names in memory, each with its window."""
        self.loads: list[tuple[str, int]] = []
        """Every load so far: a model that is asked for with another window is loaded again."""
        self.version = "0.17.4"
        self.context = 32_768
        """What the models were made for: no larger window is given."""
        self.limit = 0
        """The most that this server gives, whatever was asked for; 0: no limit."""
        self.expires = "2026-11-25T01:32:03.456789123Z"
        """When a loaded model is unloaded."""
        self.info: Mapping[str, Any] = {}
        """More of a model's `model_info`, by its name without the architecture."""
        self.closed: tuple[str, ...] = ()
        """Paths that are refused, as a proxy in front of it would."""
        self.load = Reply()
        """How a load goes: its `delay`, or its `status` and `error`."""

    def become(
        self,
        *,
        models: Mapping[str, Sequence[str]] | None = None,
        registry: Mapping[str, Sequence[str]] | None = None,
        sizes: Mapping[str, int] | None = None,
        remote: Mapping[str, str] | None = None,
        templates: Mapping[str, str] | None = None,
        trouble: str = "",
    ) -> None:
        """Replace what there is; `trouble` is the error that every pull ends in, in Ollama's words."""
        self._models = None if models is None else dict(models)
        self._registry, self._sizes = dict(registry or {}), dict(sizes or {})
        self._remote, self._templates = dict(remote or {}), dict(templates or {})
        self._trouble = trouble

    @property
    def names(self) -> list[str]:
        """What is installed."""
        return list(_LOCAL if self._models is None else self._models)

    def capabilities(self, name: str) -> Sequence[str] | None:
        """What an installed model can; None where it is not."""
        if self._models is None:
            thinks = lookup(ModelRef("ollama", name)).thinking == "think"
            return ("completion", "tools", *(["thinking"] if thinks else []))
        return self._models.get(name, self._models.get(tagged(name)))

    def use(self, name: str, window: int) -> None:
        """A request for this model with this `num_ctx` has come: it is loaded, unless it is already."""
        name, given = tagged(name), min(window, self.context, self.limit or window)
        if self.loaded.get(name) != given:
            self.loads.append((name, given))
        self.loaded[name] = given

    def page(self, method: str, path: str, body: Mapping[str, Any]) -> Page | None:
        """The status and the body of one of these routes; None for any other."""
        name = str(body.get("model") or body.get("name") or "") if isinstance(body, Mapping) else ""
        if path in self.closed:
            return _said({"error": "this address is closed"}, 403)
        match (method, path):
            case ("GET", "/api/version"):
                return _said({"version": self.version})
            case ("GET", "/api/tags"):
                return _said({"models": [self._tag(one) for one in self.names]})
            case ("GET", "/api/ps"):
                return _said({"models": [self._row(one, window) for one, window in self.loaded.items()]})
            case ("POST", "/api/show"):
                return self._show(name)
            case ("POST", "/api/pull"):
                return self._pull(name)
            case ("DELETE", "/api/delete"):
                return self._delete(name)
        return None

    def _tag(self, name: str) -> dict[str, Any]:
        elsewhere = {"remote_model": name, "remote_host": self._remote[name]} if name in self._remote else {}
        return {
            "name": name,
            "model": name,
            **elsewhere,
            "modified_at": "2026-11-25T01:02:03Z",
            "size": self._sizes.get(name, _SIZE),
            "digest": hashlib.sha256(name.encode()).hexdigest() if self._models else "fa" * 32,
            "details": {
                "parent_model": "",
                "format": "gguf",
                "family": "qwen2",
                "families": ["qwen2"],
                "parameter_size": "1.5B",
                "quantization_level": "Q4_K_M",
            },
        }

    def _row(self, name: str, window: int) -> dict[str, Any]:
        tag = self._tag(name)
        kept = {part: tag[part] for part in ("name", "model", "size", "digest", "details")}
        told = {} if self.version.startswith("0.9.") else {"context_length": window}
        return {
            **kept,
            "expires_at": self.expires,
            "size_vram": 0,
            **told,
        }

    def _show(self, name: str) -> Page:
        able = self.capabilities(name)
        if able is None:
            return _said({"error": f"model '{name}' not found"}, 404)
        template = self._templates.get(name, _TEMPLATE)
        elsewhere = {"remote_model": name, "remote_host": self._remote[name]} if name in self._remote else {}
        return _said(
            {
                "modelfile": f"FROM {name}",
                "template": template,
                **elsewhere,
                "details": self._tag(name)["details"],
                "model_info": {
                    "general.architecture": "qwen2",
                    "qwen2.context_length": self.context,
                    **{f"qwen2.{key}": value for key, value in self.info.items()},
                },
                "tensors": [{"name": "output_norm.weight", "type": "F32", "shape": [1536]}],
                "capabilities": list(able),
                "modified_at": "2026-11-25T01:02:03.456789123Z",
            }
        )

    def _pull(self, name: str) -> Page:
        if not name or " " in name:
            return _said({"error": "invalid model name"}, 400)
        name = tagged(name)
        lines: list[dict[str, Any]] = [{"status": "pulling manifest"}]
        if name not in self._registry:
            lines.append({"error": "pull model manifest: file does not exist"})
            return _lines(lines)
        digest, size = hashlib.sha256(name.encode()).hexdigest(), self._sizes.get(name, _SIZE)
        steps = [*range(0, size, _BLOCK), size]
        for done in steps[: len(steps) // 2] if self._trouble else steps:
            layer = {"digest": f"sha256:{digest}", "total": size, "completed": done}
            lines.append({"status": f"pulling {digest[:12]}", **layer})
        if self._trouble:
            lines.append({"error": self._trouble})
            return _lines(lines)
        if self._models is not None:
            self._models[name] = self._registry[name]
        return _lines(
            [
                *lines,
                {"status": "verifying sha256 digest"},
                {"status": "writing manifest"},
                {"status": "success"},
            ]
        )

    def _delete(self, name: str) -> Page:
        known = next((one for one in (name, tagged(name)) if one in (self._models or ())), None)
        if known is None or self._models is None:
            return _said({"error": f"model '{name}' not found"}, 404)
        del self._models[known]
        self.loaded.pop(known, None)
        return 200, b""


def tagged(name: str) -> str:
    """A name with its tag: without one it is `:latest`."""
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


def _said(found: Mapping[str, Any], status: int = 200) -> Page:
    return status, orjson.dumps(found)


def _lines(lines: Sequence[Mapping[str, Any]]) -> Page:
    return 200, b"".join(orjson.dumps(line) + b"\n" for line in lines)
