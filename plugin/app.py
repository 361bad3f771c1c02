"""The composition root: one peer, one set of services, and the order in which they start and stop."""

import asyncio
import contextlib
import logging
import random
import signal
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

from msgspec import Struct

from plugin import __version__, actions, offer
from plugin.clock import Clock, SystemClock
from plugin.config import Config, sources
from plugin.errors import ConfigInvalid
from plugin.host import LEVELS, HostCalls, HostLogHandler
from plugin.presence.status import (
    AgentStateChangedParams,
    PresenceStatus,
    PresenceStatusParams,
    RefreshParams,
    RefreshResult,
)
from plugin.sync.params import PullParams, PullResult, PushParams, PushResult, StatusParams, SyncStatus
from plugin.watchdog import Watchdog
from protocol import openrpc
from protocol.errors import Code, ErrorData, RpcError
from protocol.framing import Framing
from protocol.methods import Context
from protocol.peer import Limits, Peer, Stats
from protocol.stdio import ByteStream

if TYPE_CHECKING:  # importing it takes several times as long as all else before `initialize` is answered
    from plugin.services import Services

T = TypeVar("T")

LOG = logging.getLogger(__name__)
EOF_GRACE_S = 1.5  # hosts kill about 2 s after they closed the pipe or sent SIGTERM
EXIT_WAIT_S = 5.0
WATCHDOG_S = 1.0


class Ending(Struct, frozen=True, kw_only=True):
    """Why the process ends, how long it may take, and with which code it exits."""

    reason: str
    deadline_s: float
    code: int


