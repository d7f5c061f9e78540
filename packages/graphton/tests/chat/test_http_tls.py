"""TLS and proxies with real servers: which certificates are believed, what is said of the others, and who hears what."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from graphton._trust import distrust, tls_context
from graphton.chat._http import HEADERS, Limits, fetch
from graphton.errors import ConnectError, ProviderTimeout

SENTINEL = "sk-sentinel-0123456789"
LIMITS = Limits(connect=30, first_token=30, idle=30)
NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)


# --- certificates


@dataclass
class Certificate:
    """A certificate with its key, as files: `both` for a server, `alone` for those who are to believe it."""

    name: x509.Name
    key: ec.EllipticCurvePrivateKey
    both: Path
    alone: Path

    @property
    def server(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.both)
        return context


Make = Callable[..., Certificate]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Makes a certificate: `make("localhost", by=authority)`; without `by` it signs itself."""
    folder = tmp_path_factory.mktemp("tls")
    made = 0

    def certificate(
        *hosts: str,
        by: Certificate | None = None,
        authority: bool = False,
        begins: datetime.datetime = NOW - DAY,
        ends: datetime.datetime = NOW + DAY,
        chain: tuple[Certificate, ...] = (),
    ) -> Certificate:
        nonlocal made
        made += 1
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{hosts[0]} {made}")])
        issuer, signer = (by.name, by.key) if by else (name, key)
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(begins)
            .not_valid_after(ends)
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        )
        if not authority:
            names = [
                x509.IPAddress(ipaddress.ip_address(host)) if host[0].isdigit() else x509.DNSName(host)
                for host in hosts
            ]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        pem = builder.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        secret = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        both, alone = folder / f"{made}.both.pem", folder / f"{made}.pem"
        both.write_bytes(secret + pem + b"".join(one.alone.read_bytes() for one in chain))
        alone.write_bytes(pem)
        return Certificate(name, key, both, alone)

    return certificate


@pytest.fixture(scope="module")
def company(make: Make) -> Certificate:
    """A private certificate authority."""
    return make("Company CA", authority=True)


# --- servers and proxies


@dataclass
class Heard:
    """What a server was sent, of all its connections."""

    url: str = ""
    data: bytes = b""


