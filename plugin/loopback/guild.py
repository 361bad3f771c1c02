"""The contract of guilds and of the center that issues their tokens, as servers on this machine.

    POST {center}/api/auth/agent/session           {agent_id, api_key}
         200 {user_id, expires_at?, guilds: [{node_id, endpoint, token, ttl_s?}]}       401, 403
    PUT  {guild}/api/agents/{user_id}/presence     Bearer guild token; {status, source}
         200 {user_id, status}                                                          401, 403, 422

The backend's own code is private; a guild or a center that does what these do is served correctly by the plugin.
"""

import itertools
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

import msgspec

from plugin.clock import Clock
from plugin.loopback.server import Arrival, Reply, Route, Server, Subject

PresenceStatus = Literal["idle", "on_call", "busy", "offline"]
Text = Annotated[str, msgspec.Meta(min_length=1)]


class PresenceBody(msgspec.Struct, frozen=True, kw_only=True):
    """What is put to a guild; `exhausted` and `unknown` are the backend's own and refused."""

    status: PresenceStatus
    source: Text


class SessionBody(msgspec.Struct, frozen=True, kw_only=True):
    """What is posted to the center."""

    agent_id: Text
    api_key: Text


@dataclass(frozen=True, slots=True, kw_only=True)
class Put:
    """One effect: a status that took its place in the guild; `at` is monotonic seconds."""

    at: float
    user_id: str
    status: PresenceStatus
    source: str
    token: str = field(repr=False)
    host: str
    arrival: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """One login that the center granted; `at` is monotonic seconds."""

    at: float
    agent: str
    arrival: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """An agent as the center knows it."""

    api_key: str = field(repr=False)
    user_id: str
    guilds: tuple["LoopbackGuild", ...]


class LoopbackGuild(Server):
    """A guild that shows who is doing what. Its route is called presence; the agent of an arrival is the user id."""

    def __init__(
        self,
        node_id: str,
        *,
        ttl_s: float | None = None,
        prefix: str = "",
        path: str = "/api/agents/{user_id}/presence",
        clock: Clock | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Describe the guild; nothing is opened before `start`."""
        # Without a pattern of its own a user id with braces would be no part of any path.
        path = path.replace("{user_id}", "{user_id:[^/]+}")
        presence = Route(name="presence", method="PUT", path=path, subject=_user, apply=self._put)
        super().__init__((presence,), clock=clock, tls=tls, prefix=prefix, lose=self.lose_rows)
        self.node_id = node_id
        self.ttl_s = ttl_s
        self.tokens: dict[str, str] = {}
        self.presence: dict[str, PresenceStatus] = {}
        self.puts: list[Put] = []

    def lose_rows(self) -> None:
        """Forget who is doing what; the log of puts stays."""
        self.presence.clear()

    def _put(self, arrival: Arrival, body: bytes) -> Reply:
        token = arrival.token or ""
        owner = self.tokens.get(token)
        if owner is None:
            return _refusal(401, "unauthorised", "The token was not issued for this guild, or no longer counts.")
        if owner != arrival.agent:
            return _refusal(403, "forbidden", "The token belongs to another user.")
        try:
            wanted = msgspec.json.decode(body, type=PresenceBody)
        except msgspec.DecodeError as exc:
            return _refusal(422, "invalid", str(exc))
        self.presence[owner] = wanted.status
        self.puts.append(
            Put(
                at=arrival.at,
                user_id=owner,
                status=wanted.status,
                source=wanted.source,
                token=token,
                host=arrival.host,
                arrival=arrival.number,
            )
        )
        return Reply(data={"user_id": owner, "status": wanted.status})


class LoopbackCenter(Server):
    """The center: it lets agents log in and issues their guild tokens. Its route is called session.

    A login returns the same tokens until `rotate` replaces them.
    """

    def __init__(
        self,
        *,
        expires_at: str | None = None,
        prefix: str = "",
        path: str = "/api/auth/agent/session",
        clock: Clock | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Describe the center; nothing is opened before `start`."""
        session = Route(name="session", method="POST", path=path, subject=_agent, apply=self._login)
        super().__init__((session,), clock=clock, tls=tls, prefix=prefix, lose=self._lose_tokens)
        self.expires_at = expires_at
        self.members: dict[str, Member] = {}
        self.logins: list[Login] = []
        self._issued: dict[tuple[str, str], str] = {}
        self._serial = itertools.count(1)

    def add(self, agent: str, *guilds: LoopbackGuild, api_key: str = "", user_id: str = "") -> Member:
        """Make an agent a member of these guilds (of these only); the key is `key-<agent>`, the user `user-<agent>`."""
        for old in self.members[agent].guilds if agent in self.members else ():
            if old not in guilds:
                self._revoke(agent, old)
        member = Member(api_key=api_key or f"key-{agent}", user_id=user_id or f"user-{agent}", guilds=guilds)
        self.members[agent] = member
        return member

    def rotate(self, agent: str) -> None:
        """Make every token of the agent invalid at once; its next login brings new ones."""
        for guild in self.members[agent].guilds:
            self._revoke(agent, guild)

    def token(self, agent: str, guild: LoopbackGuild) -> str:
        """Return the token that counts for this agent at this guild, issuing it when there is none."""
        place = (agent, guild.node_id)
        if place not in self._issued:
            self._issued[place] = f"token-{next(self._serial)}-{agent}-{guild.node_id}"
            guild.tokens[self._issued[place]] = self.members[agent].user_id
        return self._issued[place]

    def login_count(self, agent: str) -> int:
        """Count the logins granted to an agent."""
        return sum(login.agent == agent for login in self.logins)

    def _revoke(self, agent: str, guild: LoopbackGuild) -> None:
        guild.tokens.pop(self._issued.pop((agent, guild.node_id), ""), None)

    def _lose_tokens(self) -> None:
        for agent in self.members:
            self.rotate(agent)

    def _login(self, arrival: Arrival, body: bytes) -> Reply:
        try:
            asked = msgspec.json.decode(body, type=SessionBody)
        except msgspec.DecodeError as exc:
            return _refusal(422, "invalid", str(exc))
        member = self.members.get(asked.agent_id)
        if member is None:
            return _refusal(403, "forbidden", "The agent is not known here.")
        if member.api_key != asked.api_key:
            return _refusal(401, "unauthorised", "The key is not this agent's.")
        self.logins.append(Login(at=arrival.at, agent=asked.agent_id, arrival=arrival.number))
        data: dict[str, object] = {
            "user_id": member.user_id,
            "guilds": [self._seat(asked.agent_id, guild) for guild in member.guilds],
        }
        if self.expires_at is not None:
            data["expires_at"] = self.expires_at
        return Reply(data=data)

    def _seat(self, agent: str, guild: LoopbackGuild) -> dict[str, object]:
        seat: dict[str, object] = {
            "node_id": guild.node_id,
            "endpoint": guild.url,
            "token": self.token(agent, guild),
        }
        if guild.ttl_s is not None:
            seat["ttl_s"] = guild.ttl_s
        return seat


class _Named(msgspec.Struct, frozen=True, kw_only=True):
    agent_id: str = ""


def _agent(_params: Mapping[str, str], body: bytes) -> Subject:
    try:
        return Subject(agent=msgspec.json.decode(body, type=_Named).agent_id)
    except msgspec.DecodeError:
        return Subject()


def _user(params: Mapping[str, str], _body: bytes) -> Subject:
    return Subject(agent=params["user_id"])


def _refusal(status: int, error: str, message: str) -> Reply:
    return Reply(status=status, data={"error": error, "message": message})
