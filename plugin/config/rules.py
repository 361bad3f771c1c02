"""What must hold between settings, beyond the type of each one."""

import os
from collections.abc import Iterator
from urllib.parse import urlsplit

from plugin.config.settings import Config, Fabric, Platform
from plugin.errors import BadEndpoint

Problem = tuple[str, str]

_DEFAULTS = {"platform.base_url": Platform().base_url}


def check(config: Config) -> Iterator[Problem]:
    """Yield a (path, text) for each rule that a configuration breaks; files are looked at, nothing is contacted."""
    yield from _server("platform", "base_url", config.platform.base_url, config.platform)
    yield from _server("fabric", "center_url", config.fabric.center_url, config.fabric)
    seen: set[str] = set()
    for position, identity in enumerate(config.identities):
        if identity.agent_id in seen:
            yield f"identities[{position}].agent_id", "this agent has an identity above already; an agent has one"
        seen.add(identity.agent_id)


def _server(section: str, name: str, url: str | None, server: Platform | Fabric) -> Iterator[Problem]:
    # The default is a good one, and judging a URL needs imports that would delay every start.
    if url is not None and (url != _DEFAULTS.get(f"{section}.{name}") or server.allow_hosts):
        problem = _misplaced(url, server)
        if problem is not None:
            yield f"{section}.{name}", problem
    if server.ca_file is not None and not os.path.isfile(server.ca_file):  # noqa: PTH113 - a Path raises for one too long
        yield f"{section}.ca_file", "there is no such file"
    if server.proxy is not None and not _proxy(server.proxy):
        yield f"{section}.proxy", "expected an http or https URL such as http://host:port"


def _misplaced(url: str, server: Platform | Fabric) -> str | None:
    from plugin.endpoint import Reach, check_url  # noqa: PLC0415 - see above

    try:
        check_url(url, Reach(allow_insecure_http=server.allow_insecure_http, allow_hosts=server.allow_hosts))
    except BadEndpoint as exc:
        return exc.message
    return None


def _proxy(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
