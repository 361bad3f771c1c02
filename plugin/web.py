"""The one HTTP layer: every request of the plugin passes here, and nothing but our own errors comes out.

It speaks httpx's transport API, with aiohttp's connections below, which are an order of magnitude faster at 64 requests
in flight than httpx's own and give a cancelled request's connection back. What `httpx.AsyncClient` would do above the
transport (cookies, redirects, authentication, proxies of the environment) must not happen here and costs more than the
request itself, so it is left out. The transport names failures misleadingly (a reset and a refused connection both
arrive as `ConnectTimeout`), so what is reported is read from the chain of causes. Whatever the cause, a failure without
a whole answer is ambiguous: the server may have done what it was asked.
"""

import asyncio
import base64
import contextlib
import errno
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote, urlencode
from weakref import WeakSet

import aiohttp
import httpx
from httpx_aiohttp import AiohttpTransport

from plugin import __version__
from plugin.endpoint import Reach, check_target, check_url
from plugin.errors import BadEndpoint, ConfigInvalid, NoAnswer
from plugin.secret import Secret

__all__ = ["Answer", "Reach", "Web", "check_url", "tls_context"]

# Servers and balancers drop idle connections after 60 s and more; ours go first.
IDLE_S = 50.0
# A larger body is handed to the socket piece by piece, so that one write holds up nobody else.
PIECE_BYTES = 256 * 1024

_FIXED = {"user-agent": f"agentic-sync/{__version__}", "accept-encoding": "identity"}
_FOREIGN = (httpx.HTTPError, httpx.StreamError, aiohttp.ClientError, OSError, RuntimeError, ValueError)
# The first line that fits decides; httpx's own classes are not asked, they are what misleads.
_DIAGNOSES: tuple[tuple[tuple[type[BaseException], ...], str, str], ...] = (
    ((aiohttp.ClientSSLError, ssl.SSLError), "tls", "no secure connection: {tls}"),
    ((aiohttp.ClientConnectorDNSError, socket.gaierror), "dns", "its name was not resolved; check URL and network"),
    ((ConnectionRefusedError,), "refused", "the connection was refused; check that it runs, and the port"),
    ((ConnectionResetError, BrokenPipeError, ConnectionAbortedError), "reset", "the connection was reset"),
    ((aiohttp.ConnectionTimeoutError,), "timeout", "no connection within {reach.connect_s:g} s"),
    ((TimeoutError,), "timeout", "no whole answer within {reach.timeout_s:g} s"),
    ((aiohttp.ClientResponseError, httpx.DecodingError), "not_http", "what came back is not HTTP; check URL and port"),
)
_UNREACHABLE = {errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN, errno.EADDRNOTAVAIL}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a server answered, whole, whatever its status; header names are in lower case."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    body: bytes = field(default=b"", repr=False)


