"""The guilds' contract over HTTP: log an agent in at the center, PUT its presence to a guild."""

import asyncio
from collections.abc import Callable
from functools import lru_cache
from typing import Protocol

import msgspec

from plugin import config
from plugin.endpoint import Reach, check_url, segment
from plugin.errors import BadEndpoint, ConfigInvalid
from plugin.presence.session import Seat
from plugin.presence.state import Status
from plugin.secret import Secret
from plugin.web import Answer, Web

LOGINS = 16
_SESSION_BYTES = 1024 * 1024
_PUT_BYTES = 64 * 1024


class Fabric(Protocol):
    """The center and the guilds, as presence needs them. Every answer is returned, whatever its status.

    Both requests raise NoAnswer when it is unknown whether they were served, BadEndpoint when they must not be sent.
    """

    def check(self, endpoint: str) -> str:
        """Return a guild's endpoint in its normal form, or raise BadEndpoint."""
        ...

    async def login(self, agent_id: str, api_key: Secret) -> Answer:
        """Ask the center for an agent's session."""
        ...

    async def put(self, guild_id: str, seat: Seat, user_id: str, status: Status) -> Answer:
        """Tell a guild what one of its users is doing."""
        ...

    async def drop(self, guild_id: str) -> None:
        """Close what is open to a guild that is needed no more."""
        ...

    async def close(self) -> None:
        """Take no more requests, let those in flight end, and close everything."""
        ...


OpenFabric = Callable[[config.Fabric, config.Presence], Fabric]


class _Login(msgspec.Struct, frozen=True):
    agent_id: str
    api_key: str


class _Presence(msgspec.Struct, frozen=True):
    status: str
    source: str


class WebFabric:
    """The center and each guild with connections of its own, so that a guild that hangs holds up no other."""

    def __init__(self, fabric: config.Fabric, presence: config.Presence) -> None:
        self._config = fabric
        self._guild_reach = _reach(fabric, connections=presence.concurrency_per_guild, max_bytes=_PUT_BYTES)
        self._center_reach = _reach(fabric, connections=LOGINS, max_bytes=_SESSION_BYTES)
        self._bodies = {
            status: msgspec.json.encode(_Presence(status=status.value, source=presence.source)) for status in Status
        }
        self._center: Web | None = None
        self._guilds: dict[str, Web] = {}
        self._in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def check(self, endpoint: str) -> str:
        """Return a guild's endpoint in its normal form, or raise BadEndpoint."""
        return _checked(endpoint, self._guild_reach)

    async def login(self, agent_id: str, api_key: Secret) -> Answer:
        """POST the agent's key to the center."""
        if self._config.center_url is None:
            raise BadEndpoint("fabric.center_url is not set")
        if self._center is None:
            self._center = _open(self._center_reach)
        url = check_url(self._config.center_url, self._center_reach) + self._config.session_path
        body = msgspec.json.encode(_Login(agent_id=agent_id, api_key=api_key.reveal()))
        return await self._request(self._center, "POST", url, token=None, body=body)

    async def put(self, guild_id: str, seat: Seat, user_id: str, status: Status) -> Answer:
        """PUT the status to the seat's endpoint with the seat's token."""
        url = seat.endpoint + self._config.presence_path.replace("{user_id}", segment(user_id))
        web = self._guilds.get(guild_id)
        if web is None:
            web = self._guilds[guild_id] = _open(self._guild_reach)
        return await self._request(web, "PUT", url, token=seat.token, body=self._bodies[status])

    async def drop(self, guild_id: str) -> None:
        """Close the connections to one guild."""
        web = self._guilds.pop(guild_id, None)
        if web is not None:
            await web.close()

    async def close(self) -> None:
        """Wait until nothing is in flight, for the timeout of a request at most, and close every connection."""
        try:
            async with asyncio.timeout(self._config.timeout_s):
                await self._idle.wait()
        except TimeoutError:
            # Closing ends what is left with NoAnswer.
            pass
        finally:
            webs = [*self._guilds.values(), *([self._center] if self._center else [])]
            self._guilds.clear()
            self._center = None
            for web in webs:
                await web.close()

    async def _request(self, web: Web, method: str, url: str, *, token: Secret | None, body: bytes) -> Answer:
        self._in_flight += 1
        self._idle.clear()
        try:
            return await web.request(method, url, token=token, body=body)
        finally:
            self._in_flight -= 1
            if not self._in_flight:
                self._idle.set()


@lru_cache(maxsize=1024)
def _checked(endpoint: str, reach: Reach) -> str:
    """Check once what every agent's session names again."""
    return check_url(endpoint, reach)


def _reach(fabric: config.Fabric, *, connections: int, max_bytes: int) -> Reach:
    return Reach(
        timeout_s=fabric.timeout_s,
        ca_file=fabric.ca_file,
        proxy=fabric.proxy,
        allow_insecure_http=fabric.allow_insecure_http,
        allow_hosts=fabric.allow_hosts,
        max_answer_bytes=max_bytes,
        connections=connections,
    )


def _open(reach: Reach) -> Web:
    try:
        return Web(reach)
    except ConfigInvalid as exc:
        raise BadEndpoint(f"fabric: {exc.message}") from exc
