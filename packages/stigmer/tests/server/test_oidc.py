"""Tokens of an identity provider: a real issuer over HTTP, tokens that its key signed, and every kind that must not do."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import logging
import socket
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import jwt
import pytest
from aiohttp import web
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from stigmer.client import Client, RemoteError
from stigmer.errors import ConfigError
from stigmer.home import Address
from stigmer.server._oidc import Issuer, Settings, settings_of
from stigmer.server.auth import Caller, Unknown

AUDIENCE = "https://stigmer.example"
KEYS: dict[str, Any] = {
    "RS256": rsa.generate_private_key(public_exponent=65537, key_size=2048),
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate(),
}
STRANGERS_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)


def public(key: Any, kid: str, **more: str) -> dict[str, Any]:
    """The public half as a key set shows it."""
    kinds = {rsa.RSAPrivateKey: "RS256", ec.EllipticCurvePrivateKey: "ES256"}
    name = next((name for kind, name in kinds.items() if isinstance(key, kind)), "EdDSA")
    shown = jwt.get_algorithm_by_name(name).to_jwk(key.public_key(), as_dict=True)
    return {**shown, "kid": kid, **more}


class Provider:
    """An issuer at an address of this machine; what it shows can be changed, and it counts who asks."""

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/realm"
        self.about: dict[str, Any] = {"issuer": self.url, "jwks_uri": f"{self.url}/keys"}
        self.keys = [public(key, name) for name, key in KEYS.items()]
        self.asked: list[str] = []
        self.status = 200
        self.seen = asyncio.Event()
        """Somebody asks."""
        self.runner: web.AppRunner | None = None

    async def start(self) -> None:
        async def answer(request: web.Request) -> web.Response:
            self.asked.append(request.path)
            self.seen.set()
            if self.status == 302:
                raise web.HTTPFound(self.url)
            shown = self.about if "well-known" in request.path else {"keys": self.keys}
            return web.json_response(shown, status=self.status)

        app = web.Application()
        app.router.add_get("/{path:.*}", answer)
        self.runner = web.AppRunner(app)
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", self.port).start()

    async def stop(self) -> None:
        if self.runner is not None:
            await self.runner.cleanup()
            self.runner = None

    def claims(self, **more: Any) -> dict[str, Any]:
        now = int(time.time())
        return {
            "iss": self.url, "aud": AUDIENCE, "sub": "ann-1", "iat": now, "exp": now + 300, "scope": "openid stigmer:run",
            **more,
        }  # fmt: skip

    def token(
        self, algorithm: str = "RS256", *, key: Any = None, kid: str | None = None, **claims: Any
    ) -> str:
        """A token as the issuer would sign it; a claim that is None is left out."""
        said = {name: value for name, value in self.claims(**claims).items() if value is not None}
        headers = {"kid": algorithm if kid is None else kid}
        return jwt.encode(said, key or KEYS[algorithm], algorithm=algorithm, headers=headers)


@pytest.fixture
async def provider() -> AsyncIterator[Provider]:
    provider = Provider()
    await provider.start()
    yield provider
    await provider.stop()


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def issuer(provider: Provider) -> AsyncIterator[Issuer]:
    issuer = Issuer(Settings(provider.url, AUDIENCE))
    yield issuer
    await issuer.close()


@pytest.mark.parametrize("algorithm", KEYS)
async def test_a_token_that_the_issuer_signed_says_who_calls(
    issuer: Issuer, provider: Provider, algorithm: str
) -> None:
    ends = int(time.time()) + 100
    who = await issuer.caller(provider.token(algorithm, aud=[AUDIENCE, "another"], exp=ends))
    assert who.until == ends + 60  # As long as such a token is let in.
    assert who == Caller("user ann-1", frozenset({"run"}), "default", "oidc", id="oidc ann-1")


async def test_clocks_may_differ_by_a_minute_and_no_more(issuer: Issuer, provider: Provider) -> None:
    now = int(time.time())
    await issuer.caller(provider.token(exp=now - 30, nbf=now + 30, iat=now + 30))
    for wrong in ({"exp": now - 90}, {"nbf": now + 90}, {"iat": now + 90}):
        with pytest.raises(Unknown):
            await issuer.caller(provider.token(**wrong))


@pytest.mark.parametrize(
    ("claims", "why"),
    [
        ({"exp": 1}, "expired"),
        ({"exp": None}, "exp"),
        ({"exp": "soon"}, "must be an integer"),
        ({"iss": "https://elsewhere.example"}, "Invalid issuer"),
        ({"iss": None}, "iss"),
        ({"aud": "https://another.example"}, "Audience"),
        ({"aud": None}, "aud"),
        ({"aud": []}, "aud"),
        ({"nbf": 1 << 40}, "not yet valid"),
        ({"sub": None}, "sub"),
        ({"sub": 7}, "Subject"),
        ({"sub": ""}, "'sub' names nobody"),
        ({"sub": "ann\nkey ci"}, "'sub' names nobody"),
    ],
)
async def test_a_token_that_does_not_hold_lets_nobody_in(
    issuer: Issuer, provider: Provider, claims: dict[str, Any], why: str
) -> None:
    if isinstance(claims.get("sub"), int):  # PyJWT would not sign it.
        token = signed_by_hand(provider.claims(**claims))
    else:
        token = provider.token(**claims)
    with pytest.raises(Unknown, match=why):
        await issuer.caller(token)


def part(value: Any) -> str:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def signed_by_hand(claims: Any, *, key: Any = KEYS["RS256"], **header: Any) -> str:
    """A token that PyJWT would not make, with a signature that holds."""
    signing = f"{part({'alg': 'RS256', 'kid': 'RS256', **header})}.{part(claims)}"
    algorithm: Any = jwt.get_algorithm_by_name("RS256")
    return f"{signing}.{part(algorithm.sign(signing.encode(), key))}"


def pem(key: Any) -> bytes:
    return bytes(
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )


def with_the_public_key_as_secret(claims: Any) -> str:
    """The public key is public: who signs with it by HMAC would be believed by a careless reader."""
    signing = f"{part({'alg': 'HS256', 'kid': 'RS256', 'typ': 'JWT'})}.{part(claims)}"
    return f"{signing}.{part(hmac.new(pem(KEYS['RS256']), signing.encode(), hashlib.sha256).digest())}"


async def test_no_token_is_believed_that_the_issuers_key_did_not_sign(
    issuer: Issuer, provider: Provider
) -> None:
    good = provider.token()
    head, body, signature = good.split(".")
    richer = part({**provider.claims(), "scope": "stigmer:admin"})
    tampered = {
        "other claims": f"{head}.{richer}.{signature}",
        "no signature": f"{head}.{body}.",
        "none": f"{part({'alg': 'none', 'kid': 'RS256'})}.{richer}.",
        "None": f"{part({'alg': 'None', 'kid': 'RS256'})}.{richer}.",
        "no algorithm": f"{part({'kid': 'RS256'})}.{richer}.{signature}",
        "a list for an algorithm": f"{part({'alg': ['RS256'], 'kid': 'RS256'})}.{richer}.{signature}",
        "HS256 with the public key": with_the_public_key_as_secret(provider.claims()),
        "a stranger's key": provider.token(key=STRANGERS_KEY),
        "a stranger's key of a new name": provider.token(key=STRANGERS_KEY, kid="mine"),
        "another key's name": provider.token("RS256", kid="ES256"),
        "no name, and several keys": signed_by_hand(provider.claims(), kid=None, alg="PS256"),
        "a name that is no text": f"{part({'alg': 'RS256', 'kid': {}})}.{body}.{signature}",
        "a key of its own": signed_by_hand(
            provider.claims(), kid="x", jwk=public(STRANGERS_KEY, "x"), jku="http://127.0.0.1:1/keys"
        ),
        "critical, and unknown": signed_by_hand(provider.claims(), crit=["b99"], b99=1),
        "no object": f"{part([1])}.{body}.{signature}",
        "claims that are no object": signed_by_hand([1]),
        "deep": f"{part(b'[' * 5000)}.{body}.{signature}",
        "deep claims": signed_by_hand(b"[" * 4000),
        "no token": "a.b.c",
        "empty": "..",
        "signs": "é.é.é",
        "large": signed_by_hand({**provider.claims(), "x": "y" * 9000}),
    }
    for what, token in tampered.items():
        with pytest.raises(Unknown):
            pytest.fail(f"{what}: {await issuer.caller(token)}")
    assert (await issuer.caller(good)).name == "user ann-1"


async def test_a_key_set_is_read_with_care(provider: Provider) -> None:
    short = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    provider.keys = [
        public(short, "short"),
        public(STRANGERS_KEY, "enc", use="enc"),
        public(KEYS["RS256"], "only 512", alg="RS512"),
        {"kty": "oct", "kid": "oct", "k": part(b"x" * 32), "alg": "HS256"},
        {"kty": "RSA", "kid": "broken", "n": "!", "e": "AQAB"},
        {"kty": "EC", "kid": "odd", "crv": "secp256k1", "x": "AA", "y": "AA"},
        public(KEYS["ES256"], "good"),
    ]
    issuer = Issuer(Settings(provider.url, AUDIENCE))
    for token in (
        signed_by_hand(provider.claims(), key=short, kid="short"),
        provider.token(key=STRANGERS_KEY, kid="enc"),
        provider.token(kid="only 512"),
    ):
        with pytest.raises(Unknown, match="which the issuer's key set has not"):
            await issuer.caller(token)
    assert (await issuer.caller(provider.token("ES256", kid="good"))).name == "user ann-1"
    await issuer.close()


async def test_bad_tokens_make_nobody_ask_the_issuer_again_and_a_new_key_is_found(provider: Provider) -> None:
    clock = Clock()
    issuer = Issuer(Settings(provider.url, AUDIENCE), clock=clock)
    await issuer.caller(provider.token())
    assert len(provider.asked) == 2
    newer = ec.generate_private_key(ec.SECP256R1())
    provider.keys.append(public(newer, "newer"))
    for n in range(20):
        with pytest.raises(Unknown):
            await issuer.caller(provider.token(key=STRANGERS_KEY, kid=f"mine{n}"))
    assert len(provider.asked) == 2
    clock.now += 11
    assert (await issuer.caller(provider.token("ES256", key=newer, kid="newer"))).name == "user ann-1"
    assert len(provider.asked) == 4
    await issuer.close()


async def test_an_issuer_that_is_down_keeps_nobody_out_who_was_known(provider: Provider) -> None:
    clock = Clock()
    issuer = Issuer(Settings(provider.url, AUDIENCE), clock=clock)
    await issuer.caller(provider.token())
    await provider.stop()
    clock.now += 3600
    assert (await issuer.caller(provider.token())).name == "user ann-1"
    with pytest.raises(Unknown):
        await issuer.caller(provider.token(kid="newer"))
    await provider.start()
    provider.keys = provider.keys[1:]
    clock.now += 11
    with pytest.raises(Unknown):
        await issuer.caller(provider.token(kid="newer"))
    with pytest.raises(Unknown):  # It has taken that key back.
        await issuer.caller(provider.token())
    await issuer.close()


async def believed(issuer: Issuer, token: str) -> bool:
    try:
        await issuer.caller(token)
    except Unknown:
        return False
    return True


async def test_a_key_that_the_issuer_takes_back_is_forgotten(provider: Provider) -> None:
    clock = Clock()
    issuer = Issuer(Settings(provider.url, AUDIENCE), clock=clock)
    token = provider.token()
    assert await believed(issuer, token)
    provider.keys = [one for one in provider.keys if one["kid"] != "RS256"]
    clock.now += 599
    assert await believed(issuer, token)
    assert len(provider.asked) == 2
    clock.now += 1
    provider.seen.clear()
    await believed(issuer, token)  # The keys are fetched beside it.
    await asyncio.wait_for(provider.seen.wait(), 30)
    assert not await believed(issuer, provider.token(kid="newer"))  # This one waits for them.
    assert not await believed(issuer, token)
    assert await believed(issuer, provider.token("ES256"))
    await issuer.close()


@pytest.mark.parametrize("trouble", ["another issuer", "keys over http", "redirect", "error", "no keys"])
async def test_what_the_issuer_shows_is_checked(
    provider: Provider, trouble: str, caplog: pytest.LogCaptureFixture
) -> None:
    told = {
        "another issuer": "speaks of the issuer 'https://elsewhere.example'",
        "keys over http": "is not https",
        "redirect": "answers 302",
        "error": "answers 500",
        "no keys": "holds no key that could verify a token",
    }
    if trouble == "another issuer":
        provider.about["issuer"] = "https://elsewhere.example"
    if trouble == "keys over http":
        provider.about["jwks_uri"] = "http://keys.example/keys"
    if trouble == "no keys":
        provider.keys = []
    provider.status = {"redirect": 302, "error": 500}.get(trouble, 200)
    issuer = Issuer(Settings(provider.url, AUDIENCE))
    with pytest.raises(Unknown, match="no keys yet"):
        await issuer.caller(provider.token())
    assert told[trouble] in caplog.text
    await issuer.close()


@pytest.mark.parametrize(
    ("settings", "claims", "scopes", "organisation"),
    [
        ({}, {"scope": "stigmer:read stigmer:admin stigmer:worker run"}, {"read", "admin"}, "default"),
        ({}, {"scope": None, "scp": ["stigmer:run", 7]}, {"run"}, "default"),
        ({"scopes_claim": "realm_access.roles", "prefix": "st-"}, {"realm_access": {"roles": ["st-run"]}}, {"run"}, "default"),
        ({"scopes_claim": "https://x.example/roles"}, {"https://x.example/roles": "stigmer:read"}, {"read"}, "default"),
        ({"organisation_claim": "org"}, {"org": "acme"}, {"run"}, "acme"),
        ({"organisation_claim": "org"}, {"org": ["acme"]}, {"run"}, "acme"),
        ({"organisation_claim": "org", "name_claim": "email"}, {"org": "acme", "email": "a@x.example"}, {"run"}, "acme"),
    ],
)  # fmt: skip
async def test_scopes_and_organisation_stand_where_settings_say(
    provider: Provider, settings: Any, claims: Any, scopes: set[str], organisation: str
) -> None:
    issuer = Issuer(Settings(provider.url, AUDIENCE, **settings))
    who = await issuer.caller(provider.token(**claims))
    assert (who.scopes, who.organisation) == (scopes, organisation)
    assert who.name == f"user {claims.get('email', 'ann-1')}"
    assert who.id == "oidc ann-1"
    await issuer.close()


@pytest.mark.parametrize("org", [None, "", "a b", ["acme", "other"], 7, {"id": "acme"}, "../x"])
async def test_a_token_without_its_organisation_belongs_to_none(provider: Provider, org: Any) -> None:
    issuer = Issuer(Settings(provider.url, AUDIENCE, organisation_claim="org"))
    with pytest.raises(Unknown, match="'org' names no organisation"):
        await issuer.caller(provider.token(org=org))
    await issuer.close()


def test_settings_are_told_all_together() -> None:
    assert settings_of({}) is None
    with pytest.raises(ConfigError) as refused:
        settings_of({"STIGMER_OIDC_ISSUER": "http://login.example", "STIGMER_OIDC_LEEWAY_SECONDS": "1h"})
    assert [problem.split()[0] for problem in refused.value.problems] == [
        "STIGMER_OIDC_ISSUER",
        "STIGMER_OIDC_AUDIENCE",
        "STIGMER_OIDC_LEEWAY_SECONDS",
    ]
    found = settings_of({"STIGMER_OIDC_ISSUER": "https://login.example/x", "STIGMER_OIDC_AUDIENCE": "us"})
    assert found == Settings("https://login.example/x", "us")


@pytest.mark.parametrize(
    "issuer", ["login.example", "https://", "ftp://x.example", "https://a:b@x.example", "https://["]
)
def test_an_issuer_is_an_https_address(issuer: str) -> None:
    with pytest.raises(ConfigError, match="STIGMER_OIDC_ISSUER"):
        settings_of({"STIGMER_OIDC_ISSUER": issuer, "STIGMER_OIDC_AUDIENCE": "us"})


# --- At a server


@pytest.fixture
async def server(idle: Any, provider: Provider, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of a server that takes the provider's tokens."""
    monkeypatch.setenv("STIGMER_MODE", "local")
    monkeypatch.setenv("STIGMER_OIDC_ISSUER", provider.url)
    monkeypatch.setenv("STIGMER_OIDC_AUDIENCE", AUDIENCE)
    monkeypatch.setenv("STIGMER_OIDC_ORGANISATION_CLAIM", "org")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    await idle.start(listen=[address])
    return address


