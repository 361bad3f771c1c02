"""A disk that is full, and one that may only be read: with a real process, and a real disk that is so."""

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
from tests.support.oracle import Oracle, shown

UNAVAILABLE = -32017
SMALL_BYTES = 12 * 1024 * 1024
MOST_PUSHES = 200  # more than what still fits anywhere
BIG = 50_000


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncGenerator[Fleet]:
    (tmp_path / "root" / "sync").mkdir(parents=True, mode=0o700)
    async with fleet_on_loopback(tmp_path) as fleet:
        yield fleet


Fill = Callable[[LoopbackHost], Callable[[], None]]


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
        with ballast.open("wb", buffering=0) as file:
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
        largest = max((folder / f"agentic-sync.db{end}").stat().st_size for end in ("", "-wal"))
        resource.prlimit(host.pid, resource.RLIMIT_FSIZE, (largest, hard))

        def free() -> None:
            resource.prlimit(host.pid, resource.RLIMIT_FSIZE, (hard, hard))

        return free

    yield fill


@pytest.mark.parametrize("small", [small_disk, small_files])
async def test_on_a_full_disk_pushes_are_refused_two_agents_batches_go_out_and_room_is_noticed(
    fleet: Fleet, small: Callable[[Path], AbstractContextManager[Fill]]
) -> None:
    oracle = Oracle(fleet.platform)
    token_file = fleet.folder / "token"
    platform = {"base_url": fleet.platform.url, "api_key_file": str(token_file)}
    with small(fleet.folder / "root" / "sync") as fill:
        async with fleet.host(platform=platform) as host:
            for agent in ("claude", "codex"):
                await oracle.push(host, oracle.make(40, size=1_000), agent=agent)
            queued = set(oracle.owed)
            free = fill(host)
            error = await push_until_refused(oracle, host)
            assert error.code == UNAVAILABLE
            assert field(error.data, "retryable") is True
            token_file.write_text(TOKEN)
            await host.call("agentic.sync.pull")  # which sees the token
            await oracle.delivered(of=queued)
            status = await host.call("agentic.sync.status")
            assert field(field(status, "store"), "state") == "full"
            await host.set_state("codex", "busy")
            await shown(fleet, host)
            free()
            await host.wait_for_log(lambda line: line.message.startswith("the store can be used"))
            verdict = await oracle.holds(host)
            for agent in ("claude", "codex"):  # what was held in memory is recorded now
                settled = await host.call("agentic.sync.push", {"agent_id": agent, "queue_only": True})
                assert field(settled, "queued") == 0
            status = await host.call("agentic.sync.status")
            assert field(field(status, "store"), "state") == "ok"
    assert verdict.kept
    assert not verdict.doubled


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


async def push_until_refused(oracle: Oracle, host: LoopbackHost) -> RpcError:
    for _ in range(MOST_PUSHES):
        try:
            await oracle.push(host, oracle.make(size=BIG))
        except RpcError as error:
            return error
    raise AssertionError("the disk was never full")


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
