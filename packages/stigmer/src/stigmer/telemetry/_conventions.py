"""Names of OpenTelemetry's semantic conventions for generative AI. Everything of them stands here: they may change.

They are those that the package opentelemetry-semantic-conventions 0.66b2 (schema 1.44.0) lists, all with the status
"development"; the texts are kept at https://github.com/open-telemetry/semantic-conventions-genai. Names that begin with
`stigmer.` are ours and stay.
"""

from __future__ import annotations

from typing import Final

SCHEMA: Final = "https://opentelemetry.io/schemas/1.44.0"

# Attributes
AGENT: Final = "gen_ai.agent.name"
CONVERSATION: Final = "gen_ai.conversation.id"
FINISH_REASONS: Final = "gen_ai.response.finish_reasons"
INPUT_MESSAGES: Final = "gen_ai.input.messages"
OPERATION: Final = "gen_ai.operation.name"
OUTPUT_MESSAGES: Final = "gen_ai.output.messages"
PROVIDER: Final = "gen_ai.provider.name"
REQUEST_MAX_TOKENS: Final = "gen_ai.request.max_tokens"
REQUEST_MODEL: Final = "gen_ai.request.model"
REQUEST_TEMPERATURE: Final = "gen_ai.request.temperature"
RESPONSE_MODEL: Final = "gen_ai.response.model"
TIME_TO_FIRST_CHUNK: Final = "gen_ai.response.time_to_first_chunk"
TOKEN_TYPE: Final = "gen_ai.token.type"
TOOL: Final = "gen_ai.tool.name"
TOOL_ARGUMENTS: Final = "gen_ai.tool.call.arguments"
TOOL_CALL: Final = "gen_ai.tool.call.id"
TOOL_RESULT: Final = "gen_ai.tool.call.result"
TOOL_TYPE: Final = "gen_ai.tool.type"
USAGE_CACHE_READ: Final = "gen_ai.usage.cache_read.input_tokens"
USAGE_CACHE_WRITE: Final = "gen_ai.usage.cache_creation.input_tokens"
USAGE_INPUT: Final = "gen_ai.usage.input_tokens"
USAGE_OUTPUT: Final = "gen_ai.usage.output_tokens"

# Of all conventions, not of this one alone
ERROR: Final = "error.type"
SERVER_ADDRESS: Final = "server.address"
SERVER_PORT: Final = "server.port"

# Operations
CHAT: Final = "chat"
EXECUTE_TOOL: Final = "execute_tool"
INVOKE_AGENT: Final = "invoke_agent"

# Metrics
OPERATION_DURATION: Final = "gen_ai.client.operation.duration"
FIRST_CHUNK: Final = "gen_ai.client.operation.time_to_first_chunk"
TOKEN_USAGE: Final = "gen_ai.client.token.usage"

_PROVIDERS: Final = {
    "azure": "azure.ai.openai",
    "deepseek-api": "deepseek",
    "gemini": "gcp.gemini",
    "mistral-api": "mistral_ai",
}
"""Providers of ours that the conventions call by another name."""
_FINISH_REASONS: Final = {"end": "stop", "tools": "tool_call", "refused": "content_filter"}


def provider(name: str) -> str:
    """The conventions' name of one of our providers; those that they do not know keep ours."""
    return _PROVIDERS.get(name, name)


def finish_reason(stop: str) -> str:
    """The conventions' word for a stop reason of ours."""
    return _FINISH_REASONS.get(stop, stop)