@asynccontextmanager
async def serving(
    tls: ssl.SSLContext | None, answer: bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
) -> AsyncIterator[Heard]:
    heard = Heard()

    async def scene(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while piece := await reader.read(65_536):
                heard.data += piece
                if b"\r\n\r\n" in heard.data:
                    writer.write(answer)
                    await writer.drain()
        except (ConnectionError, ssl.SSLError, asyncio.CancelledError):
            pass  # the client left, or the test is over
        finally:
            writer.close()

    server = await asyncio.start_server(scene, "127.0.0.1", 0, ssl=tls)
    port = server.sockets[0].getsockname()[1]
    heard.url = f"{'https' if tls else 'http'}://localhost:{port}"
    try:
        yield heard
    finally:
        server.close()


@dataclass
class Proxy:
    """A proxy that connects every CONNECT with one server, and remembers what it could read."""

    url: str = ""
    heads: list[bytes] = field(default_factory=list)
    seen: bytes = b""


@asynccontextmanager
async def proxying(goal: str, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[Proxy]:
    proxy = Proxy()
    port = int(goal.rpartition(":")[2])
    scenes: set[asyncio.Task[None]] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while piece := await reader.read(65_536):
            proxy.seen += piece
            writer.write(piece)
            await writer.drain()

    async def scene(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        scenes.add(task)
        pumps: list[asyncio.Task[None]] = []
        writers = [writer]
        try:
            proxy.heads.append(await reader.readuntil(b"\r\n\r\n"))
            there, back = await asyncio.open_connection("127.0.0.1", port)
            writers.append(back)
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            pumps = [asyncio.create_task(pump(reader, back)), asyncio.create_task(pump(there, writer))]
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        except (ConnectionError, ssl.SSLError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client left, or the test is over
        finally:
            for one in pumps:
                one.cancel()
            for other in writers:
                other.close()
            await asyncio.gather(*pumps, *(other.wait_closed() for other in writers), return_exceptions=True)
            scenes.discard(task)

    server = await asyncio.start_server(scene, "127.0.0.1", 0, ssl=tls)
    proxy.url = f"{'https' if tls else 'http'}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield proxy
    finally:
        server.close()
        for task in list(scenes):
            task.cancel()
        await asyncio.gather(*scenes, return_exceptions=True)


async def send(url: str, limits: Limits = LIMITS) -> bytes:
    headers = {**HEADERS, "x-api-key": SENTINEL}
    return await fetch(url, b"a prompt", headers=headers, provider="p", limits=limits, secrets=(SENTINEL,))


async def refused(url: str, limits: Limits = LIMITS) -> ConnectError:
    with pytest.raises(ConnectError) as caught:
        await send(url, limits)
    return caught.value


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)


# --- which certificates are believed


async def test_the_authority_in_ssl_cert_file_is_believed(
    make: Make, company: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(company.alone))
    async with serving(make("localhost", by=company).server) as own:
        assert await send(own.url) == b"ok"


async def test_the_authority_in_ssl_cert_dir_is_believed(
    make: Make, company: Certificate, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl, which names the files of such a folder, is not installed")
    shutil.copy(company.alone, tmp_path / "company.pem")
    await asyncio.to_thread(
        subprocess.run, ["openssl", "rehash", str(tmp_path)], check=True, capture_output=True
    )
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    async with serving(make("localhost", by=company).server) as own:
        assert await send(own.url) == b"ok"


async def test_a_companys_intermediate_authority_is_enough(
    make: Make, company: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    department = make("Department CA", by=company, authority=True)
    monkeypatch.setenv("SSL_CERT_FILE", str(department.alone))
    async with serving(make("localhost", by=department).server) as own:
        assert await send(own.url) == b"ok"


async def test_a_self_signed_certificate_is_believed_when_it_is_named(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    lone = make("localhost")
    monkeypatch.setenv("SSL_CERT_FILE", str(lone.alone))
    async with serving(lone.server) as own:
        assert await send(own.url) == b"ok"


def test_the_store_is_read_once_and_anew_for_another_file(
    company: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tls_context()
    assert tls_context() is first
    monkeypatch.setenv("SSL_CERT_FILE", str(company.alone))
    other = tls_context()
    assert other is not first
    assert [dict(part[0] for part in cert["subject"]) for cert in other.get_ca_certs()] == [  # type: ignore[index]
        {"commonName": company.name.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value}
    ]
    assert (other.verify_mode, other.check_hostname) == (ssl.CERT_REQUIRED, True)


# --- what is said of the others


async def test_an_issuer_that_nobody_knows_is_said(make: Make, company: Certificate) -> None:
    async with serving(make("localhost", by=company).server) as own:
        error = await refused(own.url)
    assert error.message == (
        f"the TLS certificate of {own.url!r} (p) is not trusted: its issuer is not known here "
        "(unable to get local issuer certificate)"
    )
    assert error.hint == (
        "if you trust it, add the certificate of the authority that signed it (your company's, or the proxy's) to the "
        "system's trust store, or name a file with it: SSL_CERT_FILE=/path/to/ca.pem; a running daemon sees that "
        "after `stigmer down`"
    )
    assert (error.trouble, error.retryable) == ("certificate", False)
    assert own.data == b""


async def test_an_authority_that_the_server_sends_along_is_not_believed_for_that(
    make: Make, company: Certificate
) -> None:
    async with serving(make("localhost", by=company, chain=(company,)).server) as own:
        error = await refused(own.url)
    assert "its issuer is not known here (self-signed certificate in certificate chain)" in error.message
    assert own.data == b""


async def test_a_self_signed_certificate_is_said(make: Make) -> None:
    async with serving(make("localhost").server) as own:
        error = await refused(own.url)
    assert "is not trusted: it is self-signed (self-signed certificate)" in error.message
    assert "if you trust it, add this certificate to the system's trust store" in error.hint
    assert own.data == b""


async def test_an_expired_certificate_is_said_with_what_the_clock_says(
    make: Make, company: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(company.alone))
    old = make("localhost", by=company, begins=NOW - 3 * DAY, ends=NOW - DAY)
    async with serving(old.server) as own:
        error = await refused(own.url)
    assert "is not trusted: it has expired (certificate has expired)" in error.message
    assert error.hint.startswith("this machine's clock says 20")
    assert error.hint.endswith("if that is right, who runs localhost must renew it")


async def test_a_certificate_of_tomorrow_is_said(
    make: Make, company: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(company.alone))
    early = make("localhost", by=company, begins=NOW + DAY, ends=NOW + 3 * DAY)
    async with serving(early.server) as own:
        error = await refused(own.url)
    assert "it is not valid yet (certificate is not yet valid)" in error.message
    assert error.hint.endswith(": set the clock right")


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
async def test_a_certificate_for_another_name_is_said(
    make: Make, company: Certificate, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(company.alone))
    async with serving(make("other.example", by=company).server) as own:
        error = await refused(own.url.replace("localhost", host))
        assert "it was made for another name (" in error.message
        assert f"is not valid for '{host}'" in error.message
        assert f"check the host '{host}' in the address" in error.hint
        assert own.data == b""
    async with serving(make(host, by=company).server) as own:
        assert await send(own.url.replace("localhost", host)) == b"ok"


async def test_a_certificate_file_that_is_not_there_is_said(
    make: Make, company: Certificate, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    missing = tmp_path / "ca.pem"
    monkeypatch.setenv("SSL_CERT_FILE", str(missing))
    async with serving(make("localhost", by=company).server) as own:
        error = await refused(own.url)
    assert error.hint.startswith(f"SSL_CERT_FILE names {str(missing)!r}, and that is not there")


async def test_a_certificate_file_is_named_that_stands_in_place_of_the_systems(
    make: Make, company: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(make("Other CA", authority=True).alone))
    async with serving(make("localhost", by=company).server) as own:
        error = await refused(own.url)
    assert "which is read in place of the system's file" in error.hint


def test_what_another_system_says_of_a_certificate_is_passed_on() -> None:
    said = ssl.SSLCertVerificationError("“models.example” certificate is revoked")
    said.verify_message = "“models.example” certificate is revoked"
    assert distrust(said, "models.example", environ={})[0] == "“models.example” certificate is revoked"


# --- proxies


async def test_through_a_proxy_the_server_is_reached_and_the_proxy_reads_nothing(
    make: Make, company: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(company.alone))
    async with (
        serving(make("models.example", by=company).server) as own,
        proxying(own.url) as proxy,
    ):
        monkeypatch.setenv("HTTPS_PROXY", proxy.url.replace("//", "//me:proxy%20sentinel@"))
        assert await send("https://models.example/v1") == b"ok"
    assert SENTINEL.encode() in own.data
    assert proxy.heads[0].startswith(b"CONNECT models.example:443 HTTP/1.1\r\n")
    assert b"Proxy-Authorization: Basic bWU6cHJveHkgc2VudGluZWw=\r\n" in proxy.heads[0]
    assert SENTINEL.encode() not in proxy.heads[0] + proxy.seen
    assert b"a prompt" not in proxy.heads[0] + proxy.seen
    assert b"roxy" not in own.data


async def test_a_proxy_that_opens_tls_is_refused_until_its_authority_is_believed(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    inspector = make("Inspecting Proxy CA", authority=True)
    async with (
        serving(make("models.example", by=inspector).server) as own,
        proxying(own.url) as proxy,
    ):
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        error = await refused("https://models.example/v1")
        assert "certificate of 'https://models.example' (p) is not trusted: its issuer is not known here" in (
            error.message
        )
        assert "your company's, or the proxy's" in error.hint
        assert own.data == b""
        monkeypatch.setenv("SSL_CERT_FILE", str(inspector.alone))
        assert await send("https://models.example/v1") == b"ok"


async def test_a_proxy_with_tls_of_its_own_is_reached_and_named_when_it_is_not_believed(
    make: Make, company: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        serving(make("models.example", by=company).server) as own,
        proxying(own.url, tls=make("127.0.0.1", by=company).server) as proxy,
    ):
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        error = await refused("https://models.example/v1")
        assert (
            f"the TLS certificate of the proxy {proxy.url!r} (from HTTPS_PROXY) is not trusted"
            in error.message
        )
        assert (error.trouble, proxy.heads) == ("certificate", [])
        monkeypatch.setenv("SSL_CERT_FILE", str(company.alone))
        assert await send("https://models.example/v1") == b"ok"
    assert SENTINEL.encode() not in proxy.heads[0] + proxy.seen


async def test_a_proxy_with_tls_serves_a_plain_address_too(
    make: Make, company: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(company.alone))
    async with serving(make("127.0.0.1", by=company).server) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url.replace("localhost", "127.0.0.1"))
        body = await fetch("http://models.example/v1", b"{}", headers=HEADERS, provider="p", limits=LIMITS)
    assert body == b"ok"
    assert proxy.data.startswith(b"POST http://models.example/v1 HTTP/1.1\r\n")


async def test_this_machine_is_not_reached_through_a_proxy_with_tls_either(
    make: Make, company: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(company.alone))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    async with serving(make("localhost", by=company).server) as own:
        assert await send(own.url) == b"ok"


@pytest.mark.parametrize(
    ("status", "said", "hint", "retryable"),
    [
        (
            "407 Proxy Authentication Required",
            "wants a user and password before it lets us to 'https://models.example' (407)",
            "write them into its address: HTTPS_PROXY=http://USER:PASSWORD@HOST:PORT",
            False,
        ),
        (
            "403 Forbidden",
            "does not let us to 'https://models.example' (it answered 403)",
            "ask who runs it to allow that host, or go past it: NO_PROXY=models.example",
            False,
        ),
        (
            "502 Bad Gateway",
            "could not connect us to 'https://models.example' (it answered 502)",
            "it may not know that host, or be overloaded, or go past it: NO_PROXY=models.example",
            True,
        ),
    ],
)
async def test_what_a_proxy_answers_is_told_as_the_proxys(
    monkeypatch: pytest.MonkeyPatch, status: str, said: str, hint: str, retryable: bool
) -> None:
    async with serving(None, f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode()) as proxy:
        address = proxy.url.replace("localhost", "127.0.0.1")
        monkeypatch.setenv("HTTPS_PROXY", address)
        error = await refused("https://models.example/v1")
    assert error.message == f"the proxy {address!r} (from HTTPS_PROXY) {said}"
    assert error.hint.startswith(hint)
    assert (error.trouble, error.retryable) == ("proxy", retryable)
    assert SENTINEL.encode() not in proxy.data


async def test_a_proxy_that_wants_a_password_is_named_for_a_plain_address_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with serving(None, b"HTTP/1.1 407 X\r\nContent-Length: 0\r\n\r\n") as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url.replace("localhost", "127.0.0.1"))
        with pytest.raises(
            ConnectError, match="wants a user and password before it lets us to 'http://models"
        ) as caught:
            await fetch("http://models.example/", headers={}, provider="p", limits=LIMITS)
    assert "HTTP_PROXY=http://USER:PASSWORD@HOST:PORT" in caught.value.hint


async def test_a_407_without_a_proxy_is_the_servers() -> None:
    from graphton.errors import StatusError

    async with serving(None, b"HTTP/1.1 407 X\r\nContent-Length: 0\r\n\r\n") as own:
        with pytest.raises(StatusError, match="answered 407"):
            await send(own.url)


async def test_a_proxy_whose_name_is_not_known_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://no-such-proxy.invalid:3128")
    error = await refused("https://models.example/v1")
    assert error.message == (
        "the proxy 'http://no-such-proxy.invalid:3128' (from HTTPS_PROXY) for 'https://models.example' cannot be "
        "reached: its name is not known here"
    )
    assert (
        error.hint
        == "check its address, or go past it: NO_PROXY=models.example (a running daemon: `stigmer down` first)"
    )
    assert (error.trouble, error.retryable) == ("proxy", True)


async def test_a_proxy_that_says_nothing_is_named_when_the_connect_limit_passes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with serving(None, b"") as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url.replace("localhost", "127.0.0.1"))
        with pytest.raises(ProviderTimeout) as caught:
            await send("https://models.example/v1", Limits(connect=0.3, first_token=30, idle=30))
    assert (
        "could not be connected to within 0.3 s through the proxy 'http://127.0.0.1:" in caught.value.message
    )
    assert "NO_PROXY=models.example" in caught.value.hint
    assert caught.value.limit == "connect"
