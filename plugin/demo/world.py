"""Everything that the demo's plugin meets: a folder, a platform, a center, guilds, a host, and a tally of the truth."""

import contextlib
import itertools
import os
import random
from collections.abc import Mapping
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Self, cast

from plugin.demo.facts import Check, Work
from plugin.loopback.guild import LoopbackCenter, LoopbackGuild
from plugin.loopback.host import LoopbackHost
from plugin.loopback.platform import LoopbackPlatform
from plugin.loopback.workspaces import write_workspace
from plugin.presence.state import status_of
from protocol.errors import RpcError

TOKEN = "loopback-token"  # noqa: S105 - the loopback platform's made-up one
AGENTS = ("aider", "claude", "codex", "gemini", "goose")
GUILDS = ("build", "lobby", "review")
STATES = ("idle", "working", "busy")
OURS = ("AGENT", "CORE_", "XDG_")  # settings of the person who runs the demo, which must not reach into it

Body = dict[str, object]


class World:
    """Build it inside `async with`; all of it is gone afterwards. Every count is taken at the servers."""

    def __init__(self, folder: Path, *, seed: int) -> None:
        self.folder = folder
        self.random = random.Random(seed)  # noqa: S311 - it picks who works on what
        self.platform = LoopbackPlatform(tokens=(TOKEN,))
        self.center = LoopbackCenter()
        self.guilds = [LoopbackGuild(name) for name in GUILDS]
        self.made: dict[
            str, Body
        ] = {}  # id -> what its record must say: an obligation from the moment its call returned
        self.refused: set[str] = set()
        self.states: dict[str, str] = dict.fromkeys(AGENTS, "idle")
        self.host: LoopbackHost | None = None
        self._numbers = itertools.count(1)
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        await self._stack.__aenter__()
        for server in (self.platform, self.center, *self.guilds):
            await self._stack.enter_async_context(server)
        for agent in AGENTS:
            self.center.add(agent, *self.guilds)
        return self

    async def __aexit__(self, *error: object) -> None:
        if self.host is not None:
            await self.host.stop()
        await self._stack.aclose()

    # -- the plugin ----------------------------------------------------------------------------------------------

    async def launch(self) -> LoopbackHost:
        """Launch the plugin from its manifest, as any host does."""
        home = {"HOME": str(self.folder), "XDG_CONFIG_HOME": str(self.folder / ".config")}
        environ = {name: value for name, value in os.environ.items() if not name.startswith(OURS)} | home
        self.host = LoopbackHost(environ=environ, config=self._config())
        self.host.agents.update(self.states)
        await self.host.start()
        return self.host

    def _config(self) -> Mapping[str, object]:
        return {
            "agent_id": "fleet",
            "root": str(self.folder),
            "platform": {"base_url": self.platform.url, "api_key": TOKEN},
            "fabric": {"center_url": self.center.url},
            "presence": {"interval_s": 2.0, "refresh_s": 60.0},
            "bindings": [{"agent_id": agent, "guild_node_id": guild} for agent in AGENTS for guild in GUILDS],
            "identities": [{"agent_id": agent, "api_key": f"key-{agent}"} for agent in AGENTS],
        }

    async def call(self, method: str, **params: object) -> Body:
        """Call the plugin and return its answer."""
        if self.host is None:
            raise RuntimeError("The plugin is not launched")
        return cast("Body", await self.host.call(method, params))

    # -- work ----------------------------------------------------------------------------------------------------

    def finish_workspaces(self, count: int) -> None:
        """Let agents finish work the way they do: a folder with a status.json and a report."""
        for _ in range(count):
            number, agent = next(self._numbers), self.random.choice(AGENTS)
            name = f"core/task-{number:02}/run-1"
            body: Body = {"repo": "core", "task": f"task {number}", "agent": agent, "status": "completed", "runs": 1}
            write_workspace(
                self.folder,
                name,
                status="completed",
                repo="core",
                task=f"task {number}",
                agent=agent,
                runs=1,
                report={"passed": True, "findings": [{"code": f"F{number}", "severity": "low"}]},
                now=datetime.now(UTC),
            )
            self.made[name] = body

    async def push(self, count: int, *, poison: bool = False) -> Body:
        """Hand finished work over explicitly; it counts as made once the call has returned."""
        agent = self.random.choice(AGENTS)
        bodies: list[Body] = []
        for _ in range(count):
            number = next(self._numbers)
            bodies.append({"id": f"direct-{number:02}", "repo": "edge", "task": f"task {number}", "status": "merged"})
        if poison:
            self.refused.add(str(bodies[0]["id"]))
            self.platform.poison.update(self.refused)
        answer = await self.call("agentic.sync.push", agent_id=agent, dispatches=bodies)
        self.made.update({str(body["id"]): body for body in bodies})
        return answer

    async def work(self, *, before: Work | None = None) -> Work:
        """Count the work at both ends; what is queued is the plugin's word, while it runs."""
        queued, dead = (before.queued, before.dead) if before else (0, 0)
        if running := self.host is not None and self.host.process.returncode is None:
            with contextlib.suppress(RpcError):  # killed or shut down meanwhile: the last word stands
                status = await self.call("agentic.sync.status")
                queued, dead = cast("int", status["queued"]), cast("int", status["dead"])
        return Work(
            made=len(self.made),
            delivered=len({record.id for record in self.platform.records}),
            queued=queued,
            dead=dead,
            requests=len(self.platform.pushes),
            resent=self.resent,
            platform_up=self.platform.listening,
            plugin_pid=self.host.pid if running and self.host is not None else None,
        )

    @property
    def owed(self) -> set[str]:
        """What the platform must have and does not have yet."""
        return self.made.keys() - self.refused - {record.id for record in self.platform.records}

    @property
    def resent(self) -> int:
        """Requests that repeated an earlier Idempotency-Key."""
        keys = [arrival.key for arrival in self.platform.pushes]
        return len(keys) - len(set(keys))

    # -- presence ------------------------------------------------------------------------------------------------

    async def set_state(self, agent: str, state: str) -> None:
        """Let an agent do something else and tell the plugin, if it runs."""
        self.states[agent] = state
        if self.host is not None and self.host.process.returncode is None:
            await self.host.set_state(agent, state)

    def shown(self, agent: str) -> list[str]:
        """Return what each guild shows for an agent; an empty text where it shows nothing."""
        return [guild.presence.get(f"user-{agent}", "") for guild in self.guilds]

    def astray(self, guild: LoopbackGuild, *, offline: bool = False) -> int:
        """Count the agents for whom a guild does not show what they are doing (or offline, for all)."""
        wanted = {agent: "offline" if offline else status_of(state) for agent, state in self.states.items()}
        return sum(guild.presence.get(f"user-{agent}") != status for agent, status in wanted.items())

    async def wait_in_sync(self, *, offline: bool = False, timeout_s: float = 15.0) -> None:
        """Wait until every guild shows what every agent is doing."""
        for guild in self.guilds:
            await guild.wait_until(lambda guild: self.astray(guild, offline=offline) == 0, timeout_s)

    # -- the truth -----------------------------------------------------------------------------------------------

    def audit(self) -> list[Check]:
        """Compare what the agents made with what the platform has, id by id and field by field."""
        ids = [record.id for record in self.platform.records]
        bodies = {record.id: record.body for record in self.platform.records}
        missing = len(self.owed)
        doubled = len(ids) - len(set(ids))
        unknown = len(set(ids) - self.made.keys())
        altered = sum(
            any(bodies[name].get(key) != value for key, value in body.items())
            for name, body in self.made.items()
            if name in bodies
        )
        puts = sum(len(guild.puts) for guild in self.guilds)
        strays = sum(put.token not in guild.tokens for guild in self.guilds for put in guild.puts)
        return [
            Check(
                name="finished work on the platform",
                found=f"{len(set(ids))} of {len(self.made) - len(self.refused)}",
                good=missing == 0,
            ),
            Check(
                name="doubled, altered, unknown",
                found=f"{doubled}, {altered}, {unknown}",
                good=doubled + altered + unknown == 0,
            ),
            Check(name="presence updates that guilds took", found=str(puts), good=puts > 0),
            Check(name="tokens that reached another guild", found=str(strays), good=strays == 0),
        ]
