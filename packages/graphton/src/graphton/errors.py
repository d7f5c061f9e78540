"""Everything that can go wrong in graphton, as one small tree.

GraphtonError
├── ModelNameError      a model string that names no model or no provider
├── SettingError        a value that a model or a tool cannot take
├── ToolDefinitionError a Python function that cannot become a tool
├── ToolError           a tool failed in a way the model should read
├── DownloadError       a model file could not be fetched, or there is no room for it
├── OutcomeUnknown      a write was cut off by a crash, and the agent says to stop then
├── JournalError        the journal refused an append: this attempt must stop
│   └── Fenced          another attempt owns the execution now
└── ProviderError       a model server refused, failed, or could not be reached
    ├── ModelMissing        the model's file is not on this machine
    ├── ConnectError        nothing answers at that address
    ├── ProviderTimeout     connect, first token or gap took too long
    ├── BrokenStream        the reply ended before it was whole
    ├── RedirectRefused     a 3xx: we never follow, keys stay where they were sent
    ├── ProtocolError       the reply is not of the dialect we speak
    ├── PromptTooLong       the prompt does not fit the context window, or was cut to fit it
    └── StatusError         an HTTP status of 400 or more, or an error inside a stream
"""

from __future__ import annotations

__all__ = [
    "BrokenStream",
    "ConnectError",
    "DownloadError",
    "Fenced",
    "GraphtonError",
    "JournalError",
    "ModelMissing",
    "ModelNameError",
    "OutcomeUnknown",
    "PromptTooLong",
    "ProtocolError",
    "ProviderError",
    "ProviderTimeout",
    "RedirectRefused",
    "SettingError",
    "StatusError",
    "ToolDefinitionError",
    "ToolError",
]


class GraphtonError(Exception):
    """A known failure: what happened, and in `hint` what to do about it.

    `code` is a stable word for programs (`error.code` of a finished event).
    """

    code = "error"

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\nhint: {self.hint}" if self.hint else self.message


class ModelNameError(GraphtonError):
    """A model string that names no model, or no provider that we know."""

    code = "model_name"


class SettingError(GraphtonError):
    """A value that the model or the tool cannot take."""

    code = "setting"


class ToolDefinitionError(GraphtonError):
    """A Python function that cannot become a tool; raised when the agent is built."""

    code = "tool_definition"


class ToolError(GraphtonError):
    """A tool failed; its text goes back to the model as an error result."""

    code = "tool"


class DownloadError(GraphtonError):
    """A model file could not be fetched from any source, or there is no room for it."""

    code = "download"


class OutcomeUnknown(GraphtonError):
    """A write was running when the process died, and `on_unknown` is "stop": the whole run ends."""

    code = "outcome_unknown"


class JournalError(GraphtonError):
    """The journal refused an append; the attempt ends and starts nothing more."""

    code = "journal"


class Fenced(JournalError):
    """Another attempt owns this execution now."""

    code = "fenced"


class ProviderError(GraphtonError):
    """A model server refused, failed, or could not be reached.

    `retryable` says whether the same request may succeed later; `retry_after` is what the server
    asked for, in seconds.
    """

    code = "provider"
    retryable = False

    def __init__(
        self,
        message: str,
        *,
        hint: str = "",
        provider: str = "",
        url: str = "",
        retryable: bool | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.provider = provider
        self.url = url
        self.retry_after = retry_after
        if retryable is not None:
            self.retryable = retryable


class ModelMissing(ProviderError):
    """The model's file is not on this machine; `name`, `size` (bytes) and `source` say what a download would be.

    For a path that the user gave, `size` is 0 and `source` is empty: there is nothing to download.
    """

    code = "model_missing"

    def __init__(self, message: str, *, name: str, size: int = 0, source: str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint, provider="llamacpp")
        self.name = name
        self.size = size
        self.source = source


class ConnectError(ProviderError):
    """Nothing answers at that address; `trouble` is a word for what stands in the way.

    address (no URL), host (unknown name), lookup (no name server), refused (nothing listens), unreachable, proxy,
    certificate, tls.
    """

    code = "unreachable"
    retryable = True

    def __init__(
        self,
        message: str,
        *,
        trouble: str = "unreachable",
        hint: str = "",
        provider: str = "",
        url: str = "",
        retryable: bool | None = None,
    ) -> None:
        super().__init__(message, hint=hint, provider=provider, url=url, retryable=retryable)
        self.trouble = trouble


class ProviderTimeout(ProviderError):
    """A limit passed; `limit` says which one: connect, first_token or idle."""

    code = "timeout"
    retryable = True

    def __init__(
        self, message: str, *, limit: str, hint: str = "", provider: str = "", url: str = ""
    ) -> None:
        super().__init__(message, hint=hint, provider=provider, url=url)
        self.limit = limit


class BrokenStream(ProviderError):
    """The reply ended before it was whole."""

    code = "broken_stream"
    retryable = True


class RedirectRefused(ProviderError):
    """The server answered 3xx. We never follow: prompt and key stay where they were sent."""

    code = "redirect"


class ProtocolError(ProviderError):
    """The reply is not of the dialect that we speak with this provider."""

    code = "protocol"


class PromptTooLong(ProviderError):
    """The prompt does not fit the context window, or the server cut it to fit; the message holds a budget by part."""

    code = "context"


class StatusError(ProviderError):
    """An HTTP status of 400 or more, or an error event inside a 200 stream (`status` is then the one it names)."""

    code = "status"

    def __init__(
        self,
        message: str,
        *,
        status: int,
        kind: str = "",
        hint: str = "",
        provider: str = "",
        url: str = "",
        retryable: bool | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(
            message, hint=hint, provider=provider, url=url, retryable=retryable, retry_after=retry_after
        )
        self.status = status
        self.kind = kind