def client(address: str, token: str) -> Client:
    return Client(Address(address, token, source="the test"))


async def test_a_token_lets_its_holder_do_what_it_says_in_its_organisation(
    idle: Any, server: str, provider: Provider
) -> None:
    async with idle.client() as owner:
        made = (await owner.create(idle.request("Go."))).execution.id
    async with client(server, provider.token(org="acme", scope="stigmer:read")) as ann:
        assert await ann.list() == []
        with pytest.raises(RemoteError, match=f"there is no execution '{made}'"):
            await ann.get(made)
        with pytest.raises(RemoteError, match="user ann-1 may read, and this needs run"):
            await ann.cancel(made)
    async with client(server, provider.token(org="acme", scope="openid")) as nobody:
        with pytest.raises(RemoteError, match="user ann-1 may nothing, and this needs read"):
            await nobody.list()
    async with client(server, provider.token(org="acme", scope="stigmer:admin")) as admin:
        assert (await admin.create_key("ci", scopes=["run"])).key.organisation == "acme"


async def test_who_is_refused_hears_no_reason_and_the_log_has_it(
    server: str, provider: Provider, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    token = provider.token(org="acme", aud="https://another.example")
    async with client(server, token) as stranger:
        with pytest.raises(RemoteError, match="the server does not know this token") as refused:
            await stranger.list()
    assert refused.value.status == "UNAUTHENTICATED"
    assert "udience" not in str(refused.value)
    assert "Audience doesn't match" in caplog.text
    assert token not in caplog.text
    assert token.split(".")[2] not in caplog.text


async def test_a_token_is_nothing_where_no_issuer_is_set(
    idle: Any, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    await idle.start()
    async with idle.client(token=provider.token(org="acme")) as ann:
        with pytest.raises(RemoteError, match="the server does not know this token"):
            await ann.list()


async def test_a_server_does_not_start_with_half_of_the_settings(
    idle: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STIGMER_MODE", "local")
    monkeypatch.setenv("STIGMER_OIDC_ISSUER", "https://login.example")
    with pytest.raises(ConfigError, match="STIGMER_OIDC_AUDIENCE is not set"):
        await idle.start(listen=["127.0.0.1:0"])


def test_without_pyjwt_the_server_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jwt", None)
    with pytest.raises(
        ConfigError, match=r"STIGMER_OIDC_ISSUER needs PyJWT: uv pip install 'stigmer\[oidc\]'"
    ):
        settings_of({"STIGMER_OIDC_ISSUER": "https://login.example", "STIGMER_OIDC_AUDIENCE": "us"})
