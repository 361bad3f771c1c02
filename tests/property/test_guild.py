"""All of presence against a center and guilds in memory that fail at random: what must hold whatever happens."""

import asyncio
import logging
from dataclasses import dataclass
from typing import assert_never

from hypothesis import example, given, settings
from hypothesis import strategies as st

from plugin.config import Config
from plugin.presence.status import RefreshResult
from tests.support.guilds import CENTER, Bench, Reply, Setting, configured, known, running

AGENTS = ("ada", "bob", "cyd")
GUILDS = ("g1", "g2")
PAIRS = [(agent, guild) for agent in AGENTS for guild in GUILDS]
STATES = {"idle": "idle", "working": "on_call", "busy": "busy", "offline": "offline"}
CONCURRENCY = 2
REFRESH_S = 80_000


@dataclass(frozen=True)
class Push:
    agent: str
    state: str


@dataclass(frozen=True)
class Quiet:
    """The agent changes, and the host forgets to say so."""

    agent: str
    state: str


@dataclass(frozen=True)
class Pass:
    seconds: float


@dataclass(frozen=True)
class Fault:
    where: str
    reply: Reply


@dataclass(frozen=True)
class Outage:
    """Everything at one place fails from now on."""

    where: str


@dataclass(frozen=True)
class Revoke:
    agent: str


@dataclass(frozen=True)
class Relocate:
    guild: str


@dataclass(frozen=True)
class Configure:
    config: Config


@dataclass(frozen=True)
class Refresh:
    agent: str | None


REPLIES = [
    Reply(status=None, applied=True),
    Reply(status=None, applied=False),
    Reply(status=None, cause="timeout", applied=True, delay_s=10.0),
    Reply(status=200, delay_s=2.0),
    Reply(status=401),
    Reply(status=403),
    Reply(status=404),
    Reply(status=302, applied=True),
    Reply(status=429, headers={"retry-after": "7"}),
    Reply(status=503, headers={"retry-after": "3"}),
    Reply(status=500, applied=True),
]
OTHERS = [known("ada", fabric_user_id="other"), known("bob", enabled=False), known("cyd")]
CONFIGS = [
    configured(PAIRS, concurrency_per_guild=CONCURRENCY, refresh_s=REFRESH_S),
    configured(PAIRS[1:4], concurrency_per_guild=CONCURRENCY, refresh_s=REFRESH_S),
    configured(PAIRS, identities=OTHERS, concurrency_per_guild=CONCURRENCY, refresh_s=REFRESH_S),
    configured(PAIRS, concurrency_per_guild=1, refresh_s=20),
    configured(PAIRS, enabled=False, concurrency_per_guild=CONCURRENCY, refresh_s=REFRESH_S),
]
Harm = Fault | Outage | Revoke | Relocate
Op = Push | Quiet | Pass | Harm | Configure | Refresh
OPS = st.one_of(
    st.builds(Push, st.sampled_from(AGENTS), st.sampled_from(sorted(STATES))),
    st.builds(Push, st.sampled_from(AGENTS), st.sampled_from(sorted(STATES))),
    st.builds(Quiet, st.sampled_from(AGENTS), st.sampled_from([*sorted(STATES), "unheard-of"])),
    st.builds(Pass, st.sampled_from([0.01, 0.05, 1.1, 11.0, 45.0])),
    st.builds(Fault, st.sampled_from([*GUILDS, CENTER]), st.sampled_from(REPLIES)),
    st.builds(Fault, st.sampled_from(GUILDS), st.sampled_from(REPLIES)),
    st.builds(Outage, st.sampled_from([*GUILDS, CENTER])),
    st.builds(Revoke, st.sampled_from(AGENTS)),
    st.builds(Relocate, st.sampled_from(GUILDS)),
    st.builds(Configure, st.sampled_from(CONFIGS)),
    st.builds(Refresh, st.sampled_from([None, *AGENTS])),
)


