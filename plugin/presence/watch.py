"""What the agents are doing: asked of the host in turns, and taken from what it pushes between them."""

import asyncio
import logging
import math
import random
from collections.abc import Callable, Iterator, Mapping

from plugin.clock import Clock, wait_until_set
from plugin.errors import HostCallFailed
from plugin.host import AgentStates
from plugin.presence.agent import Agent
from plugin.presence.state import WORD_CHARS, Status, status_of
from plugin.presence.trouble import Trouble, Troubles

READS = 64
COALESCE_S = 0.025
MANY = 100
FIRST_SPREAD_S = 5.0
HOST = "host"
UNREADABLE = Trouble(
    "the host does not say what agents are doing", "the host says what every agent is doing again", each=False
)
_ODD_STATES = 16
_FOREVER_S = 3600.0

_log = logging.getLogger(__name__)


class Watch:
    """Keep every agent's reading; `changed(agent, status)` is called when its guilds are to show something else.

    `last_tick_at` is wall-clock seconds, `tick_s` how long the last turn took; `skipped` counts states that no guild
    has a word for.
    """

    def __init__(
        self,
        agents: AgentStates,
        members: Mapping[str, Agent],
        *,
        changed: Callable[[Agent, Status], None],
        ticked: Callable[[], None],
        troubles: Troubles,
        clock: Clock,
        rng: random.Random,
    ) -> None:
        self.last_tick_at: float | None = None
        self.tick_s: float | None = None
        self.skipped = 0
        self.unreadable = 0
        self._host = agents
        self._members = members
        self._changed = changed
        self._ticked = ticked
        self._troubles = troubles
        self._clock = clock
        self._rng = rng
        self._woken = asyncio.Event()
        self._pushed: dict[str, str] = {}
        self._arrived = asyncio.Event()

    def wake(self) -> None:
        """Ask about every agent now; when that is happening already, once more after it."""
        self._woken.set()

    def push(self, agent_id: str, state: str) -> None:
        """Take a state that the host pushed; the last one of the next 25 ms counts, agents nobody shows are ignored."""
        agent = self._members.get(agent_id)
        if agent is None or not agent.active:
            return
        agent.pushes += 1
        self._pushed[agent_id] = state
        self._arrived.set()

    async def intake(self) -> None:
        """Apply what is pushed, until cancelled."""
        while True:
            await self._arrived.wait()
            await self._clock.sleep(COALESCE_S)
            self._arrived.clear()
            pushed, self._pushed = self._pushed, {}
            for agent_id, state in pushed.items():
                agent = self._members.get(agent_id)
                if agent is not None and agent.active:
                    self._heard(agent, state)

    async def poll(self, interval_s: Callable[[], float]) -> None:
        """Ask about every agent in turns, until cancelled; the first turn of many waits a little, at random."""
        if sum(len(agent.cells) for agent in self._members.values()) > MANY:
            await self._clock.sleep(self._rng.uniform(0, min(interval_s(), FIRST_SPREAD_S)))
        while True:
            self._woken.clear()
            began = self._clock.monotonic()
            if any(agent.active for agent in self._members.values()):
                await self._tick(began)
            # A host that needs longer than the interval is given a rest all the same.
            rest_s = interval_s() * 0.1
            until = began + interval_s() * self._rng.uniform(0.9, 1.1)
            await self._rest(max(until, self._clock.monotonic() + rest_s))

    async def _tick(self, began: float) -> None:
        self.last_tick_at = self._clock.now()
        self.unreadable = 0
        waiting = iter([agent for agent in self._members.values() if agent.active])
        async with asyncio.TaskGroup() as readers:
            for _ in range(min(READS, len(self._members))):
                readers.create_task(self._read(waiting))
        self.tick_s = self._clock.monotonic() - began
        self._ticked()

    async def _rest(self, until: float) -> None:
        """Wait for the next turn, or until somebody wants it now; show agents offline whose time is over meanwhile."""
        while (now := self._clock.monotonic()) < until:
            stale_at = math.inf
            for agent in self._members.values():
                if agent.active and agent.reading.failures:
                    self._show(agent, now)
                    stale_at = min(stale_at, agent.reading.stale_at if agent.reading.stale_at > now else math.inf)
            if await wait_until_set(self._woken, min(until - now, stale_at - now, _FOREVER_S), self._clock):
                return

    async def _read(self, waiting: Iterator[Agent]) -> None:
        for agent in waiting:
            pushes = agent.pushes
            try:
                state = await self._host.read_agent_state(agent.agent_id)
            except HostCallFailed as exc:
                if agent.pushes == pushes and agent.active:
                    self._missed(agent, exc.message)
                continue
            # What was pushed since is newer than what was asked before, and what was pushed before is older.
            if agent.pushes == pushes and agent.active:
                self._pushed.pop(agent.agent_id, None)
                self._heard(agent, state)

    def _heard(self, agent: Agent, state: str) -> None:
        if status_of(state) is None:
            self._skip(agent, state)
        self._troubles.end(UNREADABLE, where=HOST, who=agent.agent_id)
        agent.reading = agent.reading.heard(state, self._clock.now())
        self._show(agent, self._clock.monotonic())

    def _missed(self, agent: Agent, reason: str) -> None:
        self.unreadable += 1
        now = self._clock.monotonic()
        agent.reading = agent.reading.missed(now)
        self._troubles.add(UNREADABLE, where=HOST, who=agent.agent_id, reason=reason)
        self._show(agent, now)

    def _show(self, agent: Agent, now: float) -> None:
        status = agent.reading.shown(now)
        if status is not None and status is not agent.shown:
            agent.shown = status
            self._changed(agent, status)

    def _skip(self, agent: Agent, state: str) -> None:
        self.skipped += 1
        word = state[:WORD_CHARS]
        if word not in agent.odd_states and len(agent.odd_states) < _ODD_STATES:
            agent.odd_states |= {word}
            fields = {"agent": agent.agent_id, "state": word}
            _log.warning("a state that no guild has a word for is skipped", extra={"fields": fields})
