"""The demo's story: what happens, in which order, and what must be so after each step."""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

from plugin.demo.facts import Check, Facts
from plugin.demo.world import AGENTS, GUILDS, STATES, World
from plugin.loopback.faults import Reset
from protocol.errors import RpcError

SAMPLE_S = 0.15
PACE_S = 0.3  # between one thing that an agent does and the next: a person watches

Show = Callable[[Facts], None]
Step = tuple[str, Callable[[], Awaitable[None]]]


class Story:
    """Play the steps in a world and show the facts as they change."""

    def __init__(self, world: World, *, show: Show, on_step: Show) -> None:
        self._world = world
        self._show = show
        self._on_step = on_step
        self._started_at = time.monotonic()
        self._facts = Facts(guilds=GUILDS, outline=[caption for caption, _ in self._steps()])
        self._checks: list[Check] = []

    async def play(self) -> Facts:
        """Play every step; return the last facts, with the checks."""
        async with self._sampling():
            for number, (caption, step) in enumerate(self._steps(), 1):
                self._facts = replace(self._facts, step=number)
                try:
                    await step()
                except (TimeoutError, RpcError) as error:
                    self._checks.append(Check(name=caption, found=str(error) or "not in time", good=False))
                await self._sample()
                self._on_step(self._facts)
        checks = [*self._world.audit(), *self._checks]
        self._facts = replace(self._facts, checks=checks, elapsed_s=self._elapsed_s())
        self._show(self._facts)
        return self._facts

    # -- the steps -----------------------------------------------------------------------------------------------

    def _steps(self) -> Sequence[Step]:
        return (
            ("Twelve workspaces hold finished work. The plugin is launched from its manifest.", self._launch),
            ("The first push: the platform does it, and its answer is lost on the way.", self._lose_an_answer),
            ("Agents start to work, and every guild follows.", self._follow),
            ("The platform is cut off. Work goes into the outbox, on disk, and nobody waits.", self._cut_off),
            ("The plugin is killed with SIGKILL and launched again.", self._kill),
            ("The platform comes back. The outbox drains, in order.", self._come_back),
            ("A guild loses its rows and gets them back.", self._heal),
            ("The host shuts the plugin down: every guild is told.", self._leave),
        )

    async def _launch(self) -> None:
        self._world.finish_workspaces(12)
        await self._world.launch()
        await self._world.wait_in_sync()
        self._say("12 workspaces with finished work lie on disk; every guild shows every agent")

    async def _lose_an_answer(self) -> None:
        world = self._world
        world.platform.menu.add(Reset(), applied=True, route="sync")
        await world.call("agentic.sync.push")
        self._say("push: the platform took the work, and the connection died before its answer")
        await world.platform.wait_until(lambda platform: len(platform.pushes) > 1 and not world.owed)
        self._say("sent again with the same bytes and the same Idempotency-Key: one effect")
        self._check("work done twice because an answer was lost", len(world.platform.records) - 12, 0)

    async def _follow(self) -> None:
        for _ in range(8):
            await self._change_a_state()
            await asyncio.sleep(PACE_S)
        await self._world.wait_in_sync()
        self._say("each change was pushed to three guilds at once, and only the change")

    async def _cut_off(self) -> None:
        world = self._world
        world.platform.context_rows = [{"id": f"memory-{n}", "content": f"lesson {n}"} for n in range(3)]
        await world.call("agentic.sync.pull")
        await world.platform.down()
        self._say("the platform is cut off; agents go on finishing work")
        for _ in range(9):
            await world.push(world.random.randint(1, 3))
            await self._change_a_state()
            await asyncio.sleep(PACE_S)
        pulled = await world.call("agentic.sync.pull")
        self._say(f"pull, offline: {pulled['count']} rows of fleet context from the cache, marked stale")
        self._check("rows of fleet context that stayed readable offline", pulled["count"], 3)

    async def _kill(self) -> None:
        world = self._world
        before = (await world.work()).queued
        if world.host is not None:
            await world.host.kill()
        self._say(f"kill -9, with {before} in the outbox")
        await asyncio.sleep(2 * PACE_S)
        await world.launch()
        after = (await world.work()).queued
        self._say(f"launched again: {after} in the outbox")
        self._check("queued work lost by kill -9", before - after, 0)

    async def _come_back(self) -> None:
        world = self._world
        await world.push(6, poison=True)
        await world.platform.up()
        self._say("the platform is back; one of the next six records is one that it will refuse")
        await world.platform.wait_until(lambda _: not world.owed, timeout_s=20)
        await self._until(lambda: self._facts.work.queued == 0)
        self._check("refused records kept aside, with their neighbours delivered", self._facts.work.dead, 1)

    async def _heal(self) -> None:
        world = self._world
        world.guilds[1].lose_rows()
        self._say(f"the guild {GUILDS[1]} lost all its rows")
        await self._sample()
        await asyncio.sleep(PACE_S)
        sent = await world.call("agentic.presence.refresh")
        await world.wait_in_sync()
        self._say(f"refresh: {sent['sent']} statuses sent again, every guild is right")
        wrong = sum(world.astray(guild) for guild in world.guilds)
        self._check("cells that show something else than the agent does", wrong, 0)

    async def _leave(self) -> None:
        world = self._world
        code = await world.host.stop() if world.host is not None else 1
        await world.wait_in_sync(offline=True)
        wrong = sum(world.astray(guild, offline=True) for guild in world.guilds)
        self._say(f"shut down in order with exit code {code}; every guild shows every agent offline")
        self._check("cells that are not offline after the end", wrong, 0)
        self._check("exit code of the plugin", code, 0)

    # -- how they are shown --------------------------------------------------------------------------------------

    async def _change_a_state(self) -> None:
        agent = self._world.random.choice(AGENTS)
        state = self._world.random.choice([state for state in STATES if state != self._world.states[agent]])
        await self._world.set_state(agent, state)

    def _check(self, name: str, found: object, wanted: object) -> None:
        self._checks.append(Check(name=name, found=str(found), good=found == wanted))

    def _say(self, event: str) -> None:
        line = f"{self._elapsed_s():5.1f} s  {event}"
        self._facts = replace(self._facts, events=(*self._facts.events, line))

    async def _until(self, true: Callable[[], bool], timeout_s: float = 15.0) -> None:
        async with asyncio.timeout(timeout_s):
            while not true():
                await self._sample()
                await asyncio.sleep(SAMPLE_S)

    def _elapsed_s(self) -> float:
        return time.monotonic() - self._started_at

    async def _sample(self) -> None:
        work = await self._world.work(before=self._facts.work)
        self._facts = replace(
            self._facts,
            elapsed_s=self._elapsed_s(),
            work=work,
            depths=(*self._facts.depths, work.queued),
            doing=dict(self._world.states),
            shown={agent: self._world.shown(agent) for agent in AGENTS},
        )
        self._show(self._facts)

    @asynccontextmanager
    async def _sampling(self) -> AsyncGenerator[None]:
        async def sample() -> None:
            while True:
                await self._sample()
                await asyncio.sleep(SAMPLE_S)

        task = asyncio.create_task(sample())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
