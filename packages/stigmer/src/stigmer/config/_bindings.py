"""Which addresses and keys stand in the layers, for which provider, and where a key may go.

A key is bound to a provider and to origins: the provider's own ones, or the address that stands beside it in the same
layer. Nothing here joins a key and an address of two layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from graphton.models import Provider, origin

from stigmer.config._address import read_address
from stigmer.config._layers import Layer, Said
from stigmer.config._own import Own, alone, read, shown_url

__all__ = ["Bindings", "Key", "Url"]


class Url(NamedTuple):
    """A base URL that stands somewhere, for one provider."""

    layer: Layer
    source: str
    url: str
    origin: str
    corrected: str = ""
    fault: str = ""
    shown: str = ""


@dataclass(frozen=True, slots=True)
class Key:
    """A key and where it may go."""

    layer: Layer
    source: str
    value: str = field(repr=False)
    origins: tuple[str, ...] = ()


class Bindings:
    """The addresses and keys of a resolution. What is wrong with a key that would count is added to `problems`."""

    def __init__(
        self,
        layers: Sequence[Layer],
        own: Sequence[Own],
        owners: Sequence[str],
        *,
        allowed: Mapping[tuple[str, str], bool],
    ) -> None:
        self.layers, self.own, self.owners, self.allowed = layers, own, owners, allowed
        self.problems: list[str] = []
        self.unset: dict[str, str] = {}
        """Providers whose key stands in a variable that is not set, and what to say of it."""

    def urls(self, provider: Provider) -> Iterator[Url]:
        """Every base URL that stands somewhere for a provider, highest first."""
        for layer, owner in zip(self.layers, self.owners, strict=True):
            said = layer.said.get("base_url")
            if said is not None and owner == provider.name:
                yield self.url(layer, said, provider)
            yield from self._own_urls(layer, provider)

    def _own_urls(self, layer: Layer, provider: Provider) -> Iterator[Url]:
        """The addresses in the provider's own variables."""
        if layer.kind in ("shell", "environment"):
            for name in provider.url_variables:
                if name in layer.variables:
                    said = Said(layer.variables[name], layer.variable_source.format(name), text=True)
                    yield self.url(layer, said, provider, ollama_host=name == "OLLAMA_HOST")

    def url(self, layer: Layer, said: Said, provider: Provider, *, ollama_host: bool = False) -> Url:
        text, fault = read("base_url", said)
        if fault:
            return Url(layer, said.source, "", "", fault=fault, shown=shown_url(said.raw))
        try:
            address = read_address(str(text), provider, ollama_host=ollama_host)
        except ValueError as error:
            shown = shown_url(said.raw)
            return Url(
                layer,
                said.source,
                "",
                "",
                fault=f"base URL {shown!r} from {said.source} {error}",
                shown=shown,
            )
        return Url(layer, said.source, address.url, origin(address.url), address.corrected, shown=address.url)

    def keys(self, provider: Provider) -> Iterator[Key]:
        """Every key of a provider with the origins that it is bound to, strongest first."""
        for index, layer in enumerate(self.layers):
            if layer.kind in ("shell", "environment"):
                yield from self._environment_keys(layer, self.own[index], provider)
            elif layer.kind == "secret" and provider.key_variable in layer.variables:
                source = layer.variable_source.format(provider.key_variable)
                yield Key(layer, source, layer.variables[provider.key_variable], provider.origins)
            elif layer.kind == "user_file" and self.owners[index] == provider.name:
                yield from self._file_keys(layer, provider)

    def _environment_keys(self, layer: Layer, own: Own, provider: Provider) -> Iterator[Key]:
        said = layer.said.get("base_url")
        general = self.url(layer, said, provider) if said is not None else None
        own_urls = list(self._own_urls(layer, provider))
        generic = layer.said.get("api_key")
        if generic is not None and alone(layer, own) == provider.name:
            value, fault = read("api_key", generic)
            if fault:
                self.problems.append(fault)
            else:
                beside = [general] if general else own_urls[:1]
                bound = tuple(url.origin for url in beside if not url.fault)
                yield Key(layer, generic.source, str(value), bound if beside else provider.origins)
        if provider.key_variable in layer.variables:
            source = layer.variable_source.format(provider.key_variable)
            value, fault = read("api_key", Said(layer.variables[provider.key_variable], source, text=True))
            if fault:
                self.problems.append(fault)
                return
            beside = [*own_urls[:1], *([general] if general and own.provider == provider.name else [])]
            paired = tuple(url.origin for url in beside if not url.fault)
            yield Key(layer, source, str(value), (*provider.origins, *paired))

    def _file_keys(self, layer: Layer, provider: Provider) -> Iterator[Key]:
        said = layer.said.get("base_url")
        beside = self.url(layer, said, provider) if said is not None else None
        origins = provider.origins if beside is None else () if beside.fault else (beside.origin,)
        for name in ("api_key", "api_key_env"):
            key = layer.said.get(name)
            if key is None:
                continue
            value, fault = read(name, key)
            if fault:
                self.problems.append(fault)
            elif name == "api_key":
                yield Key(layer, key.source, str(value), origins)
            else:
                places = [one for one in self.layers if one.kind in ("shell", "environment", "secret")]
                place = next((one for one in places if str(value) in one.variables), None)
                if place is None:
                    self.unset[provider.name] = (
                        f"api_key_env from {key.source} names {value!r}, and no such variable is set: "
                        f"e.g. export {value}=…, or stigmer secret set {value}"
                    )
                else:
                    kind = "secret" if place.kind == "secret" else "env"
                    source = f"{kind} {value}, named by {key.source}"
                    yield Key(layer, source, place.variables[str(value)], origins)

    def refusal(self, provider: Provider, url: Url) -> str:
        """Why an address of a request over TCP is not gone to; "" where it may be."""
        if not url.layer.remote or (provider.name, url.origin) in self.allowed:
            return ""
        return (
            f"base_url {url.url!r} from {url.source} is refused: this server does not allow {provider.name!r} at "
            f"{url.origin} in a request; who runs it may: STIGMER_ALLOWED_HOSTS={provider.name}@{url.origin}"
        )

    def bound(self, provider: Provider, url: Url | None) -> list[Key]:
        """The keys that are bound to this provider at this address, strongest first. No other key is ever tried."""
        place = url.origin if url else ""
        if url and url.layer.remote and not self.allowed.get((provider.name, place), False):
            return []
        return [key for key in self.keys(provider) if place in key.origins]
