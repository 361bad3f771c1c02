"""A disk that is full, and one that may only be read: with a real process, and a real disk that is so."""

import asyncio
import contextlib
import errno
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from io import FileIO
from pathlib import Path

import pytest

from plugin.launch import find
from plugin.loopback.host import LoopbackHost
from protocol.errors import RpcError
from tests.support.fleet import TOKEN, Fleet, field, fleet_on_loopback
from tests.support.oracle import DELIVERY_S, Oracle, shown

UNAVAILABLE = -32017
SMALL_BYTES = 32 * 1024 * 1024
AGENTS = ("amy", "bob", "claude", "codex")
EACH, ONE_PUSH = 500, 50
MOST_PUSHES = 200  # more than what still fits anywhere
BIG, LARGE = 50_000, 900_000


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncGenerator[Fleet]:
    (tmp_path / "root" / "sync").mkdir(parents=True, mode=0o700)
    async with fleet_on_loopback(tmp_path) as fleet:
        yield fleet


Fill = Callable[[LoopbackHost], Callable[[], None]]
Small = Callable[[Path], AbstractContextManager[Fill]]


@contextmanager
def small_disk(folder: Path) -> Generator[Fill]:
    """Have a small file system of its own there, which another program fills to the last byte."""
    mount, umount = shutil.which("mount"), shutil.which("umount")
    if mount is None or umount is None or os.geteuid() != 0:
        pytest.skip("only root may mount a file system")
    done = subprocess.run(
        [mount, "-t", "tmpfs", "-o", f"size={SMALL_BYTES},mode=0700", "none", folder], check=False, capture_output=True
    )
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr!r}")
    ballast = folder / "ballast"

    def fill(_host: LoopbackHost) -> Callable[[], None]:
        with ballast.open("ab", buffering=0) as file:
            for size in (65_536, 4_096, 1):
                while fits(file, size):
                    pass
        return ballast.unlink

    try:
        yield fill
    finally:
        subprocess.run([umount, "-l", folder], check=True)


def fits(file: FileIO, size: int) -> bool:
    try:
        return file.write(bytes(size)) > 0
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        return False


@contextmanager
def small_files(folder: Path) -> Generator[Fill]:
    """Limit how large the process may make a file."""

    def fill(host: LoopbackHost) -> Callable[[], None]:
        _, hard = resource.prlimit(host.pid, resource.RLIMIT_FSIZE)
        largest = sum((folder / f"agentic-sync.db{end}").stat().st_size for end in ("", "-wal"))
        resource.prlimit(host.pid, resource.RLIMIT_FSIZE, (largest, hard))

        def free() -> None:
            resource.prlimit(host.pid, resource.RLIMIT_FSIZE, (hard, hard))

        return free

    yield fill


@pytest.mark.parametrize("small", [small_disk, small_files])
async def test_on_a_full_disk_pushes_are_refused_all_that_was_queued_goes_out_and_room_is_noticed(
    fleet: Fleet, small: Small
) -> None:
    oracle = Oracle(fleet.platform)
    with small(fleet.folder / "root" / "sync") as fill:
        async with fleet.host(platform=with_token_file(fleet)) as host:
            queued = await queue_much(oracle, host)
            free = fill(host)
            await refused(oracle, host, size=BIG)
            queued |= oracle.owed
            await send(fleet, host)
            await oracle.delivered(of=queued)
            await drained(host)
            await host.set_state("codex", "busy")
            await shown(fleet, host)
            free()
            await host.wait_for_log(lambda line: line.message.startswith("the store can be used"))
            verdict = await oracle.holds(host)
            await drained(host)
            assert await store_state(host) == "ok"
    assert verdict.kept
    assert not verdict.doubled
    assert sent_once(fleet)


