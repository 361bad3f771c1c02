"""A random storm of faults by seed: what goes wrong, when the process is killed, and what it leaves behind."""

import asyncio
import os
import random
import signal
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

from plugin.loopback.faults import (
    Cut,
    Delay,
    Drip,
    Fault,
    FaultMenu,
    Hang,
    Kind,
    LostRows,
    NotHttp,
    RateLimit,
    Request,
    Reset,
    RetryAfter,
    Status,
    forbidden,
    garbage,
    login_page,
    other_json,
    unauthorised,
)
from plugin.loopback.host import LoopbackHost
from plugin.loopback.server import Server
from protocol.errors import RpcError
from tests.support.fleet import TOKEN, Fleet
from tests.support.oracle import SHOWN_AS, Oracle

WRONG: tuple[Callable[[], Kind], ...] = (
    Reset,
    Cut,
    Hang,
    Drip,
    NotHttp,
    garbage,
    login_page,
    other_json,
    unauthorised,
    forbidden,
    *(lambda code=code: Status(code=code) for code in (408, 500, 502, 503, 504)),
    lambda: RetryAfter(seconds=1),
    lambda: RetryAfter(seconds=1, code=503),
    lambda: RateLimit(reset_s=1),
    lambda: Delay(seconds=0.3),
)
PAUSE_S = 0.05  # at most, between two pushes of one agent
MAX_BEHIND = 2_000  # records on their way, beyond which nothing more is pushed
BEHIND_S = 600.0
UP_S = 30.0
CALL_S = 120.0  # longer than any time the process is suspended for
CONFIGURE_S = 5.0  # at most, between two configurations: each makes a closed gate probe at once


class Weather(FaultMenu):
    """A menu that serves a random fault to a share of the requests, half of them after the effect; `calm` ends it."""

    def __init__(self, rng: random.Random, *, share: float, also: tuple[Callable[[], Kind], ...] = ()) -> None:
        super().__init__()
        self.share = share
        self.served = 0
        self._rng = rng
        self._kinds = (*WRONG, *also)

    def calm(self) -> None:
        """Behave from now on."""
        self.share = 0.0

    def take(self, request: Request) -> Fault | None:
        """Return a fault for this request, or none."""
        del request
        if self._rng.random() >= self.share:
            return None
        self.served += 1
        return Fault(kind=self._rng.choice(self._kinds)(), applied=self._rng.random() < 0.5)


