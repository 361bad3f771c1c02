"""Processes that own a store, to be killed, starved or shut out; each program says line by line what it has done."""

import asyncio
import importlib
import itertools
import os
import resource
import shutil
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from plugin.clock import SystemClock
from plugin.errors import StoreUnavailable
from plugin.store import recovery
from plugin.store.interface import Acknowledged, Gate, StoreState
from plugin.store.sqlite import SqliteStore, open_store
from tests.support.stores import NOW_MS, PLATFORM, acknowledge, claim, put, take, waiting

ROOT = Path(__file__).parents[2]
NOBODY = 65534
LIMIT_BYTES = 256 * 1024


class Child:
    """A program of this module in a process of its own."""

    def __init__(self, process: Process) -> None:
        self._process = process

    @property
    def pid(self) -> int:
        return self._process.pid

    async def line(self) -> str:
        """Return the next line that it says; empty when it has ended."""
        assert self._process.stdout is not None
        async with asyncio.timeout(30):
            return (await self._process.stdout.readline()).decode().strip()

    async def rest(self) -> list[str]:
        """Return all lines that it still says, and wait for its end; it must be a good one."""
        lines: list[str] = []
        while line := await self.line():
            lines.append(line)
        assert await self._process.wait() == 0, lines
        return lines

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    async def kill(self) -> list[str]:
        """Kill it without warning; return the lines that it had said."""
        self.signal(signal.SIGKILL)
        lines: list[str] = []
        while line := await self.line():
            lines.append(line)
        await self._process.wait()
        return lines


@asynccontextmanager
async def child(program: Callable[[Path], Awaitable[None]], folder: Path) -> AsyncGenerator[Child]:
    """Start a program of this module on a folder."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.support.crash", program.__name__, str(folder), stdin=PIPE, stdout=PIPE, cwd=ROOT
    )
    try:
        yield Child(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def enqueue_for_ever(folder: Path) -> None:
    """Enqueue from four callers; say each id once its call has returned."""
    store = await _open(folder)

    async def caller(name: str) -> None:
        number = 0
        while True:
            number += 1
            await put(store, f"{name}-{number}", size=2000)
            _say(f"{name}-{number}")

    await asyncio.gather(*(caller(name) for name in "abcd"))


async def send_for_ever(folder: Path) -> None:
    """Enqueue, claim and acknowledge; say what is to be sent before it would be, and what was acknowledged."""
    store = await _open(folder)
    number = 0
    while True:
        names = [f"r{number + place}" for place in range(7)]
        number += 7
        await put(store, *names)
        for name in names:
            _say(f"stored {name}")
        batch = await take(store, max_records=5)
        _say(f"sent {batch.key} {','.join(batch.record_ids)}")
        await acknowledge(store, batch)
        for name in batch.record_ids:
            _say(f"acknowledged {name}")


async def hold(folder: Path) -> None:
    """Own the folder until told to end."""
    store = await _open(folder)
    await put(store, "from-the-first")
    _say("ready")
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


async def leave_open(folder: Path) -> None:
    """End without closing the store, while a call is under way."""
    store = await _open(folder)
    await put(store, "a")
    asyncio.ensure_future(put(store, "b")).add_done_callback(lambda _: None)
    await asyncio.sleep(0)
    _say("ended")


async def fill_disk(folder: Path) -> None:
    """Fill the disk, go on sending, and recover once there is room; say each step that held."""
    store = await _open(folder)
    limit, most = LIMIT_BYTES, resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    # More lies in the log than the file may grow by: nothing that is set aside helps then.
    stored = 2 * limit // 3000
    await asyncio.gather(*(put(store, f"r{number}", size=3000) for number in range(stored)))
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, most))
    while True:
        try:
            await put(store, f"r{stored}", size=3000)
        except StoreUnavailable as error:
            _say(f"refused {error.kind} {store.health.state}")
            break
        stored += 1
    assert [row.record_id for row in await store.rows()] == [f"r{number}" for number in range(stored)]
    batch = await claim(store, max_records=4)
    assert batch is not None
    assert batch.record_ids == ("r0", "r1", "r2", "r3")
    again = await claim(store, max_records=4)
    assert again is not None
    assert again.key == batch.key
    _say("claimed")
    change = Acknowledged(synced=4, payload_bytes=12_000)
    try:
        await store.record(batch, change, platform=PLATFORM, gate=Gate(passes=1), now_ms=NOW_MS)
    except StoreUnavailable:
        _say("held")
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    # What could not be recorded was sent all the same: it must not come back with other members.
    await put(store, "new")
    assert await take(store) == batch
    await store.record(batch, change, platform=PLATFORM, gate=Gate(passes=1), now_ms=NOW_MS)
    assert store.health.state is StoreState.OK
    assert await waiting(store) == [*(f"r{number}" for number in range(4, stored)), "new"]
    await put(store, "after")
    await store.close()
    _say("recovered")


async def live_read_only(folder: Path) -> None:
    """Look at a folder that cannot be written to; say what is there, and recover once it can be."""
    # Imported by pathlib when it is first asked for a URI: from then on the interpreter may be out of reach.
    importlib.import_module("urllib.parse")
    if os.geteuid() == 0:
        # The superuser may write everywhere.
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    store = open_store(folder, clock=SystemClock())
    try:
        await put(store, "new")
    except StoreUnavailable as error:
        _say(f"refused {error.kind} {store.health.state}")
    try:
        _say(f"read {','.join(await waiting(store))}")
    except StoreUnavailable:
        _say("unreadable")
    await store.wait_ready()
    await put(store, "new")
    _say(f"{store.health.state} {','.join(await waiting(store))}")
    await store.close()


class Death(BaseException):
    """The end of a process, as far as its disk can tell."""


async def die_while_salvaging(folder: Path) -> None:
    """Salvage copies of a damaged folder, each dying one step on the disk later; say what was found after each."""
    left: list[int] = []

    def step(event: str, _: object) -> None:
        if left and event in {"open", "os.mkdir", "os.rename", "os.remove", "sqlite3.connect"}:
            left[0] -= 1
            # From then on nothing happens any more, whatever is tried.
            if left[0] < 0:
                raise Death

    sys.addaudithook(step)
    for steps in itertools.count():
        copy = folder.with_name(f"{folder.name}-{steps}")
        shutil.copytree(folder, copy)
        died = False
        left.append(steps)
        try:
            recovery.replace(copy, now=NOW_MS / 1000)
        except Death:
            died = True
        left.clear()
        store = await _open(copy)
        found, health = await store.rows(), store.health
        await store.close()
        _say(f"{health.state} {len(found)} {sum(1 for _ in copy.glob('agentic-sync.[!r]*'))}")
        if not died:
            return


async def _open(folder: Path) -> SqliteStore:
    store = open_store(folder, clock=SystemClock())
    await store.wait_ready()
    return store


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


PROGRAMS = {
    program.__name__: program
    for program in (enqueue_for_ever, send_for_ever, hold, leave_open, fill_disk, live_read_only, die_while_salvaging)
}

if __name__ == "__main__":
    asyncio.run(PROGRAMS[sys.argv[1]](Path(sys.argv[2])))