class Recorder(logging.Handler):
    """Keep every line as a reader of the log would see it."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{record.getMessage()} {record.__dict__}")


class Story:
    """One run of presence through a list of events."""

    def __init__(self, seed: int) -> None:
        self.setting = Setting(CONFIGS[0], seed=seed)
        self.config = CONFIGS[0]
        self.relocated = False
        self.recorder = Recorder()
        self.sent_at_rest = self.due_at_rest = 0
        self.refreshes: list[asyncio.Task[RefreshResult]] = []

    @property
    def bench(self) -> Bench:
        return self.setting.bench

    async def do(self, op: Op) -> None:
        match op:
            case Push(agent=agent, state=state):
                self.setting.push(agent, state)
            case Quiet(agent=agent, state=state):
                self.setting.host.states[agent] = state
            case Pass(seconds=seconds):
                await self.setting.after(seconds)
            case Configure(config=config):
                self.config = config
                await self.setting.presence.reconfigure(config)
            case Refresh(agent=agent):
                self.refreshes.append(asyncio.create_task(self.setting.presence.refresh(agent)))
            case _:
                self.harm(op)

    def harm(self, op: Harm) -> None:
        match op:
            case Fault(where=where, reply=reply):
                self.bench.replies[where].append(reply)
            case Outage(where=where):
                self.bench.always[where] = Reply(status=None, cause="refused", applied=False)
            case Revoke(agent=agent):
                self.bench.revoke(agent)
            case Relocate(guild=guild):
                self.relocated = True
                self.bench.endpoints[guild] += "/new"
                for agent in AGENTS:
                    self.bench.revoke(agent)
            case _:
                assert_never(op)

    async def settle(self) -> None:
        """Stop the faults and let time pass, but not enough for a refresh to hide what went wrong.

        What a refusal parked goes again with the next configuration; a token that was refused too often, after 300 s.
        """
        self.bench.replies.clear()
        self.bench.always.clear()
        for agent, state in self.setting.host.states.items():
            if state not in STATES:
                self.setting.host.states[agent] = "idle"
        await self.setting.presence.reconfigure(self.config)
        if self.relocated:
            # That a guild has moved is only seen when something is sent.
            self.refreshes.append(asyncio.create_task(self.setting.presence.refresh()))
        for _ in range(12):
            await self.setting.after(35)

    async def rest(self) -> None:
        """Let a while pass in which nothing changes; count what is sent, and what may be: what is due for a refresh."""
        before, seconds = len(self.bench.puts), 15.0
        await self.setting.after(seconds)
        self.sent_at_rest = len(self.bench.puts) - before
        self.due_at_rest = len(PAIRS) * (int(seconds / (0.5 * self.config.presence.refresh_s)) + 1)
        if self.config.presence.refresh_s == REFRESH_S:
            self.due_at_rest = 0

    def check_shown(self, *, left: bool = False) -> None:
        identities = {identity.agent_id: identity for identity in self.config.identities}
        bound = {(binding.agent_id, binding.guild_node_id) for binding in self.config.bindings}
        for agent, guild in PAIRS:
            identity = identities.get(agent)
            user = (identity.fabric_user_id if identity else None) or f"user-{agent}"
            row = self.bench.rows.get((self.bench.endpoints[guild], user))
            live = (
                identity is not None and identity.enabled and (agent, guild) in bound and self.config.presence.enabled
            )
            if live:
                wanted = "offline" if left else STATES[self.setting.host.states[agent]]
                assert row == wanted, (agent, guild, self.setting.presence.status())


async def tell(ops: list[Op], seed: int) -> Story:
    """Play the events, stop the faults, let things settle and rest, then leave."""
    story = Story(seed)
    logger = logging.getLogger("plugin.presence")
    level = logger.level
    logger.addHandler(story.recorder)
    logger.setLevel(logging.DEBUG)
    try:
        async with running(story.setting):
            for op in ops:
                await story.do(op)
            await story.settle()
            await asyncio.gather(*story.refreshes)
            story.check_shown()
            await story.rest()
            story.recorder.lines.append(repr(story.setting.presence.status()))
            _, missed = await story.setting.leave(1.5)
            assert missed == 0
            story.check_shown(left=True)
    finally:
        logger.removeHandler(story.recorder)
        logger.setLevel(level)
    return story


STORIES = st.lists(OPS, max_size=25)
SEEDS = st.integers(0, 1000)


@settings(max_examples=60, deadline=None)
@given(STORIES, SEEDS)
@example([Pass(1.1), Outage("g1"), Push("ada", "busy"), Pass(11.0)], 3)
@example([Pass(1.1), Outage(CENTER), Revoke("ada"), Push("ada", "busy"), Pass(11.0)], 3)
@example([Pass(1.1), Revoke("ada"), Push("ada", "busy"), Pass(1.1)], 3)
@example([Pass(1.1), Relocate("g1"), Push("ada", "busy"), Pass(1.1)], 3)
def test_once_faults_stop_every_guild_shows_what_every_agent_does_and_offline_after_leaving(
    ops: list[Op], seed: int
) -> None:
    asyncio.run(tell(ops, seed))


@settings(max_examples=40, deadline=None)
@given(STORIES, SEEDS)
def test_never_two_requests_for_one_cell_or_one_login_and_never_more_than_allowed_to_one_guild(
    ops: list[Op], seed: int
) -> None:
    most = asyncio.run(tell(ops, seed)).bench.most

    assert {name: count for name, count in most.items() if name.startswith(("cell ", "login ")) and count > 1} == {}
    assert all(most[guild] <= CONCURRENCY for guild in GUILDS)


@settings(max_examples=40, deadline=None)
@given(STORIES, SEEDS)
def test_nothing_is_sent_while_nothing_changes_and_no_refresh_is_due(ops: list[Op], seed: int) -> None:
    story = asyncio.run(tell(ops, seed))

    assert story.sent_at_rest <= story.due_at_rest


@settings(max_examples=40, deadline=None)
@given(STORIES, SEEDS)
def test_a_token_reaches_only_the_endpoint_of_its_own_session_entry(ops: list[Op], seed: int) -> None:
    bench = asyncio.run(tell(ops, seed)).bench

    assert [put for put in bench.puts if bench.issued_for[put.token] != put.endpoint] == []


@settings(max_examples=40, deadline=None)
@given(STORIES, SEEDS)
def test_no_token_and_no_key_is_in_any_log_line_or_status(ops: list[Op], seed: int) -> None:
    lines = asyncio.run(tell(ops, seed)).recorder.lines

    assert [line for line in lines if "token-" in line or "key-" in line] == []