class Parts(TypedDict):
    """The parts of the configuration that are not the fleet's usual ones."""

    platform: dict[str, object]
    fabric: dict[str, object]
    presence: dict[str, object]
    log: dict[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The process at one moment."""

    at_s: float
    rss_bytes: int
    fds: int
    wal_bytes: int
    ping_s: float
    pushes: int  # answered by then


@dataclass(slots=True)
class Storm:
    """Drives a plugin through the weather."""

    fleet: Fleet
    rng: random.Random
    oracle: Oracle
    weather: tuple[Weather, ...]
    configure_s: float = CONFIGURE_S
    kills: int = 0
    starts_s: list[float] = field(default_factory=list[float])
    push_s: list[float] = field(default_factory=list[float])
    samples: list[Sample] = field(default_factory=list[Sample])
    began_at: float = field(default_factory=time.monotonic)

    @property
    def state_dir(self) -> Path:
        """Where the plugin keeps its store."""
        return self.fleet.folder / "root" / "sync"

    def host(self) -> LoopbackHost:
        """Make a host whose plugin gives up on requests soon."""
        host = self.fleet.host(**self._parts())
        host.agents.update({agent: self.rng.choice(tuple(SHOWN_AS)) for agent in self.fleet.agents})
        return host

    def _parts(self) -> Parts:
        return {
            "platform": {"base_url": self.fleet.platform.url, "api_key": TOKEN, "timeout_s": 1},
            "fabric": {"center_url": self.fleet.center.url, "timeout_s": 1},
            "presence": {"interval_s": 0.2, "refresh_s": 5},
            "log": {"level": "error"},
        }

    async def live_and_die(self, life_s: float, *, early: bool) -> None:
        """Launch the plugin, load it, and kill it so long after it was up or, `early`, after its launch."""
        host, up = self.host(), asyncio.Event()
        load = asyncio.create_task(self._start_and_load(host, up))
        if not early:
            async with asyncio.timeout(UP_S):
                await up.wait()
        await asyncio.wait({load}, timeout=life_s)
        with suppress(RuntimeError):  # not even launched
            host.process.kill()
        load.cancel()
        with suppress(asyncio.CancelledError, RpcError):
            await load
        await host.process.wait()  # a second signal could take its end from who waits for it
        await host.kill()
        self.kills += 1

    async def live(self, host: LoopbackHost, seconds: float, *, every_s: float) -> None:
        """Load a plugin that is not killed, and look at it from time to time."""
        load = asyncio.create_task(self.load(host))
        end = time.monotonic() + seconds
        while (left_s := end - time.monotonic()) > 0:
            await asyncio.wait({load}, timeout=min(every_s, left_s))
            if load.done():
                await load
            self.samples.append(await self._sample(host))
        load.cancel()
        with suppress(asyncio.CancelledError):
            await load

    async def suspend(self, host: LoopbackHost, seconds: float) -> None:
        """Stop the process for so long, as a machine that sleeps does, while the load goes on."""
        load = asyncio.create_task(self.load(host))
        os.kill(host.pid, signal.SIGSTOP)
        try:
            await asyncio.wait({load}, timeout=seconds)
        finally:
            os.kill(host.pid, signal.SIGCONT)
        await host.call("ping", timeout_s=CALL_S)
        load.cancel()
        with suppress(asyncio.CancelledError):
            await load

    async def load(self, host: LoopbackHost) -> None:
        """Push and change states until cancelled, or until the plugin is gone: then RpcError."""
        try:
            async with asyncio.TaskGroup() as group:
                for agent in self.fleet.agents:
                    group.create_task(self._push(host, agent))
                group.create_task(self._wander(host))
                group.create_task(self._configure(host))
        except* RpcError as gone:
            raise _first(gone) from None

    def calm(self) -> None:
        """End all faults."""
        for weather in self.weather:
            weather.calm()

    async def _start_and_load(self, host: LoopbackHost, up: asyncio.Event) -> None:
        started_at = time.monotonic()
        await host.start()
        up.set()
        self.starts_s.append(time.monotonic() - started_at)
        await self.load(host)

    async def _push(self, host: LoopbackHost, agent: str) -> None:
        while True:
            made = self.oracle.make(self.rng.randint(1, 5), size=self.rng.choice((20, 200, 5_000)))
            began_at = time.monotonic()
            await self.oracle.push(host, made, agent=agent, timeout_s=CALL_S)
            self.push_s.append(time.monotonic() - began_at)
            await asyncio.sleep(PAUSE_S * self.rng.random())
            await self.fleet.platform.wait_until(
                lambda platform: len(self.oracle.owed) - len(platform.records) < MAX_BEHIND, BEHIND_S
            )

    async def _wander(self, host: LoopbackHost) -> None:
        while True:
            agent = self.rng.choice(self.fleet.agents)
            await host.set_state(agent, self.rng.choice(tuple(SHOWN_AS)), tell=self.rng.random() < 0.5)
            await asyncio.sleep(0.1 * self.rng.random())

    async def _configure(self, host: LoopbackHost) -> None:
        while True:
            await asyncio.sleep(self.configure_s * self.rng.random())
            await host.call("configure", {"config": self.fleet.config(**self._parts())}, timeout_s=CALL_S)

    async def _sample(self, host: LoopbackHost) -> Sample:
        began_at = time.monotonic()
        await host.call("ping")
        ping_s = time.monotonic() - began_at
        process = Path(f"/proc/{host.pid}")
        pages = int((process / "statm").read_text().split()[1])
        wal = self.state_dir / "agentic-sync.db-wal"
        return Sample(
            at_s=began_at - self.began_at,
            rss_bytes=pages * 4096,
            fds=len(list((process / "fd").iterdir())),
            wal_bytes=wal.stat().st_size if wal.exists() else 0,
            ping_s=ping_s,
            pushes=len(self.push_s),
        )


@asynccontextmanager
async def storm_over(fleet: Fleet, *, seed: int, share: float) -> AsyncGenerator[Storm]:
    """Let the weather loose on a fleet."""
    rng = random.Random(seed)  # noqa: S311 - by seed, so that a storm can be had again
    servers: list[tuple[Server, tuple[Callable[[], Kind], ...]]] = [
        (fleet.platform, ()),
        (fleet.center, ()),
        *((guild, (LostRows,)) for guild in fleet.guilds),
    ]
    weather: list[Weather] = []
    for server, also in servers:
        server.menu = Weather(random.Random(rng.random()), share=share, also=also)  # noqa: S311 - by seed
        weather.append(server.menu)
    yield Storm(fleet, rng, Oracle(fleet.platform), tuple(weather))


def _first(group: ExceptionGroup[RpcError]) -> RpcError:
    first = group.exceptions[0]
    return _first(first) if isinstance(first, ExceptionGroup) else first
