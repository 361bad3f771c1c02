"""The demo's audit must see what is wrong; a demo that cannot fail shows nothing."""

from dataclasses import replace
from pathlib import Path

from plugin.demo.world import World
from plugin.loopback.platform import Record


def verdicts(world: World) -> dict[str, bool]:
    return {check.name: check.good for check in world.audit()}


async def delivered(world: World) -> None:
    world.finish_workspaces(3)
    world.platform.records += [
        Record(id=name, agent="fleet", body=body, key="k", arrival=0) for name, body in world.made.items()
    ]


async def test_the_audit_is_content_when_every_record_is_there_once_as_it_was_made(tmp_path: Path) -> None:
    world = World(tmp_path, seed=1)
    await delivered(world)
    found = verdicts(world)
    assert found["finished work on the platform"]
    assert found["doubled, altered, unknown"]


async def test_the_audit_sees_a_record_that_is_missing(tmp_path: Path) -> None:
    world = World(tmp_path, seed=1)
    await delivered(world)
    world.platform.records.pop()
    assert not verdicts(world)["finished work on the platform"]


async def test_the_audit_sees_a_record_that_is_doubled(tmp_path: Path) -> None:
    world = World(tmp_path, seed=1)
    await delivered(world)
    world.platform.records.append(world.platform.records[0])
    assert not verdicts(world)["doubled, altered, unknown"]


async def test_the_audit_sees_a_record_that_is_altered(tmp_path: Path) -> None:
    world = World(tmp_path, seed=1)
    await delivered(world)
    first = world.platform.records[0]
    world.platform.records[0] = replace(first, body={**first.body, "status": "failed"})
    assert not verdicts(world)["doubled, altered, unknown"]


async def test_the_audit_sees_a_record_that_nobody_made(tmp_path: Path) -> None:
    world = World(tmp_path, seed=1)
    await delivered(world)
    world.platform.records.append(replace(world.platform.records[0], id="stranger"))
    assert not verdicts(world)["doubled, altered, unknown"]
