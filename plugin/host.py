"""What the plugin asks of its host, typed; and the logging handler that speaks to it."""

import asyncio
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Literal, Protocol, TypeAlias, TypeVar

import msgspec

from plugin.clock import Clock
from plugin.config import Host
from plugin.errors import HostCallFailed
from protocol.errors import ProtocolError

T = TypeVar("T")

Level: TypeAlias = Literal["debug", "info", "warn", "error"]


class AgentStates(Protocol):
    """Who can say what an agent is doing."""

    async def read_agent_state(self, agent_id: str) -> str:
        """Return the host's word for the agent's state; raise HostCallFailed when it cannot be had."""
        ...


class ReadAgentStateParams(msgspec.Struct, frozen=True, kw_only=True):
    """Which agent the plugin asks about."""

    agent_id: str


class AgentState(msgspec.Struct, frozen=True, kw_only=True):
    """What an agent is doing: idle, working, busy or offline; other words are skipped and counted."""

    state: str


class LogParams(msgspec.Struct, frozen=True, kw_only=True):
    """One log line; `time` is RFC 3339 in UTC, `fields` says what it is about."""

    level: Level
    message: str
    logger: str
    time: str
    fields: dict[str, object] = {}


class Caller(Protocol):
    """The part of a peer that calls the other side."""

    async def call(self, method: str, params: object, *, timeout_s: float, result: type[T]) -> T:
        """Call a method and return its typed answer; raise a ProtocolError otherwise."""
        ...

    def notify_soon(self, method: str, params: object) -> bool:
        """Queue a notification without waiting; return False when there was no room for it."""
        ...


class HostCalls:
    """Typed calls to the host, under the names that this host gives them."""

    def __init__(self, peer: Caller, config: Host) -> None:
        self._peer = peer
        self._config = config

    def reconfigure(self, config: Host) -> None:
        """Use other method names and another deadline from now on."""
        self._config = config

    async def read_agent_state(self, agent_id: str) -> str:
        """Ask the host what an agent is doing; raise HostCallFailed on an error, a timeout or nonsense."""
        method = self._config.read_agent_state_method
        params = ReadAgentStateParams(agent_id=agent_id)
        try:
            answer = await self._peer.call(method, params, timeout_s=self._config.timeout_s, result=object)
        except ProtocolError as error:
            # What the host says goes into log lines, and so back to it: its beginning is enough.
            said = str(error)[:MAX_ERROR_CHARS]
            raise HostCallFailed(f"{method} for agent {agent_id!r} failed: {said}") from error
        match answer:
            case str(state) | {"state": str(state)}:
                return state
            case _:
                raise HostCallFailed(
                    f'{method} for agent {agent_id!r} was answered without a state: {{"state": "idle"}}'
                )

    def log(self, params: LogParams) -> bool:
        """Send a log line without waiting; return False when there was no room for it."""
        return self._peer.notify_soon(self._config.log_method, params)


MAX_ERROR_CHARS = 200
LEVELS: dict[Level, int] = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "error": logging.ERROR,
}
BURST_LINES = 200
LINES_PER_S = 20.0
MAX_EXCEPTION_CHARS = 4000


class HostLogHandler(logging.Handler):
    """Send log records to the host, at most 20 a second after a burst of 200; what a flood hid is told in one line.

    Records may come from any thread; they are sent from the event loop's.
    """

    def __init__(self, send: Callable[[LogParams], bool], *, loop: asyncio.AbstractEventLoop, clock: Clock) -> None:
        super().__init__()
        self._send = send
        self._loop = loop
        self._clock = clock
        self._tokens = float(BURST_LINES)
        self._filled_at = clock.monotonic()
        self._hidden = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Turn the record into a log line and hand it to the event loop."""
        line = LogParams(
            level=_level_name(record.levelno),
            message=record.getMessage(),
            logger=record.name,
            time=datetime.fromtimestamp(self._clock.now(), UTC).isoformat(timespec="milliseconds"),
            fields=_fields(record),
        )
        try:
            self._loop.call_soon_threadsafe(self._deliver, line)
        except RuntimeError:
            # The loop is closed: the process is past its last message, and nobody is left to read the line.
            return

    def _deliver(self, line: LogParams) -> None:
        now = self._clock.monotonic()
        self._tokens = min(float(BURST_LINES), self._tokens + (now - self._filled_at) * LINES_PER_S)
        self._filled_at = now
        if self._tokens < 1:
            self._hidden += 1
            return
        if self._hidden:
            hidden, self._hidden = self._hidden, 0
            summary = msgspec.structs.replace(
                line, level="warn", message="log lines were left out in a flood", fields={"count": hidden}
            )
            self._count(summary)
        self._count(line)

    def _count(self, line: LogParams) -> None:
        self._tokens -= 1
        if not self._send(line):
            self._hidden += 1


def _level_name(levelno: int) -> Level:
    for name, number in reversed(LEVELS.items()):
        if levelno >= number:
            return name
    return "debug"


def _fields(record: logging.LogRecord) -> dict[str, object]:
    fields: dict[str, object] = dict(getattr(record, "fields", {}))
    if record.exc_info and record.exc_info[0] is not None:
        fields["exception"] = logging.Formatter().formatException(record.exc_info)[-MAX_EXCEPTION_CHARS:]
    return fields