async def test_the_room_in_which_the_queue_drains_is_not_for_new_work(fleet: Fleet) -> None:
    oracle = Oracle(fleet.platform)
    with small_disk(fleet.folder / "root" / "sync") as fill:
        async with fleet.host(platform=with_token_file(fleet)) as host:
            queued = await queue_much(oracle, host)
            free = fill(host)
            await refused(oracle, host, size=BIG)
            await send(fleet, host)
            await oracle.delivered(of=queued)
            await refused(oracle, host)
            assert await store_state(host) == "full"
            free()
            # Nothing else is written meanwhile: it looks for room by itself.
            await host.wait_for_log(lambda line: line.message.startswith("the store can be used"))
            assert await store_state(host) == "ok"


@pytest.mark.parametrize("end", ["stopped", "killed"])
async def test_started_anew_on_a_full_disk_it_sends_the_rest_and_nothing_twice(fleet: Fleet, end: str) -> None:
    oracle = Oracle(fleet.platform)
    with small_disk(fleet.folder / "root" / "sync") as fill:
        async with fleet.host(platform=with_token_file(fleet)) as host:
            queued = await queue_much(oracle, host)
            free = fill(host)
            await refused(oracle, host, size=BIG)
            await send(fleet, host)
            await fleet.platform.wait_until(lambda platform: len(platform.records) >= len(queued) // 4)
            if end == "killed":
                await host.kill()
        if end == "stopped":  # a stop gives room back, which others take
            fill(host)
        async with fleet.host() as host:
            await oracle.delivered(of=queued)
            await drained(host)
            await refused(oracle, host)
            assert await store_state(host) == "full"
            free()
            verdict = await oracle.holds(host)
            assert await store_state(host) == "ok"
    assert verdict.kept
    assert not verdict.doubled


async def test_a_disk_that_its_own_queue_filled_is_used_again_once_that_is_sent(fleet: Fleet) -> None:
    oracle = Oracle(fleet.platform)
    with small_disk(fleet.folder / "root" / "sync"):
        async with fleet.host(platform=with_token_file(fleet)) as host:
            await refused(oracle, host, size=LARGE)
            queued = set(oracle.owed)
            await send(fleet, host)
            await oracle.delivered(of=queued)
            await drained(host)
            await refused_no_more(oracle, host)
            verdict = await oracle.holds(host)
    assert verdict.kept
    assert sent_once(fleet)


async def test_with_its_room_taken_by_others_it_sends_what_it_can_remember_and_the_rest_once_there_is_room(
    fleet: Fleet,
) -> None:
    oracle = Oracle(fleet.platform)
    folder = fleet.folder / "root" / "sync"
    with small_disk(folder) as fill:
        async with fleet.host(platform=with_token_file(fleet)) as host:
            for agent in ("claude", "codex"):
                await oracle.push(host, oracle.make(40, size=1_000), agent=agent)
            at_once = set(oracle.owed)
            for agent in ("claude", "codex"):
                await oracle.push(host, oracle.make(40, size=1_000), agent=agent)
            (folder / "agentic-sync.reserve").unlink()
            free = fill(host)
            await refused(oracle, host, size=BIG)
            await send(fleet, host)
            await oracle.delivered(of=at_once)
            assert await store_state(host) == "full"
            free()
            verdict = await oracle.holds(host)
            await drained(host)  # what was held in memory is recorded now
            assert await store_state(host) == "ok"
    assert verdict.kept
    assert not verdict.doubled
    assert sent_once(fleet)


async def test_in_a_folder_that_it_may_only_read_it_serves_what_it_has_and_refuses_pushes(fleet: Fleet) -> None:
    oracle = Oracle(fleet.platform)
    fleet.platform.context_rows = [{"id": "row-1", "content": "known"}]
    folder = fleet.folder / "root" / "sync"
    async with fleet.host() as host:
        await host.call("agentic.sync.pull")
    async with fleet.host(platform={"base_url": fleet.platform.url, "api_key_file": "/nowhere"}) as host:
        await oracle.push(host, oracle.make(5))
    await fleet.platform.down()
    with read_only(folder):
        async with fleet.host(manifest_path=without_privileges(fleet.folder)) as host:
            with pytest.raises(RpcError) as refused:
                await oracle.push(host, oracle.make())
            assert refused.value.code == UNAVAILABLE
            assert str(folder) in refused.value.message
            pulled = await host.call("agentic.sync.pull")
            assert (field(pulled, "count"), field(pulled, "stale")) == (1, True)
            status = await host.call("agentic.sync.status")
            assert field(field(status, "store"), "state") == "read_only"
            assert field(status, "queued") == 5
            await shown(fleet, host)
    await fleet.platform.up()
    async with fleet.host() as host:
        verdict = await oracle.holds(host)
    assert verdict.kept
    assert not verdict.doubled


def with_token_file(fleet: Fleet) -> dict[str, object]:
    """Have the plugin wait for a token, that nothing is sent before."""
    return {"base_url": fleet.platform.url, "api_key_file": str(fleet.folder / "token")}


async def send(fleet: Fleet, host: LoopbackHost) -> None:
    (fleet.folder / "token").write_text(TOKEN)
    await host.call("agentic.sync.pull")  # which sees the token


async def queue_much(oracle: Oracle, host: LoopbackHost) -> set[str]:
    for _ in range(EACH // ONE_PUSH):
        for agent in AGENTS:
            await oracle.push(host, oracle.make(ONE_PUSH, size=1_000), agent=agent)
    return set(oracle.owed)


async def refused(oracle: Oracle, host: LoopbackHost, *, size: int = 20) -> None:
    """Push until there is no room for it; that must be said."""
    for _ in range(MOST_PUSHES if size >= BIG else 1):
        try:
            await oracle.push(host, oracle.make(size=size))
        except RpcError as refusal:
            error = refusal
            break
    else:
        raise AssertionError("there was room")
    assert error.code == UNAVAILABLE
    assert field(error.data, "retryable") is True


async def refused_no_more(oracle: Oracle, host: LoopbackHost) -> None:
    async with asyncio.timeout(DELIVERY_S):
        while True:
            with contextlib.suppress(RpcError):
                await oracle.push(host, oracle.make(size=LARGE))
                return
            await asyncio.sleep(0.2)


async def store_state(host: LoopbackHost) -> object:
    return field(field(await host.call("agentic.sync.status"), "store"), "state")


async def drained(host: LoopbackHost) -> None:
    """Wait until all that was sent is recorded, too."""
    async with asyncio.timeout(DELIVERY_S):
        for agent in AGENTS:
            params = {"agent_id": agent, "queue_only": True}
            while field(await host.call("agentic.sync.push", params, timeout_s=DELIVERY_S), "queued"):
                pass


def sent_once(fleet: Fleet) -> bool:
    """Say whether no request was made again."""
    keys = [push.key for push in fleet.platform.pushes]
    return len(keys) == len(set(keys))


@contextmanager
def read_only(folder: Path) -> Generator[None]:
    for path in folder.iterdir():
        path.chmod(0o400)
    folder.chmod(0o500)
    try:
        yield
    finally:
        folder.chmod(0o700)
        for path in folder.iterdir():
            path.chmod(0o600)


def without_privileges(folder: Path) -> Path:
    """Write a manifest that launches the plugin bound by permissions, which root alone is not."""
    manifest = json.loads(find().read_text())
    runtime = manifest["runtime"]
    runtime["cwd"] = str(find().parent)
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("root needs setpriv to give its privileges away")
        place = Path(sys.executable).with_name(runtime["command"])
        runtime["args"] = ["--bounding-set=-all", "--inh-caps=-all", str(place), *runtime["args"]]
        runtime["command"] = "setpriv"
    path = folder / "manifest.json"
    path.write_text(json.dumps(manifest))
    return path
