"""One guild: tells it what its agents are doing, at its own pace and independently of every other guild."""

import asyncio
import logging
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum, auto
from typing import assert_never

from plugin.clock import Clock
from plugin.config import Presence
from plugin.errors import BadEndpoint, NoAnswer
from plugin.presence import cell as step
from plugin.presence.agent import Agent
from plugin.presence.cell import Cell, Send, Wait, decide
from plugin.presence.center import Center
from plugin.presence.fabric import Fabric
from plugin.presence.gate import RETRY_AFTER
from plugin.presence.lane import Lane
from plugin.presence.outcome import Accepted, Deferred, Failed, Rejected, TokenRefused, judge
from plugin.presence.session import Seat, Session
from plugin.presence.state import Status
from plugin.presence.trouble import Trouble, Troubles
from plugin.retry import full_jitter_s, step_s
from plugin.web import Answer

UNAUTHORISED = "unauthorised"
NOT_IN_SESSION = "not_in_session"
NO_USER_ID = "no_user_id"
SPREAD_S = 10.0
# A session younger than this is not asked for again because a guild is missing from it.
FRESH_S = 60.0

UNWELL = Trouble("a guild does not take presence", "a guild takes presence again")
REJECTS = Trouble("a guild refuses the presence of agents", "a guild refuses the presence of no agent any more")
UNSEATED = Trouble(
    "agents have no usable place in a guild", "all agents have a place in a guild again", logging.ERROR, repeats=False
)

_log = logging.getLogger(__name__)


class Verdict(Enum):
    """How far the sending of a cell got."""

    SENT = auto()
    PARKED = auto()
    FAILED = auto()
    UNSENT = auto()  # there is no way to send it
    AGAIN = auto()  # goes once more as soon as there is a new token


@dataclass(slots=True, kw_only=True)
class Surroundings:
    """What every guild of one presence shares. `fabric` and `presence` are what is in force now.

    `judged` is told what each PUT came to, with the version it carried; `forgotten`, of each cell that is no more.
    """

    fabric: Fabric
    presence: Presence
    agents: dict[str, Agent]
    center: Center
    troubles: Troubles
    clock: Clock
    rng: random.Random
    judged: Callable[[Cell, int, Verdict], None]
    forgotten: Callable[[str, Cell], None]


