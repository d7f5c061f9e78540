"""Tokens of an identity provider (OpenID Connect): who a bearer JWT says is calling, once its issuer's signature holds.

Only what the issuer's own key set signed counts, by an asymmetric algorithm that fits the key (RFC 8725). The key set is
fetched over https, kept, and fetched again when it has grown old or a token names a key that is not in it; never more
often than every AGAIN_SECONDS, so that nobody can make us hammer the issuer. While the issuer is down the keys serve on.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from graphton._proxies import is_loopback, proxy_for
from graphton._trust import tls_context

from stigmer.errors import ConfigError, StigmerError
from stigmer.organisations import DEFAULT_ORGANISATION, is_organisation
from stigmer.server._limits import whole
from stigmer.server.auth import Caller, Unknown

if TYPE_CHECKING:
    from jwt import PyJWK

__all__ = ["Issuer", "Settings", "issuer_of", "settings_of"]

log = logging.getLogger("stigmer.server")

ISSUER, AUDIENCE = "STIGMER_OIDC_ISSUER", "STIGMER_OIDC_AUDIENCE"
SCOPES_CLAIM, PREFIX = "STIGMER_OIDC_SCOPES_CLAIM", "STIGMER_OIDC_SCOPE_PREFIX"
ORGANISATION_CLAIM, NAME_CLAIM = "STIGMER_OIDC_ORGANISATION_CLAIM", "STIGMER_OIDC_NAME_CLAIM"
LEEWAY = "STIGMER_OIDC_LEEWAY_SECONDS"

OLD_SECONDS = 600.0
"""After this time the keys are fetched again: one that the issuer took back serves no longer than that, if it answers."""
AGAIN_SECONDS = 10.0
LIMIT_SECONDS = 5.0
"""For one document."""
LARGEST = 1 << 20
"""Bytes of a document."""
TOKEN_LIMIT = 8_000
"""Characters. gRPC takes about as many in a call's metadata."""
SMALLEST_RSA = 2048
"""Bits, as RFC 7518 wants them."""
WORDS = ("read", "run", "admin")
"""The scopes that a token may give. Workers have keys: tokens end."""
_RSA = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
_CURVES = {"P-256": ("ES256",), "P-384": ("ES384",), "P-521": ("ES512",), "Ed25519": ("EdDSA",)}


@dataclass(frozen=True, slots=True)
class Settings:
    """What is believed: tokens of this issuer for this audience. Where claims stand, and how a scope is written there."""

    issuer: str
    audience: str
    scopes_claim: str = ""
    """"": `scope`, or `scp` as some write it."""
    prefix: str = "stigmer:"
    organisation_claim: str = ""
    """"": every token belongs to the organisation `default`."""
    name_claim: str = "sub"
    leeway: int = 60


def settings_of(environ: Mapping[str, str]) -> Settings | None:
    """What the environment says; None where it names no issuer. Raises ConfigError with everything that is wrong."""
    said = {name: environ.get(name, "").strip() for name in (ISSUER, AUDIENCE, SCOPES_CLAIM, PREFIX)}
    if not said[ISSUER]:
        return None
    problems: list[str] = []
    if wrong := _why_not(said[ISSUER]):
        problems.append(f"{ISSUER} {said[ISSUER]!r} {wrong}")
    if not said[AUDIENCE]:
        problems.append(f"{AUDIENCE} is not set: without it a token made for any other service would do")
    if find_spec("jwt") is None:
        problems.append(f"{ISSUER} needs PyJWT: uv pip install 'stigmer[oidc]'")
    leeway = whole(environ, LEEWAY, 60, 0, 600, "seconds from 0 to 600, e.g. 60", problems)
    if problems:
        raise ConfigError(problems)
    return Settings(
        said[ISSUER],
        said[AUDIENCE],
        scopes_claim=said[SCOPES_CLAIM],
        prefix=said[PREFIX] or "stigmer:",
        organisation_claim=environ.get(ORGANISATION_CLAIM, "").strip(),
        name_claim=environ.get(NAME_CLAIM, "").strip() or "sub",
        leeway=leeway,
    )


def issuer_of(environ: Mapping[str, str]) -> Issuer | None:
    """The issuer whose tokens the environment lets in. Raises ConfigError."""
    settings = settings_of(environ)
    return None if settings is None else Issuer(settings)


