"""Which URLs may be contacted: pure rules over text; no name is resolved here.

A name that resolves to somewhere unexpected is caught by the certificate, which must carry the name. An address written
into the URL has no such guard, so it is judged here, in whichever spelling it comes.
"""

import ipaddress
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING
from urllib.parse import quote

from plugin.errors import BadEndpoint

if TYPE_CHECKING:
    import httpx

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_LABEL = re.compile(r"[a-z0-9_-]{1,63}")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_MAX_NAME = 253
_MAX_PORT = 65535
_THIS_NETWORK = ipaddress.IPv4Network("0.0.0.0/8")
_BROADCAST = ipaddress.IPv4Address("255.255.255.255")
# IPv6 blocks whose last 32 bits are an IPv4 address: translated (NAT64) and the deprecated compatible form.
_CARRIERS = (ipaddress.IPv6Network("64:ff9b::/96"), ipaddress.IPv6Network("::/96"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """How servers of one kind may be reached.

    `timeout_s` is for a whole request, of which `connect_s` for getting a connection: name, TCP and TLS. `connections`
    bounds the requests in flight. `allow_hosts`, unless empty, names every host that may be contacted:
    exactly, or as `.example.org` for all names below it. `ca_file` adds authorities to the usual ones; `proxy` is a
    URL, and the only way to get one: the environment is not read.
    """

    timeout_s: float = 30.0
    connect_s: float = 3.0
    ca_file: str | None = None
    proxy: str | None = None
    allow_insecure_http: bool = False
    allow_hosts: tuple[str, ...] = ()
    max_answer_bytes: int = 1024 * 1024
    connections: int = 8


def check_url(url: str, reach: Reach) -> str:
    """Return the normalised URL without a trailing slash, or raise BadEndpoint saying which rule it breaks.

    Lower case scheme and host, IDNA names in ASCII, default ports dropped, a path prefix kept.
    """
    return str(check_target(url, reach)).rstrip("/")


@lru_cache(maxsize=4)  # a drain sends to one URL; presence to so many that keeping them would not pay
def check_target(url: str, reach: Reach) -> "httpx.URL":
    """Return the normalised URL, its path as it is; the same rules as `check_url`."""
    parsed = _parse(url)
    origin = _origin(parsed.scheme, parsed.raw_host.decode("ascii"), parsed.port, reach)
    normal = origin + parsed.raw_path.decode("ascii")
    # Parsing is the dearest part of a small request: what is normal already is not parsed again.
    return parsed if normal == url else _parse(normal)


def segment(text: str) -> str:
    """Encode a text as one path segment, or raise BadEndpoint where that cannot be done ("", ".", "..")."""
    if text in {"", ".", ".."}:
        raise BadEndpoint(f"{text!r} cannot be part of a path")
    try:
        return quote(text, safe="")
    except UnicodeEncodeError:
        raise BadEndpoint(f"{text!r} cannot be part of a path: it is not valid Unicode") from None


def _parse(url: str) -> "httpx.URL":
    """Split the URL; no text raised here repeats it, since it may hold a password."""
    import httpx  # noqa: PLC0415 - it takes a while, and a process that has no URL to judge yet should start without

    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, ValueError):
        raise BadEndpoint("not a URL; it should look like https://host/prefix") from None
    if parsed.userinfo:
        raise BadEndpoint("a user name or password in a URL is refused; tokens are configured on their own")
    if "?" in url or "#" in url:
        raise BadEndpoint("a query or fragment in a URL is refused; it ends with its path")
    if parsed.port is not None and not 0 < parsed.port <= _MAX_PORT:
        raise BadEndpoint(f"port {parsed.port} does not exist")
    return parsed


@lru_cache(maxsize=1024)
def _origin(scheme: str, raw_host: str, port: int | None, reach: Reach) -> str:
    """Return the normal form of scheme, host and port; they are judged once, not for each request."""
    host = _host(raw_host)
    address = _address(host)
    _check_scheme(scheme, host, address, reach)
    if address is not None and _is_refused(address):
        raise BadEndpoint(f"{host}: link-local, multicast and unspecified addresses are refused")
    if reach.allow_hosts and not any(_covers(entry.lower(), host) for entry in reach.allow_hosts):
        raise BadEndpoint(f"{host} is not in allow_hosts")
    netloc = f"[{host}]" if ":" in host else host
    return f"{scheme}://{netloc}" if port is None else f"{scheme}://{netloc}:{port}"


def _host(raw: str) -> str:
    """Return the host without a trailing dot, once it is known to be a name or an address and nothing else."""
    if ":" in raw:
        # httpx has checked its form; here it gets its shortest spelling.
        return ipaddress.IPv6Address(raw).compressed
    host = raw.removesuffix(".")
    if len(host) > _MAX_NAME or not all(_LABEL.fullmatch(label) for label in host.split(".")):
        raise BadEndpoint("the URL has no usable host name; it should look like https://host/prefix")
    return host


def _address(host: str) -> _Address | None:
    """Return the address that the host is written as, None for a name; odd spellings of addresses are refused."""
    try:
        if ":" in host:
            return _carried(ipaddress.IPv6Address(host))
        # Resolvers read 2130706433, 0x7f.1 and 0177.0.0.1 as addresses too: what ends in a number is one, or nothing.
        if _NUMBER.fullmatch(host.rpartition(".")[2]):
            return ipaddress.IPv4Address(host)
    except ValueError:
        raise BadEndpoint(f"{host} is not an address in its usual form (four decimal numbers, or IPv6)") from None
    return None


def _carried(address: ipaddress.IPv6Address) -> _Address:
    """Return the IPv4 address that an IPv6 address stands for, else itself; a zone (%eth0) is refused."""
    if address.scope_id is not None:
        raise ValueError
    if address.is_loopback or address.is_unspecified:
        return address
    if any(address in network for network in _CARRIERS):
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or address


def _check_scheme(scheme: str, host: str, address: _Address | None, reach: Reach) -> None:
    if scheme == "https":
        return
    if scheme != "http":
        raise BadEndpoint(f"{host}: only https URLs are contacted")
    local = host == "localhost" if address is None else address.is_loopback
    if not local and not reach.allow_insecure_http:
        raise BadEndpoint(f"{host}: http would show the token to the network; use https, or set allow_insecure_http")


def _is_refused(address: _Address) -> bool:
    return (
        address.is_link_local
        or address.is_multicast
        or address.is_unspecified
        or address == _BROADCAST
        or address in _THIS_NETWORK
    )


def _covers(entry: str, host: str) -> bool:
    return host.endswith(entry) if entry.startswith(".") else host == entry
