"""The plugin as users run it and the guilds it talks to, each a process of its own: so each one's CPU is told apart."""

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager

import aiohttp
import msgspec

from bench.guilds import PORTS, Count
from bench.process import cpu_s
from plugin.loopback.host import LoopbackHost

SETTINGS = ("AGENT", "CORE_", "XDG_")  # of the person who runs the benchmark
PATIENCE_S = 300.0


class Guilds:
    """The process of bench/guilds.py, as the benchmark speaks to it."""

    def __init__(self, ports: Sequence[int], session: aiohttp.ClientSession) -> None:
        self.ports = ports
        self.center_url = f"http://127.0.0.1:{ports[-1]}"
        self._session = session

    async def clear(self, *, guilds: int = PORTS, hung: Sequence[str] = ()) -> None:
        """Forget what was counted; sessions name so many guilds, and those that are hung never answer a PUT."""
        await self._ask("clear", {"guilds": guilds, "hung": hung})

    async def wait(self, puts: int, *, without: Sequence[str] = ()) -> Count:
        """Wait until so many PUTs were answered."""
        return msgspec.json.decode(await self._ask("wait", {"puts": puts, "except": without}), type=Count)

    async def log(self) -> list[tuple[str, str, float]]:
        """Return user, status and monotonic time of every PUT that was answered."""
        return msgspec.json.decode(await self._ask("log", {}), type=list[tuple[str, str, float]])

    async def _ask(self, what: str, body: object) -> bytes:
        async with self._session.post(f"{self.center_url}/{what}", data=msgspec.json.encode(body)) as answer:
            return await answer.read()


@asynccontextmanager
async def guilds() -> AsyncGenerator[Guilds]:
    """Start the guilds' process; it is gone afterwards."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "bench.guilds", stdin=pipe, stdout=pipe)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        ports = msgspec.json.decode(await process.stdout.readline(), type=list[int])
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(PATIENCE_S)) as session:
            yield Guilds(ports, session)
    finally:
        process.stdin.close()
        await process.wait()


class Plugin:
    """The plugin under its host. `began_at` and `cpu_began_s` are those of the first reading of an agent."""

    def __init__(self, host: LoopbackHost) -> None:
        self.host = host
        self.began_at = 0.0
        self.cpu_began_s = 0.0
        self._state = host.answer
        host.answer = self._first

    @property
    def cpu_s(self) -> float:
        """CPU seconds since the first reading of an agent."""
        return cpu_s(self.host.pid) - self.cpu_began_s

    @property
    def reads(self) -> int:
        """How often the host was asked what an agent is doing."""
        return self.host.reads.total()

    async def _first(self, agent_id: str) -> object:
        self.began_at, self.cpu_began_s = time.monotonic(), cpu_s(self.host.pid)
        self.host.answer = self._state
        return await self._state(agent_id)


Pairs = Mapping[str, Sequence[str]]


def pairs(agents: int, each: int = PORTS) -> Pairs:
    """Return the guilds of so many agents; with fewer than all, agents are spread over the guilds."""
    return {f"a{agent}": [f"g{(agent + guild) % PORTS}" for guild in range(each)] for agent in range(agents)}


def config(town: Guilds, members: Pairs, **presence: object) -> dict[str, object]:
    """Return the plugin's configuration: its defaults, but for what `presence` says."""
    return {
        "agent_id": "bench",
        "fabric": {"center_url": town.center_url},
        "presence": {"offline_at_exit": False, **presence},
        "bindings": [{"agent_id": agent, "guild_node_id": guild} for agent in members for guild in members[agent]],
        "identities": [{"agent_id": agent, "api_key": f"key-{agent}"} for agent in members],
    }


@asynccontextmanager
async def plugin(town: Guilds, members: Pairs, **presence: object) -> AsyncGenerator[Plugin]:
    """Launch the plugin from its manifest with every agent idle; it is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="agentic-sync-bench-") as home:
        environ = {name: value for name, value in os.environ.items() if not name.startswith(SETTINGS)}
        whole = config(town, members, **presence) | {"root": home}
        host = LoopbackHost(environ={**environ, "HOME": home}, config=whole)
        host.agents.update(dict.fromkeys(members, "idle"))
        async with host:
            yield Plugin(host)
