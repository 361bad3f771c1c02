"""What the rows of sync stand on: a folder on a disk, the plugin as a host launches it, a platform beside it."""

import asyncio
import os
import sys
import tempfile
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from bench.platform import TOKEN
from plugin.clock import SystemClock
from plugin.loopback.host import LoopbackHost
from plugin.store.interface import Record
from plugin.store.sqlite import SqliteStore, open_store
from plugin.sync.record import make_record

OURS = ("AGENT", "CORE_", "XDG_")  # settings of the person who measures, which must not reach into it
NO_CAPS = {"queue": {"max_records": 10_000_000, "max_bytes": 1 << 40}}
READY_S = 30.0


@contextmanager
def folder() -> Generator[Path]:
    """Make a folder that is gone afterwards; not in /tmp, which is often in memory, where a sync costs nothing."""
    disk = Path("/var/tmp")  # noqa: S108 - a folder of our own is made in it
    with tempfile.TemporaryDirectory(prefix="agentic-sync-bench-", dir=disk if disk.is_dir() else None) as name:
        yield Path(name)


def config(home: Path, url: str | None = None, **parts: object) -> dict[str, object]:
    """Return a host's configuration; without a platform's URL there is no token, and what is queued stays."""
    platform = {"base_url": "http://127.0.0.1:9"} if url is None else {"base_url": url, "api_key": TOKEN}
    return {"agent_id": "bench", "root": str(home / "root"), "platform": platform, **NO_CAPS, **parts}


@asynccontextmanager
async def launched(home: Path, url: str | None = None, **parts: object) -> AsyncGenerator[LoopbackHost]:
    """Launch the plugin by its manifest's command, wait until it serves, and shut it down in the end."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    async with LoopbackHost(environ={**clean, "HOME": str(home)}, config=config(home, url, **parts)) as host:
        await host.call("agentic.sync.push", {"agent_id": "nobody", "queue_only": True})
        yield host


@asynccontextmanager
async def serving(records: int = 0) -> AsyncGenerator[tuple[str, asyncio.StreamReader]]:
    """Start a platform; yield its URL, and a stream with a line once it has so many records."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.platform", str(records), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(READY_S):
            url = (await process.stdout.readline()).decode().strip()
        yield url, process.stdout
    finally:
        process.kill()
        await process.wait()


@asynccontextmanager
async def opened(home: Path) -> AsyncGenerator[SqliteStore]:
    """Open the product's own store in this process."""
    store = open_store(home, clock=SystemClock())
    try:
        async with asyncio.timeout(READY_S):
            await store.wait_ready()
        yield store
    finally:
        await store.close()


def work(number: int) -> dict[str, object]:
    """Return a piece of finished work whose record has about 300 bytes."""
    name = f"core/go-io/task-{number}"
    return {
        "id": name,
        "workspace": name,
        "repo": "go-io",
        "org": "core",
        "agent": "codex",
        "branch": f"agent/task-{number}",
        "status": "completed",
        "task": "Close the file when the reader is cancelled, and say so in the log",
        "updated_at": "2026-04-14T12:00:00Z",
        "runs": 1,
    }


def records(numbers: Sequence[int]) -> list[Record]:
    """Return the records of pieces of work, as the plugin makes them."""
    return [make_record(work(number)) for number in numbers]


async def fill(host: LoopbackHost, agents: Sequence[str], count: int, *, start: int = 0) -> None:
    """Queue so many pieces of work for agents in turn, 500 a call."""
    for first in range(start, start + count, 500):
        numbers = range(first, min(first + 500, start + count))
        agent = agents[first // 500 % len(agents)]
        given = {"agent_id": agent, "queue_only": True, "dispatches": [work(number) for number in numbers]}
        await host.call("agentic.sync.push", given, timeout_s=120.0)
