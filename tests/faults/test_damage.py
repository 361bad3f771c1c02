"""The store's file is not what was left there: the plugin starts, says so, keeps what it found, and goes on."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import cast

import pytest

from protocol.errors import RpcError
from tests.support.fleet import Fleet, field, fleet_on_loopback
from tests.support.oracle import Oracle, shown

RECORDS = 200
START_S = 5.0 + 5.0  # what is promised, and room for a busy machine
NAME = "agentic-sync.db"
PAGE = 4096
VERSION_AT = 60  # where SQLite keeps user_version


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncGenerator[Fleet]:
    async with fleet_on_loopback(tmp_path) as fleet:
        yield fleet


async def queue_some(fleet: Fleet) -> tuple[Oracle, Path]:
    """Leave a store with work in it."""
    oracle = Oracle(fleet.platform)
    async with fleet.host(platform={"base_url": fleet.platform.url, "api_key_file": "/nowhere"}) as host:
        await oracle.push(host, oracle.make(RECORDS, size=500))
    return oracle, fleet.folder / "root" / "sync" / NAME


def garbage(store: Path) -> None:
    store.write_bytes(b"no database " * 1000)


def cut_short(store: Path) -> None:
    store.write_bytes(store.read_bytes()[: store.stat().st_size // 3])


def without_its_header(store: Path) -> None:
    store.write_bytes(bytes(100) + store.read_bytes()[100:])


def a_hole(store: Path) -> None:
    """Take one page of bodies out of the middle."""
    data = bytearray(store.read_bytes())
    pages = [at for at in range(0, len(data), PAGE) if b"x" * 400 in data[at : at + PAGE]]
    middle = pages[len(pages) // 2]
    data[middle : middle + PAGE] = bytes(PAGE)
    store.write_bytes(data)


@pytest.mark.parametrize("damage", [garbage, cut_short, without_its_header, a_hole])
async def test_a_damaged_store_is_set_aside_as_it_was_and_the_plugin_goes_on(
    fleet: Fleet, damage: Callable[[Path], None]
) -> None:
    oracle, store = await queue_some(fleet)
    damage(store)
    damaged = store.read_bytes()
    began_at = time.monotonic()
    async with fleet.host(platform={"base_url": fleet.platform.url, "api_key_file": "/nowhere"}) as host:
        said = field(await host.call("agentic.sync.status"), "store")
        assert time.monotonic() - began_at < START_S
        await shown(fleet, host)
    async with fleet.host() as host:
        async with asyncio.timeout(20):
            while field(await host.call("agentic.sync.push", {"queue_only": True}), "queued"):
                pass  # each call waits until what is queued is settled
        kept = {record.id for record in fleet.platform.records}
        oracle.owed &= kept  # what the damage took cannot come
        verdict = await oracle.holds(host)
    assert field(said, "state") == "recovered"
    assert field(said, "salvaged") == len(kept)
    # What is damaged beyond counting does not tell how much was in it.
    lost = cast("dict[str, object]", said).get("lost")
    assert lost in (None, RECORDS - len(kept))
    if damage is a_hole:
        assert lost
        assert len(kept) > RECORDS / 2
    if damage is without_its_header:
        assert len(kept) == RECORDS
    assert verdict.kept
    assert (Path(str(field(said, "set_aside"))) / NAME).read_bytes() == damaged


@pytest.mark.parametrize("left", [b"", None])
async def test_a_store_that_is_empty_or_gone_is_told_and_the_plugin_goes_on(fleet: Fleet, left: bytes | None) -> None:
    _, store = await queue_some(fleet)
    if left is None:
        store.unlink()
    else:
        store.write_bytes(left)
    async with fleet.host() as host:
        assert field(field(await host.call("agentic.sync.status"), "store"), "state") == "recovered"
        oracle = Oracle(fleet.platform)
        assert (await oracle.holds(host)).kept


async def test_a_newer_store_is_refused_and_left_as_it_is_while_presence_goes_on(fleet: Fleet) -> None:
    oracle, store = await queue_some(fleet)
    newer = bytearray(store.read_bytes())
    newer[VERSION_AT : VERSION_AT + 4] = (1_000).to_bytes(4, "big")
    store.write_bytes(newer)
    async with fleet.host() as host:
        with pytest.raises(RpcError) as refused:
            await oracle.push(host, oracle.make())
        assert refused.value.code == -32017
        assert field(field(await host.call("agentic.sync.status"), "store"), "state") == "unusable"
        await shown(fleet, host)
    assert store.read_bytes() == newer
    assert fleet.platform.records == []