class Web:
    """Send requests to the servers of one kind; build one per origin that must not slow down the others."""

    def __init__(self, reach: Reach) -> None:
        """Prepare the client; nothing is opened yet. ConfigInvalid when `ca_file` or `proxy` cannot be used."""
        self._reach = reach
        self._tls = tls_context(reach.ca_file)
        self._slots = asyncio.Semaphore(reach.connections)
        self._connections: WeakSet[socket.socket] = WeakSet()
        self._closed = False
        self._transport = AiohttpTransport(
            verify=self._tls, trust_env=False, client=self._open, proxy=_proxy(reach.proxy)
        )
        # `pool` is what the transport takes for the whole of getting a connection: name, TCP and TLS.
        self._extensions = {"timeout": httpx.Timeout(None, connect=reach.connect_s, pool=reach.connect_s).as_dict()}

    async def request(
        self,
        method: str,
        url: str,
        *,
        token: Secret | None = None,
        query: Mapping[str, str] | None = None,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Send one request and return the answer, whatever its status.

        NoAnswer (always ambiguous) when no whole answer came within `timeout_s`, or it is larger than
        `max_answer_bytes`. BadEndpoint when the URL or a header must not be sent; then nothing was.
        A request with a body is JSON unless `headers` says otherwise.
        """
        request = self._build(method, url, token=token, query=query, body=body, headers=headers)
        host = request.url.host
        if self._closed:
            raise NoAnswer(f"{host}: the connections are closed", cause="closed")
        try:
            async with asyncio.timeout(self._reach.timeout_s), self._slots:
                return await self._exchange(request)
        except _FOREIGN as exc:
            failure = self._failure(exc, host)
        # Raised outside the handler: chained, the foreign error would bring the request and its headers along.
        raise failure

    async def close(self) -> None:
        """Close every connection: what is in flight or comes later ends with NoAnswer. May be called again."""
        # An orderly close waits until all is sent, which a server that doesn't read puts off for ever.
        for connection in self._connections:
            with contextlib.suppress(OSError):  # closed already
                connection.shutdown(socket.SHUT_RDWR)
        self._closed = True
        await self._transport.aclose()

    def _open(self) -> aiohttp.ClientSession:
        # No limits: requests are bounded before they come here, nothing may queue inside the pool.
        connector = aiohttp.TCPConnector(
            limit=0, limit_per_host=0, ssl=self._tls, keepalive_timeout=IDLE_S, socket_factory=self._socket
        )
        return aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar(), trust_env=False)

    def _socket(self, info: tuple[int, int, int, str, object]) -> socket.socket:
        connection = socket.socket(info[0], info[1], info[2])
        self._connections.add(connection)
        # A server that accepts and never reads would keep a closed connection and its unsent bytes for ever.
        if sys.platform == "linux":
            with contextlib.suppress(OSError):  # a sandbox without the option loses only this
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(self._reach.timeout_s * 1000))
        return connection

    def _build(
        self,
        method: str,
        url: str,
        *,
        token: Secret | None,
        query: Mapping[str, str] | None,
        body: bytes | None,
        headers: Mapping[str, str] | None,
    ) -> httpx.Request:
        target = _with_query(check_target(url, self._reach), query)
        sent = _FIXED if body is None else _FIXED | {"content-type": "application/json"}
        if headers:
            sent = sent | {name.lower(): value for name, value in headers.items()}
        if token is not None:
            sent = sent | {"authorization": f"Bearer {token.reveal()}"}
        for name, value in sent.items():
            _check_header(name, value)
        if body is not None and len(body) > PIECE_BYTES:
            sent = sent | {"content-length": str(len(body))}
            return httpx.Request(method, target, headers=sent, stream=_Pieces(body), extensions=self._extensions)
        whole = httpx.ByteStream(body or b"")
        request = httpx.Request(method, target, headers=sent, stream=whole, extensions=self._extensions)
        # What is read is sent in one piece.
        request.read()
        return request

    async def _exchange(self, request: httpx.Request) -> Answer:
        response = await self._transport.handle_async_request(request)
        try:
            body = bytearray()
            async for chunk in _chunks(response):
                body += chunk
                if len(body) > self._reach.max_answer_bytes:
                    # Closing with the rest unread drops the connection.
                    raise NoAnswer(
                        f"{request.url.host}: the answer is larger than {self._reach.max_answer_bytes} bytes",
                        cause="too_large",
                    )
        finally:
            await response.aclose()
        return Answer(status=response.status_code, headers=dict(response.headers.items()), body=bytes(body))

    def _failure(self, exc: BaseException, host: str) -> NoAnswer:
        cause, what = _diagnose(exc, self._reach)
        return NoAnswer(f"{host}: {what}", cause=cause)


def tls_context(ca_file: str | None) -> ssl.SSLContext:
    """Return the shared TLS settings: certificates verified, TLS 1.2 or newer, `ca_file` besides the usual authorities.

    ConfigInvalid when the file cannot be used. A file that changed is read anew.
    """
    if ca_file is None:
        return _load_tls(None, 0)
    try:
        return _load_tls(ca_file, Path(ca_file).stat().st_mtime_ns)
    except (OSError, ValueError) as exc:
        what = exc.strerror if isinstance(exc, OSError) and exc.strerror else "not a PEM file of certificates"
        raise ConfigInvalid([("ca_file", f"{ca_file} cannot be used: {what}")]) from exc


@lru_cache(maxsize=8)
def _load_tls(ca_file: str | None, _mtime_ns: int) -> ssl.SSLContext:
    """Build the context once for all clients: it takes tens of milliseconds and megabytes."""
    context = httpx.create_ssl_context(verify=True, trust_env=False)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if ca_file is not None:
        context.load_verify_locations(cafile=ca_file)
    return context


def _proxy(text: str | None) -> httpx.Proxy | None:
    """Read the proxy's URL; a user name and password in it are what the proxy asks for."""
    if text is None:
        return None
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL:
        url = httpx.URL("")
    if url.scheme not in {"http", "https"} or not url.host:
        raise ConfigInvalid([("proxy", "not a proxy's URL; it should look like http://host:port")])
    # aiohttp turns this header into Proxy-Authorization, for the proxy alone; its own way of saying so is deprecated.
    who = base64.b64encode(f"{url.username}:{url.password}".encode()).decode("ascii")
    headers = {"authorization": f"Basic {who}"} if url.userinfo else None
    return httpx.Proxy(url.copy_with(username=None, password=None), headers=headers)


def _with_query(target: httpx.URL, query: Mapping[str, str] | None) -> httpx.URL:
    if not query:
        return target
    try:
        return httpx.URL(f"{target}?{urlencode(query, quote_via=quote)}")
    except (httpx.InvalidURL, ValueError):
        raise BadEndpoint("the query cannot be sent: it is too long, or not valid Unicode") from None


def _check_header(name: str, value: str) -> None:
    """Refuse what would end the header's line, or cannot be written in one; the value may be a token: never show it."""
    if not (value.isascii() and value.isprintable()):
        raise BadEndpoint(f"the value for the header {name} holds characters that cannot be sent (a line break?)")


def _chunks(response: httpx.Response) -> AsyncIterator[bytes]:
    """Return what is left to read, unpacked should the server have packed it although nobody asked for that."""
    stream = response.stream
    if "content-encoding" in response.headers or not isinstance(stream, httpx.AsyncByteStream):
        return response.aiter_bytes()
    # The same bytes by a shorter way: httpx's own costs a tenth of a small request.
    return aiter(stream)


class _Pieces(httpx.AsyncByteStream):
    """A body in pieces."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for start in range(0, len(self._body), PIECE_BYTES):
            yield self._body[start : start + PIECE_BYTES]


def _chain(exc: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while exc is not None and id(exc) not in seen:
        seen.add(id(exc))
        yield exc
        exc = exc.__cause__ or exc.__context__


def _diagnose(exc: BaseException, reach: Reach) -> tuple[str, str]:
    """Return our word for the failure and what a person reads; taken from the most telling link of the chain."""
    chain = list(_chain(exc))
    for link in chain:
        if isinstance(link, aiohttp.ClientHttpProxyError):
            return "refused", f"the proxy answered {link.status} instead of connecting"
        if isinstance(link, OSError) and link.errno in _UNREACHABLE:
            return "refused", f"the network does not reach it ({link.strerror})"
        for types, cause, what in _DIAGNOSES:
            if isinstance(link, types):
                return cause, what.format(tls=_tls_text(chain), reach=reach)
    return "closed", "the connection was closed before a whole answer came"


def _tls_text(chain: list[BaseException]) -> str:
    # aiohttp's own errors claim to be ssl's, without their attributes.
    for link in chain:
        if isinstance(link, ssl.SSLError) and not isinstance(link, aiohttp.ClientError):
            if isinstance(link, ssl.SSLCertVerificationError):
                return f"{link.verify_message} (an authority of your own goes into ca_file)"
            return (link.reason or "the handshake failed").lower().replace("_", " ")
    return "the handshake failed"