class Guild:
    """Send the cells of one guild when they are due.

    `size` is the number of its cells; `puts` and `failures` count since the start.
    """

    def __init__(self, guild_id: str, around: Surroundings) -> None:
        self.guild_id = guild_id
        self.size = 0
        self.puts = 0
        self.failures = 0
        self._around = around
        most = around.presence.concurrency_per_guild
        self.lane: Lane[Cell] = Lane(due=self._due, work=self._send, most=most, clock=around.clock)

    def cells(self) -> Iterator[Cell]:
        """Yield the cells of this guild."""
        return (agent.cells[self.guild_id] for agent in self._around.agents.values() if self.guild_id in agent.cells)

    def refresh_in(self, seat: Seat | None = None) -> float:
        """Draw when an unchanged cell is sent again: well before the guild would forget it, if it says when."""
        if seat is not None and seat.ttl_s is not None:
            return seat.ttl_s / 3 * self._around.rng.uniform(0.75, 1.0)
        return self._around.presence.refresh_s * self._around.rng.uniform(0.5, 1.5)

    def reseat(self, cell: Cell, agent: Agent, *, configured: bool = False) -> None:
        """Take notice of a new session or, if `configured`, configuration: what was parked for the old goes again."""
        now = self._around.clock.monotonic()
        seat, user_id = agent.seat(self.guild_id), _user_id(cell, agent)
        if seat is not None and seat.problem is None and user_id is not None:
            step.move(cell, (user_id, seat.endpoint), now)
        # A token that a guild refuses is refused in every session: that wait goes on, or logins would never end.
        if configured or cell.reason != UNAUTHORISED:
            step.release(cell, now)
        self.lane.put(cell)

    def _due(self, cell: Cell, now: float) -> float:
        agent = self._around.agents.get(cell.agent_id)
        if agent is None or agent.cells.get(self.guild_id) is not cell:
            return math.inf
        if agent.wants_session and not cell.over(now):
            session = agent.session_at(now)
            if session is None or session.serial == cell.refused:
                return cell.forget_at
        match decide(cell, now):
            case Send(rank=rank):
                return rank
            case Wait(until=until):
                return until
            case step.Forget():
                return now

    async def _send(self, cell: Cell) -> None:
        now = self._around.clock.monotonic()
        if cell.over(now):
            self._forget(cell)
            return
        agent = self._around.agents[cell.agent_id]
        session = agent.session_at(now)
        if session is None:
            self._around.center.ask(agent)
            return
        seat, user_id = session.seats.get(self.guild_id), _user_id(cell, agent)
        if seat is None or seat.problem is not None or user_id is None:
            self._stand_aside(cell, agent, session, now)
            return
        self._around.troubles.end(UNSEATED, where=self.guild_id, who=cell.agent_id)
        step.move(cell, (user_id, seat.endpoint), now)
        await self._put(cell, session, seat, user_id)

    async def _put(self, cell: Cell, session: Session, seat: Seat, user_id: str) -> None:
        around = self._around
        began = around.clock.monotonic()
        status, version = step.begin(cell, began), cell.sent_version
        self.puts += 1
        try:
            result = await around.fabric.put(self.guild_id, seat, user_id, status)
        except (NoAnswer, BadEndpoint) as exc:
            result = exc
        except asyncio.CancelledError:
            step.doubt(cell)
            step.retry(cell, began)
            raise
        verdict = self._settle(cell, result, _Put(status, session, seat, user_id, began))
        if verdict is not Verdict.SENT:
            self.failures += 1
        if _log.isEnabledFor(logging.DEBUG):
            fields = {"guild": self.guild_id, "agent": cell.agent_id, "status": status.value, "answer": _word(result)}
            _log.debug("a presence was sent", extra={"fields": fields})
        around.judged(cell, version, verdict)

    def _settle(self, cell: Cell, result: Answer | NoAnswer | BadEndpoint, put: "_Put") -> Verdict:
        now, wall = self._around.clock.monotonic(), self._around.clock.now()
        outcome = judge(result, wall=wall)
        if isinstance(outcome, Rejected | Deferred | Failed) and outcome.ambiguous:
            step.doubt(cell)
        if isinstance(result, Answer) and not isinstance(outcome, Deferred | Failed):
            self._answered(cell, now)
        match outcome:
            case Accepted():
                due_at = now + self.refresh_in(put.seat)
                step.accept(cell, put.status, (put.user_id, put.seat.endpoint), wall=wall, due_at=due_at)
                self._around.troubles.end(REJECTS, where=self.guild_id, who=cell.agent_id)
                return Verdict.SENT
            case TokenRefused():
                return self._refused(cell, put.session, now)
            case Rejected(reason=reason):
                cell.refused = 0
                self._park(cell, now + self.refresh_in(), reason)
                return Verdict.PARKED
            case Deferred(wait_s=wait_s):
                if self.lane.gate.deferred_again(put.began):
                    self._around.troubles.add(UNWELL, where=self.guild_id, who=self.guild_id, reason=RETRY_AFTER)
                self.lane.gate = self.lane.gate.deferred(now, wait_s)
                step.retry(cell, now)
                return Verdict.FAILED
            case Failed(reason=reason):
                self._fail(cell, put.began, now, reason)
                return Verdict.FAILED
            case _:
                assert_never(outcome)

    def _answered(self, cell: Cell, now: float) -> None:
        """The guild is at work; if it was not, it may have lost everything, and is told again bit by bit."""
        away = self.lane.gate.broken
        self.lane.gate = self.lane.gate.answered(now)
        self._around.troubles.end(UNWELL, where=self.guild_id, who=self.guild_id)
        step.recover(cell)
        if away:
            for other in self.cells():
                if other is not cell:
                    step.lose(other, now + self._around.rng.uniform(0, SPREAD_S))
                    self.lane.put(other)

    def _refused(self, cell: Cell, session: Session, now: float) -> Verdict:
        """Try once more with a new token; if that is refused as well, this guild does not want this agent."""
        if cell.refused not in {0, session.serial}:
            cell.refused = 0
            cell.refusals += 1
            self._park(cell, now + step_s(cell.refusals, rand=self._around.rng.random()), UNAUTHORISED)
            return Verdict.PARKED
        cell.refused = session.serial
        step.retry(cell, now)
        agent = self._around.agents[cell.agent_id]
        if agent.session is session:
            self._around.center.ask(agent)
        return Verdict.AGAIN

    def _fail(self, cell: Cell, began: float, now: float, reason: str) -> None:
        """The guild is in trouble, or with this cell alone, when it served others meanwhile."""
        gate = self.lane.gate
        if gate.well_since(cell.failing_since):
            step.fail(cell, now)
            step.retry(cell, now + full_jitter_s(cell.failures, rand=self._around.rng.random()))
            self._around.troubles.add(REJECTS, where=self.guild_id, who=cell.agent_id, reason=reason)
            return
        self.lane.gate = gate.failed(began, now, reason=reason, rand=self._around.rng.random())
        step.fail(cell, now)
        step.retry(cell, now)
        if self.lane.gate.lasting:
            self._around.troubles.add(UNWELL, where=self.guild_id, who=self.guild_id, reason=reason)

    def _stand_aside(self, cell: Cell, agent: Agent, session: Session, now: float) -> None:
        """The agent has no place here: do not contact the guild, but see whether a later session has one."""
        seat = session.seats.get(self.guild_id)
        if seat is None:
            reason = NOT_IN_SESSION
        else:
            reason = NO_USER_ID if seat.problem is None else f"bad_endpoint: {seat.problem}"
        step.park(cell, now + self.refresh_in(), reason)
        self._around.troubles.add(UNSEATED, where=self.guild_id, who=cell.agent_id, reason=reason)
        if session.began_at + FRESH_S <= now:
            self._around.center.ask(agent)
        self._around.judged(cell, cell.version, Verdict.UNSENT)

    def _park(self, cell: Cell, until: float, reason: str) -> None:
        step.park(cell, until, reason)
        self._around.troubles.add(REJECTS, where=self.guild_id, who=cell.agent_id, reason=reason)

    def _forget(self, cell: Cell) -> None:
        for trouble in (REJECTS, UNSEATED):
            self._around.troubles.end(trouble, where=self.guild_id, who=cell.agent_id)
        self._around.forgotten(self.guild_id, cell)


def _user_id(cell: Cell, agent: Agent) -> str | None:
    """Return who the agent is to the guild; one that left is set offline as who it was."""
    return cell.user_id if cell.retired and cell.user_id is not None else agent.user_id


def _word(result: Answer | NoAnswer | BadEndpoint) -> str:
    match result:
        case Answer():
            return str(result.status)
        case NoAnswer():
            return result.cause
        case BadEndpoint():
            return result.kind


@dataclass(frozen=True, slots=True)
class _Put:
    """What one PUT carried, and when it began."""

    status: Status
    session: Session
    seat: Seat
    user_id: str
    began: float
