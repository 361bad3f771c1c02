"""Logins: one in flight per agent, refused ones ever less often, and the center is spared while it is in trouble."""

import itertools
import logging
import math
import random
from collections.abc import Callable
from typing import assert_never

from plugin.clock import Clock
from plugin.errors import BadEndpoint, NoAnswer
from plugin.presence.agent import Agent
from plugin.presence.fabric import LOGINS, Fabric
from plugin.presence.gate import RETRY_AFTER
from plugin.presence.lane import Lane
from plugin.presence.outcome import Accepted, Deferred, Failed, Outcome, Rejected, TokenRefused, judge
from plugin.presence.session import Moment, Session, SessionInvalid, parse
from plugin.presence.trouble import Trouble, Troubles
from plugin.retry import full_jitter_s, step_s
from plugin.web import Answer

CENTER = "center"
NO_CREDENTIAL = "no_credential"
UNREACHABLE = Trouble("the center gives no sessions", "the center gives sessions again")
ALONE = Trouble("an agent gets no session while others do", "every agent gets its session again", each=False)
REFUSED = Trouble("the center refuses agents", "the center refuses no agent any more", logging.ERROR)
CURTAILED = Trouble("a session holds guilds that cannot be used", "a session is whole again", repeats=False)
DIFFERENT = Trouble(
    "the configured fabric_user_id is not the session's; the configured one is used",
    "the configured fabric_user_id is the session's again",
    repeats=False,
)


class Center:
    """Give each agent that asks for one a session. `settled(agent)` is called after every login but a repeated one."""

    def __init__(
        self,
        fabric: Callable[[], Fabric],
        *,
        settled: Callable[[Agent], None],
        troubles: Troubles,
        clock: Clock,
        rng: random.Random,
    ) -> None:
        self.lane = Lane(due=_due, work=self._login, most=LOGINS, clock=clock)
        self._fabric = fabric
        self._settled = settled
        self._troubles = troubles
        self._clock = clock
        self._rng = rng
        self._serials = itertools.count(1)

    def ask(self, agent: Agent) -> None:
        """Log the agent in as soon as that is possible; its session stays in use until there is a new one."""
        agent.wants_session = True
        self.lane.put(agent)

    def drop(self, agent: Agent) -> None:
        """Log the agent in anew, because its key or the center changed; its session and a login under way are void."""
        agent.session, agent.wants_session = None, True
        agent.epoch += 1
        agent.refusals = 0
        self.hurry(agent)

    def forget(self, agent: Agent) -> None:
        """Log the agent in no more; what a login under way brings is void."""
        agent.wants_session = False
        agent.epoch += 1
        self.lane.drop(agent)

    def hurry(self, agent: Agent) -> None:
        """Forget that a login was refused: what it was refused for may have been mended."""
        agent.login_at, agent.refusal = -math.inf, None
        agent.credential.forget()
        self.lane.put(agent)

    async def _login(self, agent: Agent) -> None:
        api_key = agent.credential.current()
        if api_key is None:
            self._refuse(agent, NO_CREDENTIAL)
            return
        epoch, began = agent.epoch, self._clock.monotonic()
        try:
            result = await self._fabric().login(agent.agent_id, api_key)
        except (NoAnswer, BadEndpoint) as exc:
            result = exc
        if agent.epoch == epoch:
            self._settle(agent, result, began)

    def _settle(self, agent: Agent, result: Answer | NoAnswer | BadEndpoint, began: float) -> None:
        now, wall = self._clock.monotonic(), self._clock.now()
        outcome: Outcome = judge(result, wall=wall)
        session: Session | None = None
        if isinstance(outcome, Accepted):
            try:
                at = Moment(now=now, wall=wall)
                session = parse(outcome.body, serial=next(self._serials), at=at, check=self._fabric().check)
            except SessionInvalid as exc:
                outcome = Failed(str(exc), ambiguous=False)
        match outcome:
            case Accepted():
                self._answered(now)
                if session is not None:
                    self._accept(agent, session)
            case TokenRefused():
                self._answered(now)
                self._refuse(agent, "unauthorised")
            case Rejected(reason=reason):
                self._answered(now)
                self._refuse(agent, reason)
            case Deferred(wait_s=wait_s):
                if self.lane.gate.deferred_again(began):
                    self._troubles.add(UNREACHABLE, where=CENTER, who=CENTER, reason=RETRY_AFTER)
                self.lane.gate = self.lane.gate.deferred(now, wait_s)
            case Failed(reason=reason):
                self._fail(agent, began, now, reason)
            case _:
                assert_never(outcome)

    def _answered(self, now: float) -> None:
        self.lane.gate = self.lane.gate.answered(now)
        self._troubles.end(UNREACHABLE, where=CENTER, who=CENTER)

    def _accept(self, agent: Agent, session: Session) -> None:
        agent.session, agent.wants_session = session, False
        agent.refusal, agent.refusals = None, 0
        agent.failures, agent.failing_since, agent.login_at = 0, math.inf, -math.inf
        agent.failure = None
        who = agent.agent_id
        self._troubles.end(REFUSED, where=CENTER, who=who)
        self._troubles.end(ALONE, where=CENTER, who=who)
        configured = agent.identity.fabric_user_id
        different = configured and session.user_id and configured != session.user_id
        self._note(DIFFERENT, who, f"{configured} != {session.user_id}" if different else None)
        self._note(CURTAILED, who, f"{session.dropped} left out" if session.dropped else None)
        self._settled(agent)

    def _note(self, trouble: Trouble, who: str, reason: str | None) -> None:
        if reason is None:
            self._troubles.end(trouble, where=who, who=who)
        else:
            self._troubles.add(trouble, where=who, who=who, reason=reason)

    def _refuse(self, agent: Agent, reason: str) -> None:
        agent.refusals += 1
        agent.refusal = reason
        agent.login_at = self._clock.monotonic() + step_s(agent.refusals, rand=self._rng.random())
        agent.credential.forget()
        self._troubles.add(REFUSED, where=CENTER, who=agent.agent_id, reason=reason)
        self._settled(agent)

    def _fail(self, agent: Agent, began: float, now: float, reason: str) -> None:
        """The center is in trouble, or this login alone, when others were answered meanwhile."""
        alone = self.lane.gate.well_since(agent.failing_since)
        if alone:
            self._troubles.add(ALONE, where=CENTER, who=agent.agent_id, reason=reason)
        else:
            self.lane.gate = self.lane.gate.failed(began, now, reason=reason, rand=self._rng.random())
        agent.failures += 1
        agent.failing_since = min(agent.failing_since, now)
        agent.login_at = now + full_jitter_s(agent.failures, rand=self._rng.random())
        agent.failure = reason
        if self.lane.gate.lasting and not alone:
            self._troubles.add(UNREACHABLE, where=CENTER, who=CENTER, reason=reason)


def _due(agent: Agent, _now: float) -> float:
    return agent.login_at if agent.wants_session else math.inf