def _why_not(address: str) -> str:
    """Why nothing is fetched from there; "" where it may be."""
    try:
        parts = urlsplit(address)
        host = parts.hostname or ""
    except ValueError:
        return "is no address"
    if not host or parts.username or parts.query or parts.fragment:
        return "is not an address like https://login.example.com/realms/ours"
    if parts.scheme == "https" or (parts.scheme == "http" and is_loopback(host)):
        return ""
    return "is not https: whoever sits between could give us keys of his own"


class Issuer:
    """One identity provider. `close` ends what it still fetches."""

    def __init__(self, settings: Settings, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings, self._clock = settings, clock
        self._keys: dict[tuple[str, str], PyJWK] = {}
        """By the key's id and the algorithm."""
        self._fetched = self._tried = float("-inf")
        self._fetching: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Fetches the keys, so that the first caller need not wait; an issuer that is away keeps nobody from starting."""
        self._refresh()

    async def close(self) -> None:
        if self._fetching is not None:
            self._fetching.cancel()
            await asyncio.gather(self._fetching, return_exceptions=True)

    async def caller(self, token: str) -> Caller:
        """Who shows this token. Raises Unknown with the reason, for our log alone."""
        if len(token) > TOKEN_LIMIT:
            raise Unknown(f"a token of {len(token)} characters, more than {TOKEN_LIMIT}")
        kid, algorithm = _header(token)
        return self._caller(self._claims(token, await self._key(kid, algorithm), algorithm))

    def _claims(self, token: str, key: PyJWK, algorithm: str) -> dict[str, Any]:
        import jwt

        try:
            return jwt.decode(
                token,
                key,
                algorithms=[algorithm],
                audience=self._settings.audience,
                issuer=self._settings.issuer,
                leeway=self._settings.leeway,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except jwt.PyJWTError as error:
            raise Unknown(f"a token that does not hold: {error}") from error

    def _caller(self, claims: Mapping[str, Any]) -> Caller:
        settings = self._settings
        name = _claim(claims, settings.name_claim)
        if not isinstance(name, str) or not 0 < len(name) <= 255 or not name.isprintable():
            raise Unknown(f"a token whose {settings.name_claim!r} names nobody")
        organisation = DEFAULT_ORGANISATION
        if settings.organisation_claim:
            found = _claim(claims, settings.organisation_claim)
            if not isinstance(found, str) or not is_organisation(found):
                raise Unknown(f"a token whose {settings.organisation_claim!r} names no organisation")
            organisation = found
        until = int(claims["exp"]) + settings.leeway
        return Caller(
            f"user {name}",
            self._scopes(claims),
            organisation,
            "oidc",
            id=f"oidc {claims['sub']}",
            until=until,
        )

    def _scopes(self, claims: Mapping[str, Any]) -> frozenset[str]:
        named = [self._settings.scopes_claim] if self._settings.scopes_claim else ["scope", "scp"]
        given: set[str] = set()
        for name in named:
            found = _claim(claims, name)
            words = found.split() if isinstance(found, str) else found if isinstance(found, list) else ()
            given.update(word for word in words if isinstance(word, str))
        return frozenset(word for word in WORDS if f"{self._settings.prefix}{word}" in given)

    # The keys

    async def _key(self, kid: str, algorithm: str) -> PyJWK:
        if self._clock() - self._fetched >= OLD_SECONDS:
            self._refresh()  # What we have serves meanwhile.
        key = self._find(kid, algorithm)
        if key is None and (fetching := self._refresh()) is not None:
            await asyncio.shield(fetching)
            key = self._find(kid, algorithm)
        if key is None:
            why = f"a token of the key {kid[:100]!r} with {algorithm}"
            raise Unknown(
                f"{why}, which the issuer's key set has not" if self._keys else f"{why}: no keys yet"
            )
        return key

    def _find(self, kid: str, algorithm: str) -> PyJWK | None:
        if kid:
            return self._keys.get((kid, algorithm))
        fitting = [key for (_, fits), key in self._keys.items() if fits == algorithm]
        return fitting[0] if len(fitting) == 1 else None

    def _refresh(self) -> asyncio.Task[None] | None:
        """What fetches the keys; None where that was tried just now."""
        if self._fetching is not None and not self._fetching.done():
            return self._fetching
        if self._clock() - self._tried < AGAIN_SECONDS:
            return None
        self._tried = self._clock()
        self._fetching = asyncio.create_task(self._fetch(), name="keys of the issuer")
        return self._fetching

    async def _fetch(self) -> None:
        try:
            keys = await self._key_set()
        except StigmerError as error:
            log.warning("keys not fetched issuer=%r reason=%r", self._settings.issuer, error.message)
            return
        log.info("keys fetched issuer=%r count=%d", self._settings.issuer, len({kid for kid, _ in keys}))
        self._keys, self._fetched = keys, self._clock()

    async def _key_set(self) -> dict[tuple[str, str], PyJWK]:
        where = self._settings.issuer.rstrip("/") + "/.well-known/openid-configuration"
        about = await _document(where)
        if about.get("issuer") != self._settings.issuer:
            named = str(about.get("issuer"))[:200]
            raise StigmerError(f"{where} speaks of the issuer {named!r}; {ISSUER} must be the very same")
        address = about.get("jwks_uri")
        if not isinstance(address, str) or (wrong := _why_not(address.partition("?")[0])):
            raise StigmerError(
                f"{where} names its keys at {str(address)[:200]!r}, which {wrong or 'is none'}"
            )
        found = (await _document(address)).get("keys")
        keys = {
            (str(one.get("kid", "")), key.algorithm_name): key
            for one in (found if isinstance(found, list) else ())
            if isinstance(one, dict)
            for key in _usable(one)
        }
        if not keys:
            raise StigmerError(f"{address} holds no key that could verify a token")
        return keys


def _header(token: str) -> tuple[str, str]:
    """The key and the algorithm that a token names; "" where it names no key."""
    import jwt

    try:
        header = jwt.get_unverified_header(token)
    except jwt.PyJWTError as error:
        raise Unknown(f"what is no token: {error}") from error
    algorithm = header.get("alg")
    if algorithm not in (*_RSA, *(one for ones in _CURVES.values() for one in ones)):
        raise Unknown(f"a token signed with {str(algorithm)[:50]!r}, which is not taken")
    return str(header.get("kid", "")), str(algorithm)


def _usable(one: Mapping[str, Any]) -> list[PyJWK]:
    """A public key of the issuer's set, once for each algorithm that it can verify."""
    import jwt

    if one.get("use", "sig") != "sig":
        return []
    fits = _RSA if one.get("kty") == "RSA" else _CURVES.get(str(one.get("crv")), ())
    algorithms = [name for name in fits if one.get("alg", name) == name]
    public = {
        name: value for name, value in one.items() if name not in ("d", "p", "q", "dp", "dq", "qi", "k")
    }
    try:
        keys = [jwt.PyJWK(public, algorithm=name) for name in algorithms]
    except (jwt.PyJWTError, ValueError, TypeError) as error:
        log.warning("key left out kid=%r reason=%r", str(one.get("kid", ""))[:100], str(error)[:200])
        return []
    if one.get("kty") == "RSA" and keys and keys[0].key.key_size < SMALLEST_RSA:
        log.warning("key left out kid=%r reason='it is too short'", str(one.get("kid", ""))[:100])
        return []
    return keys


def _claim(claims: Mapping[str, Any], name: str) -> Any:
    """A claim by its name, or, with dots, within others: `realm_access.roles`. Of a list of one, that one."""
    found: Any = claims.get(name)
    if found is None:
        found = claims
        for part in name.split("."):
            found = found.get(part) if isinstance(found, Mapping) else None
    return found[0] if isinstance(found, list) and len(found) == 1 else found


async def _document(address: str) -> dict[str, Any]:
    """The JSON object at an address. No redirect is followed, no cookie kept. Raises StigmerError."""
    import aiohttp

    host = urlsplit(address).hostname
    proxy = proxy_for(address)
    secure = tls_context() if address.startswith("https:") else True
    try:
        async with (
            aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=LIMIT_SECONDS), cookie_jar=aiohttp.DummyCookieJar()
            ) as session,
            session.get(
                address, allow_redirects=False, proxy=proxy[0] if proxy else None, ssl=secure
            ) as reply,
        ):
            if reply.status != 200:
                raise StigmerError(f"{address} answers {reply.status}")
            body = b""
            async for part in reply.content.iter_any():
                body += part
                if len(body) > LARGEST:
                    raise StigmerError(f"what {address} gives is larger than {LARGEST} bytes")
    except TimeoutError as error:
        raise StigmerError(f"{host} did not answer within {LIMIT_SECONDS:.0f} s") from error
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise StigmerError(f"{host} cannot be reached: {error}") from error
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise StigmerError(f"what {address} gives is no JSON") from error
    if not isinstance(found, dict):
        raise StigmerError(f"what {address} gives is no JSON object")
    return found
