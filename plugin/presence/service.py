"""Presence as one thing: start it, push states into it, ask it, change its configuration, leave."""

import asyncio
import logging
import random
from collections.abc import Coroutine, Iterable, Mapping

from msgspec import UNSET

from plugin.clock import Clock, wait_until_set
from plugin.config import Config
from plugin.host import AgentStates
from plugin.presence import cell as step
from plugin.presence.agent import Agent
from plugin.presence.cell import Cell
from plugin.presence.center import Center
from plugin.presence.fabric import OpenFabric, WebFabric
from plugin.presence.guild import Guild, Surroundings, Verdict
from plugin.presence.report import Around, Now, Taken, agent_status, date, guild_status
from plugin.presence.roster import Member, Roster, members, off
from plugin.presence.state import Status
from plugin.presence.status import AgentStatus, GuildStatus, LeaveReport, PresenceStatus, RefreshResult
from plugin.presence.ticket import Ticket
from plugin.presence.trouble import Trouble, Troubles
from plugin.presence.watch import Watch

REFRESH_WAIT_S = 4.5
# Requests to all guilds at once. Thousands of connections opened together are served too late: every guild would seem
# to hang.
IN_FLIGHT = 512
UNIDENTIFIED = Trouble("nothing is sent for an agent", "an agent's presence is sent again", repeats=False)

_log = logging.getLogger(__name__)


