"""One process owns a folder: others wait, say who has it, and take over."""

import asyncio
import os
import subprocess
from pathlib import Path

import pytest

from plugin.clock import SystemClock
from plugin.errors import StoreInUse
from plugin.store.interface import StoreState
from plugin.store.lock import Lock, Owner
from plugin.store.sqlite import open_store
from tests.support.clock import FakeClock
from tests.support.crash import child, hold
from tests.support.stores import PATIENCE_S, opened, put, waiting


async def test_a_second_process_says_who_owns_the_folder_and_takes_over_when_that_ends(tmp_path: Path) -> None:
    async with child(hold, tmp_path) as first:
        assert await first.line() == "ready"
        clock = FakeClock()
        store = open_store(tmp_path, clock=clock)
        call = asyncio.create_task(put(store, "a"))
        ready = asyncio.create_task(store.wait_ready())
        uncontested = asyncio.create_task(store.wait_uncontested())
        await clock.advance(2.0)
        async with asyncio.timeout(PATIENCE_S):
            with pytest.raises(StoreInUse) as refused:
                await call
            with pytest.raises(StoreInUse):
                await store.counts()
        assert refused.value.pid == first.pid
        assert str(first.pid) in refused.value.message
        assert (store.health.state, store.health.pid) == (StoreState.IN_USE, first.pid)
        assert not ready.done()
        assert not uncontested.done()
        await first.kill()
        async with asyncio.timeout(5):
            await asyncio.gather(ready, uncontested)
        assert store.health.state is StoreState.OK
        await put(store, "b")
        assert await waiting(store) == ["from-the-first", "b"]
        await store.close()


async def test_calls_wait_while_a_predecessor_ends(tmp_path: Path) -> None:
    async with opened(tmp_path) as first:
        second = open_store(tmp_path, clock=FakeClock())
        calls = [asyncio.create_task(put(second, name)) for name in "ab"]
        await put(first, "last")
        assert not any(call.done() for call in calls)
    async with asyncio.timeout(PATIENCE_S):
        await asyncio.gather(*calls)
    assert await waiting(second) == ["last", "a", "b"]
    await second.close()


async def test_two_stores_of_one_process_are_two_owners(tmp_path: Path) -> None:
    async with opened(tmp_path):
        clock = FakeClock()
        second = open_store(tmp_path, clock=clock)
        call = asyncio.create_task(second.counts())
        await clock.advance(2.0)
        async with asyncio.timeout(PATIENCE_S):
            with pytest.raises(StoreInUse):
                await call
        await second.close()


async def test_the_lock_names_its_owner(tmp_path: Path) -> None:
    async with opened(tmp_path, clock=FakeClock(now=5000.0)):
        assert Lock(tmp_path / "state.lock").owner() == Owner(pid=os.getpid(), started_at=5000.0, made=True)


def test_a_program_that_the_owner_starts_does_not_inherit_the_lock(tmp_path: Path) -> None:
    lock = Lock(tmp_path / "state.lock")
    assert lock.take()
    assert lock.take()
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, close_fds=False) as program:  # noqa: S607
        assert program.stdin is not None
        assert program.stdout is not None
        program.stdin.write(b"it runs\n")
        program.stdin.flush()
        program.stdout.readline()
        lock.release()
        other = Lock(tmp_path / "state.lock")
        assert other.take()
        other.release()
        program.communicate()


@pytest.mark.parametrize("text", [b"", b"\xff\xfe", b'{"pid":', b'{"pid":"x"}', b"[]"])
def test_a_lock_that_says_nothing_usable_has_no_known_owner(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "state.lock").write_bytes(text)
    assert Lock(tmp_path / "state.lock").owner() == Owner()
    assert Lock(tmp_path / "nowhere").owner() == Owner()


def test_only_the_owner_signs_the_lock(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        Lock(tmp_path / "state.lock").sign(Owner())


async def test_a_shorter_signature_leaves_nothing_of_a_longer_one(tmp_path: Path) -> None:
    (tmp_path / "state.lock").write_bytes(b'{"pid":1,"started_at":1.0,"made":false}' + b" " * 200 + b"garbage")
    async with opened(tmp_path, clock=SystemClock()):
        assert Lock(tmp_path / "state.lock").owner().pid == os.getpid()
