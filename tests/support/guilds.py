"""Presence on a bench: a center and guilds in memory that misbehave on request, and a host whose agents do as told."""

import asyncio
import itertools
import random
from collections import Counter, defaultdict, deque
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import msgspec

from plugin.config import Binding, Config, Fabric, Identity, Presence
from plugin.errors import BadEndpoint, HostCallFailed, NoAnswer
from plugin.presence import service
from plugin.presence.session import Seat
from plugin.presence.state import Status
from plugin.secret import Secret
from plugin.web import Answer
from tests.support.clock import FakeClock, settle

CENTER = "center"


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What a server does with one request; without a `status` no answer comes, for the reason `cause`."""

    status: int | None = 200
    cause: str = "reset"
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    body: bytes | None = None
    applied: bool | None = None
    delay_s: float = 0.0
    until: asyncio.Event | None = None

    @property
    def applies(self) -> bool:
        return self.status is not None and self.status // 100 == 2 if self.applied is None else self.applied


GOOD = Reply()


@dataclass(frozen=True, kw_only=True)
class Sent:
    """One request that arrived."""

    at: float
    guild_id: str
    endpoint: str
    user_id: str
    status: str
    token: str


class Bench:
    """The center and every guild. `rows` is what the guilds show, by endpoint and user.

    `replies` are used up one by one, then `always` counts; both by guild, or CENTER for logins, and `always` also by
    "cell <guild> <user>" and "login <agent>".
    """

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.endpoints: dict[str, str] = {}
        self.members: dict[str, set[str]] = defaultdict(set)
        self.users: dict[str, str | None] = {}
        self.ttl_s: dict[str, float] = {}
        self.expires_s: float | None = None
        self.tokens: dict[str, str] = {}
        self.issued_for: dict[str, str] = {}
        self.rows: dict[tuple[str, str], str] = {}
        self.puts: list[Sent] = []
        self.logins: list[tuple[float, str]] = []
        self.keys: list[str] = []
        self.replies: defaultdict[str, deque[Reply]] = defaultdict(deque)
        self.always: dict[str, Reply] = {}
        self.bad_endpoints: set[str] = set()
        self.most: Counter[str] = Counter()
        self.closed = 0
        self.dropped: list[str] = []
        self._now: Counter[str] = Counter()
        self._serial = itertools.count(1)

    def join(self, agent_id: str, *guild_ids: str) -> None:
        """Make an agent a member of guilds, at the center."""
        self.users.setdefault(agent_id, f"user-{agent_id}")
        for guild_id in guild_ids:
            self.endpoints.setdefault(guild_id, f"https://{guild_id}.example")
            self.members[agent_id].add(guild_id)

    def shown(self, agent_id: str, guild_id: str) -> str | None:
        """What a guild shows of an agent."""
        return self.rows.get((self.endpoints[guild_id], self.users[agent_id] or agent_id))

    def statuses(self, agent_id: str, guild_id: str = "") -> list[str]:
        """Every status that was sent for an agent, in order."""
        user = self.users[agent_id] or agent_id
        return [put.status for put in self.puts if put.user_id == user and guild_id in {"", put.guild_id}]

    def open(self, _fabric: Fabric, presence: Presence) -> "BenchFabric":
        return BenchFabric(self, presence)

    async def serve(self, where: str, what: str) -> Reply:
        """Take the next reply, and its time; count what is in flight meanwhile."""
        lasting = self.always.get(what) or self.always.get(where, GOOD)
        reply = self.replies[where].popleft() if self.replies[where] else lasting
        names = (where, what)
        for name in names:
            self._now[name] += 1
            self.most[name] = max(self.most[name], self._now[name])
        try:
            await self.clock.sleep(reply.delay_s)
            if reply.until is not None:
                await reply.until.wait()
        finally:
            for name in names:
                self._now[name] -= 1
        return reply

    def session(self, agent_id: str) -> bytes:
        """Issue a session with new tokens; the old ones count until `revoke`."""
        guilds: list[dict[str, object]] = []
        for guild_id in sorted(self.members[agent_id]):
            token = f"token-{next(self._serial)}-{agent_id}-{guild_id}"
            self.tokens[token] = agent_id
            self.issued_for[token] = self.endpoints[guild_id]
            entry: dict[str, object] = {"node_id": guild_id, "endpoint": self.endpoints[guild_id], "token": token}
            if guild_id in self.ttl_s:
                entry["ttl_s"] = self.ttl_s[guild_id]
            guilds.append(entry)
        session: dict[str, object] = {"guilds": guilds}
        if self.users[agent_id] is not None:
            session["user_id"] = self.users[agent_id]
        if self.expires_s is not None:
            session["expires_at"] = self.clock.now() + self.expires_s
        return msgspec.json.encode(session)

    def revoke(self, agent_id: str) -> None:
        """Make every token of an agent invalid."""
        self.tokens = {token: whose for token, whose in self.tokens.items() if whose != agent_id}


class BenchFabric:
    """The bench as presence reaches it, under one configuration."""

    def __init__(self, bench: Bench, presence: Presence) -> None:
        self.bench = bench
        self.most = presence.concurrency_per_guild

    def check(self, endpoint: str) -> str:
        if endpoint in self.bench.bad_endpoints:
            raise BadEndpoint("the endpoint must not be contacted")
        return endpoint

    async def login(self, agent_id: str, api_key: Secret) -> Answer:
        bench = self.bench
        bench.logins.append((bench.clock.monotonic(), agent_id))
        bench.keys.append(api_key.reveal())
        reply = await bench.serve(CENTER, f"login {agent_id}")
        answer = _answer(reply, "the center")
        if answer.status != 200 or reply.body is not None:
            return answer
        return Answer(status=200, headers={}, body=bench.session(agent_id))

    async def put(self, guild_id: str, seat: Seat, user_id: str, status: Status) -> Answer:
        bench, token = self.bench, seat.token.reveal()
        sent = Sent(
            at=bench.clock.monotonic(),
            guild_id=guild_id,
            endpoint=seat.endpoint,
            user_id=user_id,
            status=status.value,
            token=token,
        )
        bench.puts.append(sent)
        reply = await bench.serve(guild_id, f"cell {guild_id} {user_id}")
        if token not in bench.tokens:
            return Answer(status=401, headers={}, body=b"")
        if reply.applies:
            bench.rows[seat.endpoint, user_id] = status.value
        return _answer(reply, guild_id)

    async def drop(self, guild_id: str) -> None:
        self.bench.dropped.append(guild_id)

    async def close(self) -> None:
        self.bench.closed += 1


def _answer(reply: Reply, where: str) -> Answer:
    if reply.status is None:
        raise NoAnswer(f"{where}: no answer", cause=reply.cause)
    return Answer(status=reply.status, headers=reply.headers, body=reply.body or b"")


class Agents:
    """A host: `states` is what its agents do, an agent that is not in it cannot be read; `hold` keeps readings open."""

    def __init__(self, states: Mapping[str, str]) -> None:
        self.states = dict(states)
        self.reads: Counter[str] = Counter()
        self.most = 0
        self.hold: asyncio.Event | None = None
        self._now = 0

    async def read_agent_state(self, agent_id: str) -> str:
        self.reads[agent_id] += 1
        self._now += 1
        self.most = max(self.most, self._now)
        try:
            state = self.states.get(agent_id)
            await asyncio.sleep(0)
            if self.hold is not None:
                await self.hold.wait()
        finally:
            self._now -= 1
        if state is None:
            raise HostCallFailed(f"the host does not know {agent_id}")
        return state


def configured(
    pairs: Iterable[tuple[str, str]],
    *,
    identities: Iterable[Identity] | None = None,
    center_url: str | None = "https://center.example",
    fabric: Fabric | None = None,
    **presence: object,
) -> Config:
    """A configuration that binds these (agent, guild) pairs; every agent has a key, or `identities` are those given."""
    pairs = list(pairs)
    if identities is None:
        identities = [known(agent_id) for agent_id in dict.fromkeys(agent for agent, _ in pairs)]
    return Config(
        bindings=tuple(Binding(agent_id=agent, guild_node_id=guild) for agent, guild in pairs),
        identities=tuple(identities),
        fabric=fabric or Fabric(center_url=center_url),
        presence=msgspec.convert(presence, Presence),
    )


def known(agent_id: str, *, fabric_user_id: str | None = None, enabled: bool = True) -> Identity:
    """An identity with a key."""
    key = Secret(f"key-{agent_id}")
    return Identity(agent_id=agent_id, fabric_user_id=fabric_user_id, enabled=enabled, api_key=key)


class Setting:
    """Presence over a bench, a host and a clock, all in memory."""

    def __init__(self, config: Config, *, states: Mapping[str, str] | None = None, seed: int = 0) -> None:
        self.config = config
        self.clock = FakeClock()
        self.bench = Bench(self.clock)
        agents = [binding.agent_id for binding in config.bindings]
        for binding in config.bindings:
            self.bench.join(binding.agent_id, binding.guild_node_id)
        self.host = Agents(dict.fromkeys(agents, "idle") if states is None else states)
        self.presence = service.Presence(
            agents=self.host,
            config=config,
            environ={},
            clock=self.clock,
            rng=random.Random(seed),  # noqa: S311 - jitter
            open_fabric=self.bench.open,
        )

    def push(self, agent_id: str, state: str) -> None:
        """Change what an agent does, and push it as the host does."""
        self.host.states[agent_id] = state
        self.presence.state_changed(agent_id, state)

    async def after(self, seconds: float) -> None:
        """Let time pass."""
        await self.clock.advance(seconds)
        await settle(60)

    async def leave(self, deadline_s: float, *, within_s: float | None = None) -> tuple[int, int]:
        """Leave while the clock goes on; return what was sent and missed."""
        leaving = asyncio.ensure_future(self.presence.leave(deadline_s))
        await self.after(deadline_s if within_s is None else within_s)
        async with asyncio.timeout(10):
            report = await leaving
        return report.sent, report.missed


@asynccontextmanager
async def running(setting: Setting, *, start_s: float = 0.1) -> AsyncGenerator[Setting]:
    """Run presence in the background, past its first turn."""
    task = asyncio.ensure_future(setting.presence.run())
    try:
        await setting.after(start_s)
        yield setting
    finally:
        task.cancel()
        (ended,) = await asyncio.gather(task, return_exceptions=True)
        if isinstance(ended, Exception):
            raise ended