class Presence:
    """Keep every guild showing what its agents are doing, from `run` until `leave`.

    It is off, and only waits, while the configuration says so or names no center; `reconfigure` may turn it on.
    """

    def __init__(
        self,
        *,
        agents: AgentStates,
        config: Config,
        environ: Mapping[str, str],
        clock: Clock,
        rng: random.Random,
        open_fabric: OpenFabric = WebFabric,
    ) -> None:
        """Prepare everything; nothing is read or sent before `run`."""
        self._config = config
        self._clock = clock
        self._open_fabric = open_fabric
        self._opened = config
        self._bound = members(config)
        self._off = off(config)
        self._members = {} if self._off else self._bound
        self._troubles = Troubles(clock)
        self._tickets: list[Ticket] = []
        self._group: asyncio.TaskGroup | None = None
        self._sources: list[asyncio.Task[None]] = []
        self._guild_tasks: dict[str, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._leaving = False
        self._left = asyncio.Event()
        self._sent = self._failed = 0
        self._around = self._surround(config, rng)
        self._roster = Roster(self._around, environ, opened=self._start)
        self._watch = Watch(
            agents,
            self._roster.agents,
            changed=self._show,
            ticked=self._summarise,
            troubles=self._troubles,
            clock=clock,
            rng=rng,
        )
        self._apply()

    def _surround(self, config: Config, rng: random.Random) -> Surroundings:
        center = Center(
            lambda: self._around.fabric, settled=self._settled, troubles=self._troubles, clock=self._clock, rng=rng
        )
        return Surroundings(
            fabric=self._open_fabric(config.fabric, config.presence),
            presence=config.presence,
            agents={},
            center=center,
            troubles=self._troubles,
            clock=self._clock,
            rng=rng,
            judged=self._judged,
            forgotten=self._forgotten,
        )

    async def run(self) -> None:
        """Work until `leave` has ended, or until cancelled; then every connection is closed."""
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                self._spawn(self._around.center.lane.run())
                for guild in self._roster.guilds.values():
                    self._start(guild)
                for guild, cell in self._roster.pairs():
                    guild.lane.put(cell)
                for agent in self._roster.agents.values():
                    self._around.center.lane.put(agent)
                if not self._leaving:
                    self._sources.append(self._spawn(self._watch.poll(lambda: self._config.presence.interval_s)))
                    self._sources.append(self._spawn(self._watch.intake()))
                await self._left.wait()
                for task in self._tasks:
                    task.cancel()
        finally:
            self._group = None
            self._sources.clear()
            self._guild_tasks.clear()
            await self._around.fabric.close()

    def state_changed(self, agent_id: str, state: str) -> None:
        """Take a state that the host pushed; it is sent 25 ms later. Agents that are not bound are ignored."""
        self._watch.push(agent_id, state)

    async def reconfigure(self, config: Config) -> None:
        """Work by another configuration from now on; what is in flight ends as it began."""
        if self._leaving:
            return
        old, self._config = self._config, config
        self._off = off(config)
        if self._off is None:
            self._reopen(config)
        self._around.presence = config.presence
        gone = self._members.keys()
        self._bound = members(config)
        self._members = {} if self._off else self._bound
        for agent_id in gone - self._members.keys():
            self._troubles.end(UNIDENTIFIED, where=agent_id, who=agent_id)
        self._apply()
        self._redraw(old)
        self._watch.wake()

    async def refresh(self, agent_id: str | None = None) -> RefreshResult:
        """Send everything again now, of one agent or of all; return what came of it within 5 s."""
        now = self._clock.monotonic()
        cells = {
            cell: guild
            for guild, cell in self._roster.pairs()
            if agent_id in {None, cell.agent_id} and cell.wanted is not None and not cell.retired
        }
        for cell in cells:
            step.resend(cell, now)
        ticket = Ticket({cell: cell.version for cell in cells}, passing=frozenset({Verdict.AGAIN}))
        self._tickets.append(ticket)
        try:
            self._hurry({cell.agent_id for cell in cells}, set(cells.values()))
            for cell, guild in cells.items():
                guild.lane.put(cell)
            await wait_until_set(ticket.done, REFRESH_WAIT_S, self._clock)
        finally:
            self._tickets.remove(ticket)
        return RefreshResult(sent=ticket.sent, failed=ticket.failed, pending=ticket.pending)

    def status(self, agent_id: str | None = None, *, taken: Taken | None = None) -> PresenceStatus:
        """Say what every guild is to show and what it confirmed, of one agent or of all that are bound.

        `taken` is why presence is off here although the configuration has it on: it is another process's.
        """
        why = self._off or (taken and taken.reason)
        watch = self._watch
        bound, guilds = self._bound, self._roster.guilds
        if agent_id is not None:
            who = bound.get(agent_id)
            bound = {} if who is None else {agent_id: who}
            guilds = {} if who is None else {name: guild for name, guild in guilds.items() if name in who.guilds}
        return PresenceStatus(
            agents=self._agents(bound, why) if bound else [],
            guilds=self._guilds(guilds) if guilds else [],
            last_tick_at=None if watch.last_tick_at is None else date(watch.last_tick_at),
            tick_ms=None if watch.tick_s is None else round(watch.tick_s * 1000, 3),
            off=UNSET if why is None else why,
            pid=UNSET if taken is None or taken.pid is None else taken.pid,
        )

    def _agents(self, bound: Mapping[str, Member], why: str | None) -> list[AgentStatus]:
        gates = {guild_id: guild.lane.gate for guild_id, guild in self._roster.guilds.items()}
        around = Around(now=self._now(), off=why, center=self._around.center.lane.gate, gates=gates)
        return [agent_status(name, who, self._roster.agents.get(name), around) for name, who in bound.items()]

    def _guilds(self, guilds: Mapping[str, Guild]) -> list[GuildStatus]:
        cells: dict[str, list[Cell]] = {guild_id: [] for guild_id in guilds}
        for guild, cell in self._roster.pairs():
            if guild.guild_id in cells:
                cells[guild.guild_id].append(cell)
        now = self._now()
        return [guild_status(guild, cells[guild_id], now) for guild_id, guild in guilds.items()]

    def _now(self) -> Now:
        return Now(monotonic=self._clock.monotonic(), wall=self._clock.now())

    async def leave(self, deadline_s: float) -> LeaveReport:
        """Take no more changes, set every agent offline everywhere within `deadline_s`, and end `run`.

        Who is busy or on call goes first. With `presence.offline_at_exit` false, only what is in flight is waited for.
        """
        self._leaving = True
        for task in self._sources:
            task.cancel()
        offline = self._config.presence.offline_at_exit
        ticket = self._retire_all() if offline and self._group is not None else self._let_end()
        self._tickets.append(ticket)
        await wait_until_set(ticket.done, deadline_s, self._clock)
        self._tickets.remove(ticket)
        self._left.set()
        if not offline:
            return LeaveReport(sent=0, missed=0)
        report = LeaveReport(sent=ticket.sent, missed=ticket.failed + ticket.pending)
        if report.sent or report.missed:
            _log.info("presence left", extra={"fields": {"sent": report.sent, "missed": report.missed}})
        return report

    def _apply(self) -> None:
        self._roster.apply(self._members)
        self._share_out()
        for agent_id, member in self._members.items():
            if member.standing == "ready":
                self._troubles.end(UNIDENTIFIED, where=agent_id, who=agent_id)
            else:
                self._troubles.add(UNIDENTIFIED, where=agent_id, who=agent_id, reason=member.standing)

    def _share_out(self) -> None:
        """Give every guild the same part of what may be in flight, so that one that hangs takes none of another's."""
        share = max(1, IN_FLIGHT // max(1, len(self._roster.guilds)))
        for guild in self._roster.guilds.values():
            guild.lane.most = min(share, self._config.presence.concurrency_per_guild)

    def _reopen(self, config: Config) -> None:
        """Build the fabric anew if it is reached otherwise now; one that was left is closed when it is idle."""
        old, self._opened = self._opened, config
        told = (old.presence.source, old.presence.concurrency_per_guild)
        if old.fabric == config.fabric and told == (config.presence.source, config.presence.concurrency_per_guild):
            return
        left, self._around.fabric = self._around.fabric, self._open_fabric(config.fabric, config.presence)
        if self._group is not None:
            self._spawn(left.close())
        if old.fabric != config.fabric:
            for agent in self._roster.agents.values():
                self._around.center.drop(agent)

    def _redraw(self, old: Config) -> None:
        """Bring forward what a shorter refresh or another source wants earlier."""
        now, new = self._clock.monotonic(), self._config.presence
        for guild, cell in self._roster.pairs():
            if new.source != old.presence.source:
                step.resend(cell, now)
            elif new.refresh_s < old.presence.refresh_s and cell.confirmed is not None:
                step.retry(cell, now + guild.refresh_in())
            guild.lane.put(cell)

    def _hurry(self, agent_ids: Iterable[str], guilds: Iterable[Guild]) -> None:
        """Try now what waits for a reason of our own."""
        for agent_id in agent_ids:
            self._around.center.hurry(self._roster.agents[agent_id])
        self._around.center.lane.hurry()
        for guild in guilds:
            guild.lane.hurry()

    def _retire_all(self) -> Ticket:
        now = self._clock.monotonic()
        shown: dict[Cell, int] = {}
        for guild, cell in self._roster.pairs():
            step.retire(cell, now)
            if cell.may_show or cell.in_flight:
                shown[cell] = cell.version
            guild.lane.put(cell)
        self._hurry(list(self._roster.agents), list(self._roster.guilds.values()))
        return Ticket(shown, passing=frozenset({Verdict.AGAIN, Verdict.FAILED}))

    def _let_end(self) -> Ticket:
        lanes = [self._around.center.lane, *(guild.lane for guild in self._roster.guilds.values())]
        for lane in lanes:
            lane.most = 0
        flying = {cell: cell.sent_version for _, cell in self._roster.pairs() if cell.in_flight}
        return Ticket(flying, passing=frozenset())

    def _start(self, guild: Guild) -> None:
        if self._group is not None:
            self._guild_tasks[guild.guild_id] = self._spawn(guild.lane.run())

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        if self._group is None:
            raise RuntimeError("presence is not running")
        task = self._group.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _show(self, agent: Agent, status: Status) -> None:
        for guild_id, cell in agent.cells.items():
            if not cell.retired:
                step.want(cell, status)
                self._roster.guilds[guild_id].lane.put(cell)

    def _settled(self, agent: Agent) -> None:
        """A login ended: with a session, its cells go on; refused, those that wait for one wait on."""
        session = agent.session_at(self._clock.monotonic())
        for guild_id, cell in list(agent.cells.items()):
            if agent.refusal is None:
                self._roster.guilds[guild_id].reseat(cell, agent)
            elif session is None or session.serial == cell.refused:
                self._judged(cell, cell.version, Verdict.UNSENT)

    def _judged(self, cell: Cell, version: int, verdict: Verdict) -> None:
        self._sent += verdict is Verdict.SENT
        self._failed += verdict in {Verdict.PARKED, Verdict.FAILED}
        for ticket in self._tickets:
            ticket.judge(cell, version, verdict)

    def _forgotten(self, guild_id: str, cell: Cell) -> None:
        guild = self._roster.forget(guild_id, cell)
        if guild is not None and not self._leaving:
            self._share_out()
        if guild is None or self._group is None:
            return
        task = self._guild_tasks.pop(guild_id, None)
        if task is not None:
            task.cancel()
        self._troubles.forget(guild_id)
        self._spawn(self._around.fabric.drop(guild_id))

    def _summarise(self) -> None:
        self._troubles.tell()
        sent, failed = self._sent, self._failed
        # What fails is told by the troubles; a line for every turn of an outage would be a flood.
        if sent:
            self._sent = self._failed = 0
            fields = {
                "sent": sent,
                "failed": failed,
                "unreadable": self._watch.unreadable,
                "skipped": self._watch.skipped,
            }
            _log.info("presence sent", extra={"fields": fields})