class App:
    """Serve one host over one byte stream, from the first byte to the last deadline.

    Nothing is touched before `run`. A host that never sends `initialize` is served from file and environment: the
    services start before its first message is handled. With `initialize` they start once its answer is written.
    """

    def __init__(
        self, *, environ: Mapping[str, str], clock: Clock | None = None, rng: random.Random | None = None
    ) -> None:
        self.table = actions.method_table(self)
        self._environ = environ
        self._clock = clock or SystemClock()
        self._rng = rng or random.Random()  # noqa: S311 - it spreads waits, it guards nothing
        self._host_config: Mapping[str, object] | None = None
        self._config: Config | ConfigInvalid = self._load(None)
        self._services: Services | None = None
        self._starting = asyncio.Lock()
        self._stopping: asyncio.Task[None] | None = None

    # -- the whole life ------------------------------------------------------------------------------------------

    async def run(
        self,
        stream: ByteStream,
        *,
        framing: Framing | None = None,
        interactive: bool = False,
        hung_up: Callable[[], Awaitable[None]] | None = None,
    ) -> int:
        """Serve until the host is done; return the exit code. `hung_up` returns once the host has closed its end."""
        loop = asyncio.get_running_loop()
        self._ending: asyncio.Future[Ending] = loop.create_future()
        self._watchdog = Watchdog(on_parent_gone=lambda: self._end_from_thread(loop, "the host is gone", 0))
        self._peer = Peer(
            stream,
            self.table,
            framing=framing,
            limits=_limits(self._config_or_default()),
            translate=actions.to_rpc_error,
            on_first_message=self._first_message,
        )
        self._host = HostCalls(self._peer, self._config_or_default().host)
        handler = HostLogHandler(self._host.log, loop=loop, clock=self._clock)
        logging.getLogger().addHandler(handler)
        self._set_log_level()
        self._take_signals(loop, interactive=interactive)
        self._watchdog.start()
        try:
            async with asyncio.TaskGroup() as self._tasks:
                self._tasks.create_task(self._read())
                stuck = None if hung_up is None else self._tasks.create_task(self._end_when_stuck(hung_up))
                ending = await self._ending
                await self._finish(ending)
                if stuck is not None:
                    stuck.cancel()
        finally:
            logging.getLogger().removeHandler(handler)
        self._watchdog.stop()
        return ending.code

    async def _read(self) -> None:
        await self._peer.run()
        self._end(Ending(reason="the host closed its end", deadline_s=EOF_GRACE_S, code=0))

    async def _end_when_stuck(self, hung_up: Callable[[], Awaitable[None]]) -> None:
        """End when the host has closed its end and reads nothing: the peer stops then before the end of its input."""
        await hung_up()
        before: Stats | None = None
        while before is None or self._peer.stats != before:
            before = self._peer.stats
            await self._clock.sleep(EOF_GRACE_S)
        self._end(Ending(reason="the host closed its end and reads nothing", deadline_s=EOF_GRACE_S, code=0))

    async def _finish(self, ending: Ending) -> None:
        self._watchdog.arm(ending.deadline_s + WATCHDOG_S, f"{ending.reason}, but the work did not stop in time")
        stopping = self._stop(ending.deadline_s)
        try:
            async with asyncio.timeout(ending.deadline_s):
                await asyncio.shield(stopping)
        except TimeoutError:
            LOG.warning("the work did not stop in time; what is stored goes on at the next start")
            stopping.cancel()
        await self._peer.close()

    def _end(self, ending: Ending) -> None:
        if not self._ending.done():
            self._ending.set_result(ending)

    def _end_from_thread(self, loop: asyncio.AbstractEventLoop, reason: str, code: int) -> None:
        # The event loop may be stuck: from here on the watchdog's thread holds the deadline.
        self._watchdog.arm(EOF_GRACE_S + WATCHDOG_S, f"{reason}, and the event loop did not react")
        ending = Ending(reason=reason, deadline_s=EOF_GRACE_S, code=code)
        loop.call_soon_threadsafe(self._end, ending)

    def _take_signals(self, loop: asyncio.AbstractEventLoop, *, interactive: bool) -> None:
        def end(number: int, _frame: FrameType | None) -> None:
            self._end_from_thread(loop, f"{signal.Signals(number).name} came", 0)

        # signal.signal, not the loop's own way: its handler runs even while the loop is stuck in Python code.
        signal.signal(signal.SIGTERM, end)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup leaves it
            signal.signal(signal.SIGHUP, end)
        # A terminal's Ctrl-C reaches the whole process group: when a host has the terminal, it decides what that means.
        signal.signal(signal.SIGINT, end if interactive else signal.SIG_IGN)

    # -- start and stop ------------------------------------------------------------------------------------------

    async def _first_message(self, method: str | None) -> None:
        if method != "initialize":
            await self._start()

    def _start_soon(self) -> None:
        self._tasks.create_task(self._start())

    async def _start(self) -> None:
        # Stopped, or configured wrongly, before it began: then there is nothing to start, and calls say so.
        try:
            await self._started()
        except ConfigInvalid as invalid:
            # A host that calls no action would never hear of it. No traceback: it is no defect of this program.
            fields = {"problems": invalid.problems}
            LOG.error("nothing runs, since the configuration is invalid", extra={"fields": fields})  # noqa: TRY400 - see above
        except RpcError:
            return

    def _ready(self) -> "Services | None":
        """Return the services when they run, and are neither being configured nor stopped."""
        return None if self._stopping is not None or self._starting.locked() else self._services

    async def _started(self) -> "Services":
        if (ready := self._ready()) is not None:
            return ready
        late = self._stopping is not None
        async with self._starting:
            config = self._config
            if isinstance(config, ConfigInvalid):
                raise config
            # What came before the stop, and had to wait for the services, is still answered.
            if late or (self._stopping is not None and self._services is None):
                raise RpcError(Code.CLOSED, "The plugin is stopping", ErrorData(kind="closed", retryable=True))
            if self._services is None:
                services = await asyncio.to_thread(_import_services)  # which leaves the loop free to answer pings
                self._services = await services.build(
                    config, agents=self._host, environ=self._environ, clock=self._clock, rng=self._rng
                )
                LOG.debug("the configuration in force", extra={"fields": sources.explain(config)})
                self._running = self._tasks.create_task(self._services.run())
            return self._services

    def _stop(self, deadline_s: float, *, besides: Context | None = None) -> asyncio.Task[None]:
        if self._stopping is None:
            self._stopping = self._tasks.create_task(self._stop_services(deadline_s, besides))
        return self._stopping

    async def _stop_services(self, deadline_s: float, besides: Context | None) -> None:
        self._peer.stop_intake()
        async with self._starting:
            services = self._services
        if services is not None:
            await services.stop(idle=lambda seconds: self._idle(seconds, besides), deadline_s=deadline_s * 0.7)
            self._running.cancel()
        await self._peer.drain(deadline_s * 0.1, besides=besides)
        if services is not None:
            await services.close()

    async def _idle(self, seconds: float, besides: Context | None) -> None:
        """Wait until every request is answered, at most so long; those that are not go on."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._peer.idle(besides=besides)

    # -- configuration -------------------------------------------------------------------------------------------

    def _load(self, host: Mapping[str, object] | None) -> Config | ConfigInvalid:
        try:
            return sources.load(self._environ, host)
        except ConfigInvalid as invalid:
            return invalid

    def _config_or_default(self) -> Config:
        return self._config if isinstance(self._config, Config) else Config()

    def _set_log_level(self) -> None:
        logging.getLogger().setLevel(LEVELS[self._config_or_default().log.level])

    async def _take_config(self, host: Mapping[str, object] | None) -> list[str]:
        """Put the host's configuration in force; raise ConfigInvalid, with the old one still in force."""
        new = sources.load(self._environ, host)
        async with self._starting:
            old = self._config_or_default()
            if self._services is not None:
                sources.check_change(old, new)
                await self._services.reconfigure(new)
            else:
                self._peer.limit(_limits(new))
            self._config, self._host_config = new, host
        self._host.reconfigure(new.host)
        self._set_log_level()
        return sources.changed(old, new)

    # -- what the host may call ----------------------------------------------------------------------------------

    async def initialize(self, context: Context, params: actions.InitializeParams) -> actions.InitializeResult:
        """Agree on the version, take the host's configuration, start the services once this is answered."""
        if params.protocol_version not in {None, actions.PROTOCOL_VERSION}:
            detail = {"requested": params.protocol_version, "supported": [actions.PROTOCOL_VERSION]}
            raise RpcError(
                Code.PROTOCOL_VERSION,
                f"Protocol version {params.protocol_version} is not spoken here; {actions.PROTOCOL_VERSION} is",
                ErrorData(kind="protocol_version", path="$.protocol_version", detail=detail),
            )
        try:
            await self._take_config(params.config)
        except ConfigInvalid as invalid:
            if self._services is None and not self._starting.locked():
                # Work that comes all the same must not go where the host never meant it to: it is refused like this.
                self._config = invalid
            raise
        context.after_answer(self._start_soon)
        offered = offer.read() or offer.build(self.table)
        return actions.InitializeResult(
            protocol_version=actions.PROTOCOL_VERSION,
            plugin=actions.Party(name="agentic-sync", version=__version__),
            actions=offered.actions,
            host_callbacks=offered.host_callbacks,
            capabilities=actions.Capabilities(),
        )

    async def configure(self, _context: Context, params: actions.ConfigureParams) -> actions.ConfigureResult:
        """Replace the configuration that the host gave; secret files are read again even if nothing changed."""
        return actions.ConfigureResult(applied=True, changed=await self._take_config(params.config))

    def discover(self, _context: Context, _params: actions.Nothing) -> dict[str, object]:
        """Describe every method as an OpenRPC document."""
        return openrpc.describe(self.table, title="agentic-sync", version=__version__, errors=actions.ERRORS)

    async def shutdown(self, context: Context, _params: actions.Nothing) -> None:
        """Stop the work within the grace period, then wait for `exit` or the end of the input."""
        deadline_s = self._config_or_default().shutdown_grace_s
        self._watchdog.arm(deadline_s + EXIT_WAIT_S + WATCHDOG_S, "shutdown did not end in time")
        try:
            async with asyncio.timeout(deadline_s):
                await asyncio.shield(self._stop(deadline_s, besides=context))
        finally:
            # Not once it is answered: a shutdown that was sent as a notification never is.
            self._await_exit()

    def _await_exit(self) -> None:
        loop = asyncio.get_running_loop()
        ending = Ending(reason="neither exit nor the end of the input came after shutdown", deadline_s=0.5, code=0)
        loop.call_later(EXIT_WAIT_S, self._end, ending)

    def exit(self, _context: Context, _params: actions.Nothing) -> None:
        """End the process: code 0 after shutdown, else 1."""
        code = 1 if self._stopping is None else 0
        self._end(Ending(reason="the host sent exit", deadline_s=EOF_GRACE_S, code=code))

    async def push(self, context: Context, params: PushParams) -> PushResult:
        """Bring finished work to the platform."""
        return await (await self._started()).sync.push(params, context.progress)

    async def pull(self, _context: Context, params: PullParams) -> PullResult:
        """Bring fleet context back."""
        return await (await self._started()).sync.pull(params)

    async def sync_status(self, _context: Context, params: StatusParams) -> SyncStatus:
        """Say how sync stands."""
        return await (await self._started()).sync.status(params)

    def presence_status(
        self, _context: Context, params: PresenceStatusParams
    ) -> PresenceStatus | Coroutine[Any, Any, PresenceStatus]:
        """Say what every guild shows."""

        def status(services: "Services") -> PresenceStatus:
            return services.presence_status(params.agent_id)

        return self._once_ready(status)

    async def presence_refresh(self, _context: Context, params: RefreshParams) -> RefreshResult:
        """Send every status again."""
        return await (await self._started()).presence.refresh(params.agent_id)

    def agent_state_changed(
        self, _context: Context, params: AgentStateChangedParams
    ) -> Coroutine[Any, Any, None] | None:
        """Take a change that the host pushes."""

        def change(services: "Services") -> None:
            for agent_id, state in params.changes():
                services.presence.state_changed(agent_id, state)

        if self._stopping is not None:
            return None  # every guild is being told that its agents are offline
        return self._once_ready(change)

    def _once_ready(self, act: "Callable[[Services], T]") -> T | Coroutine[Any, Any, T]:
        """Act at once where nothing has to be waited for, as nearly always; a coroutine is dear in comparison."""
        services = self._ready()
        return self._later(act) if services is None else act(services)

    async def _later(self, act: "Callable[[Services], T]") -> T:
        return act(await self._started())


def _import_services() -> "type[Services]":
    from plugin.services import Services  # noqa: PLC0415 - see above

    return Services


def _limits(config: Config) -> Limits:
    return Limits(
        max_message_bytes=config.limits.max_message_bytes,
        handlers=config.limits.handlers,
        waiting=config.limits.waiting,
        waiting_bytes=config.limits.waiting_bytes,
    )
