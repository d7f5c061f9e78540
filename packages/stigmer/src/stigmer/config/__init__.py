"""The LLM cascade: one table of settings, one pure `resolve`, and the source of every value.

>>> layers = [layer_from_flags({"model": "qwen3:8b"}), layer_from_environment({"MODE": "local"})]
>>> resolve(layers, Known(ollama=True), date(2026, 11, 25)).values["model"].source
'flag --model'
"""

from __future__ import annotations

from stigmer.config._allowed import allowed_hosts
from stigmer.config._beside import Beside, beside
from stigmer.config._files import display_path, named_key_variables
from stigmer.config._installed import Installed, best, has, why_none
from stigmer.config._layers import (
    Layer,
    Said,
    find_project_file,
    layer_from_agent,
    layer_from_environment,
    layer_from_execution,
    layer_from_file,
    layer_from_flags,
    layer_from_secrets,
    layer_from_user_file,
    llm_variables,
)
from stigmer.config._records import Facts, Fallback, Known, LLMConfig, Shadow, Value, clock
from stigmer.config._resolve import resolve
from stigmer.config._retention import RETENTION_KEY, Retention, retention
from stigmer.config._settings import BLANKS, SETTINGS, Setting, mask, nearest, setting_for_key

__all__ = [
    "BLANKS",
    "RETENTION_KEY",
    "SETTINGS",
    "Beside",
    "Facts",
    "Fallback",
    "Installed",
    "Known",
    "LLMConfig",
    "Layer",
    "Retention",
    "Said",
    "Setting",
    "Shadow",
    "Value",
    "allowed_hosts",
    "beside",
    "best",
    "clock",
    "display_path",
    "find_project_file",
    "has",
    "layer_from_agent",
    "layer_from_environment",
    "layer_from_execution",
    "layer_from_file",
    "layer_from_flags",
    "layer_from_secrets",
    "layer_from_user_file",
    "llm_variables",
    "mask",
    "named_key_variables",
    "nearest",
    "resolve",
    "retention",
    "setting_for_key",
    "why_none",
]
