"""A method table whose handlers do what a test tells them to, and say how far they are."""

import asyncio
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from msgspec import Struct

from protocol.methods import Context, Method, MethodTable
from tests.support.wires import PATIENCE_S, Json


class Nothing(Struct, frozen=True):
    pass


class Named(Struct, frozen=True):
    name: str = "one"


class Text(Struct, frozen=True, kw_only=True):
    text: str
    times: int = 1


class Stage:
    """Handlers that meet the test at events, by name.

    `hold` waits for its release; `stubborn` ignores cancels until it is released, and then returns; `slow_to_die`
    takes its release to clean up after a cancel; `ask` calls the other side, as `name` says; `fail` raises.
    """

    def __init__(self) -> None:
        self.entered: list[str] = []
        self.cancelled: list[str] = []
        self.noted: list[str] = []
        self.most_at_once = 0
        self._inside = 0
        self._releases: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self._changed = asyncio.Event()  # a pulse
        self.error: Exception = RuntimeError("a secret")

    def release(self, *names: str) -> None:
        for name in names:
            self._releases[name].set()

    async def wait_entered(self, *names: str) -> None:
        await self._wait(lambda: set(names) <= set(self.entered))

    async def wait_cancelled(self, *names: str) -> None:
        await self._wait(lambda: set(names) <= set(self.cancelled))

    async def wait_noted(self, count: int) -> None:
        await self._wait(lambda: len(self.noted) >= count)

    async def _wait(self, ready: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not ready():
                await self._changed.wait()

    def say(self, where: list[str], name: str) -> None:
        where.append(name)
        self._changed.set()
        self._changed.clear()

    async def hold(self, _context: Context, params: Named) -> str:
        self._inside += 1
        self.most_at_once = max(self.most_at_once, self._inside)
        try:
            self.say(self.entered, params.name)
            await self._releases[params.name].wait()
        except asyncio.CancelledError:
            self.say(self.cancelled, params.name)
            raise
        finally:
            self._inside -= 1
        return params.name

    async def stubborn(self, _context: Context, params: Named) -> str:
        self.say(self.entered, params.name)
        end = asyncio.get_running_loop().time() + PATIENCE_S  # a test that fails must end all the same
        while not self._releases[params.name].is_set() and asyncio.get_running_loop().time() < end:
            try:
                async with asyncio.timeout_at(end):
                    await self._releases[params.name].wait()
            except asyncio.CancelledError:
                self.say(self.cancelled, params.name)
        return params.name

    async def slow_to_die(self, _context: Context, params: Named) -> str:
        self.say(self.entered, params.name)
        try:
            await self._releases[params.name].wait()
        except asyncio.CancelledError:
            self.say(self.cancelled, params.name)
            async with asyncio.timeout(PATIENCE_S):
                await self._releases[params.name].wait()
            raise
        return params.name

    async def ask(self, context: Context, params: Named) -> str:
        self.say(self.entered, params.name)
        return await context.peer.call(params.name, timeout_s=PATIENCE_S, result=str)

    async def echo(self, _context: Context, params: Text) -> str:
        return params.text * params.times

    async def note(self, _context: Context, params: Named) -> None:
        self.say(self.noted, params.name)

    async def fail(self, _context: Context, _params: Nothing) -> None:
        raise self.error

    def ping(self, _context: Context, _params: Nothing) -> Nothing:
        return Nothing()

    def table(self, *more: Method[Any]) -> MethodTable:
        return MethodTable(
            [
                Method(name="hold", handler=self.hold, params=Named, result=str),
                Method(name="stubborn", handler=self.stubborn, params=Named, result=str),
                Method(name="slow_to_die", handler=self.slow_to_die, params=Named, result=str),
                Method(name="ask", handler=self.ask, params=Named, result=str),
                Method(name="echo", handler=self.echo, params=Text, result=str, aliases=("same",)),
                Method(name="note", handler=self.note, params=Named, notification=True),
                Method(name="fail", handler=self.fail, params=Nothing),
                Method(name="ping", handler=self.ping, params=Nothing, result=Nothing, urgent=True),
                *more,
            ]
        )


class Listener:
    """The other side, as a list of what it was told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, object]] = []

    async def call(self, method: str, params: object = None, *, timeout_s: float, result: type[object]) -> Json:
        raise NotImplementedError

    async def notify(self, method: str, params: object = None) -> None:
        self.told.append((method, params))

    def notify_soon(self, method: str, params: object = None) -> bool:
        self.told.append((method, params))
        return True
