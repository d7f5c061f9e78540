"""Base URLs: what they may be, and what is put right in them."""

from __future__ import annotations

from typing import NamedTuple

from graphton.models import Provider

__all__ = ["Address", "read_address"]


class Address(NamedTuple):
    """A base URL as its dialect's client takes it; `corrected` says what was put right."""

    url: str
    corrected: str = ""


def read_address(raw: str, provider: Provider, *, ollama_host: bool = False) -> Address:
    """A base URL, or ValueError with what is accepted.

    OLLAMA_HOST may lack the scheme and the port, and may be the address that a server listens on.
    """
    from urllib.parse import urlsplit

    text = raw
    if ollama_host and "://" not in text:
        text = f"http://{text}"
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"is not an address ({error}), e.g. {_example(provider)}") from None
    if parts.scheme.lower() not in ("http", "https") or "://" not in text:
        raise ValueError(f"needs http:// or https://, e.g. {_example(provider)}")
    host = parts.hostname or ("127.0.0.1" if ollama_host else "")
    if not host or any(sign.isspace() for sign in text):
        raise ValueError(f"names no host, e.g. {_example(provider)}")
    if parts.username is not None or parts.password is not None:
        raise ValueError(
            "holds a user name or a password: an address is shown, a key is not; give the key apart"
        )
    if parts.query or parts.fragment:
        raise ValueError(f"has a part after '?' or '#', e.g. {_example(provider)}")
    if ollama_host:
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        port = port if port is not None else 11434 if parts.scheme.lower() == "http" else None
    path = parts.path.rstrip("/")
    kept, corrected = _path(path, provider)
    shown_host = f"[{host}]" if ":" in host else host
    url = f"{parts.scheme.lower()}://{shown_host}{f':{port}' if port is not None else ''}{kept}"
    return Address(url, f"base_url {raw!r} was corrected to {url!r}: {corrected}" if corrected else "")


def _path(path: str, provider: Provider) -> tuple[str, str]:
    """The path that the dialect wants, and what had to be taken off."""
    if path.endswith("/v1/v1"):
        path = path.removesuffix("/v1")
        if provider.dialect == "openai":
            return path, "/v1 stood there twice"
    if provider.dialect == "ollama" and path.endswith("/v1"):
        return path.removesuffix("/v1").rstrip("/"), "Ollama's own API is not under /v1"
    if provider.dialect == "anthropic" and path.endswith("/v1"):
        return path.removesuffix("/v1").rstrip("/"), "the path /v1/messages is added to it"
    return path, ""


def _example(provider: Provider) -> str:
    return provider.base_url or {"azure": "https://acme.openai.azure.com/openai/v1"}.get(
        provider.name, "http://localhost:8080/v1"
    )
