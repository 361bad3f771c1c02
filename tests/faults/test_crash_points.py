"""The process is killed once at each step that changes what is on the disk or on the wire; then it starts again."""

import asyncio
import contextlib
import json
import signal
import sqlite3
import sys
from asyncio.subprocess import PIPE
from collections import Counter
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from plugin.crash import VARIABLE
from plugin.loopback.host import LoopbackHost
from protocol.errors import RpcError
from tests.support.fleet import TOKEN, Fleet, environment, field, fleet_on_loopback
from tests.support.oracle import Oracle, shown

PUSHING = ["enqueue.written:2", "enqueue.committed:2"]
SENDING = [
    "batch.written",
    "batch.committed",
    "request.formed",
    "request.answered",
    "record.begun",
    "record.written",
    "record.committed",
]
IMPORTING = ["import.read", "import.written", "import.committed"]
SALVAGING = ["migrate.written", "migrate.committed", "folder.changed", "folder.changed:2", "folder.changed:3"]
ROOT = Path(__file__).parents[2]


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncGenerator[Fleet]:
    async with fleet_on_loopback(tmp_path) as fleet:
        yield fleet


async def run_until_it_is_killed(fleet: Fleet, oracle: Oracle, point: str) -> None:
    """Queue two pushes without a token, then let the token appear; the armed process dies on the way."""
    token_file = fleet.folder / "token"
    platform = {"base_url": fleet.platform.url, "api_key_file": str(token_file)}
    host = fleet.host(environ={VARIABLE: point}, platform=platform)
    with contextlib.suppress(RpcError):  # it died before it could answer
        await host.start()
        await oracle.push(host, oracle.make(3))
        await oracle.push(host, oracle.make(3), agent="other")
        token_file.write_text(TOKEN)
        await oracle.push(host, oracle.make(3))
    async with asyncio.timeout(20):
        assert await host.process.wait() == -signal.SIGKILL
    await host.kill()


@pytest.mark.parametrize("point", [*PUSHING, *SENDING, "migrate.written", "migrate.committed"])
async def test_killed_at_any_step_of_taking_and_sending_it_loses_doubles_and_alters_nothing(
    fleet: Fleet, point: str
) -> None:
    oracle = Oracle(fleet.platform)
    await run_until_it_is_killed(fleet, oracle, point)
    if not point.startswith("migrate"):
        assert oracle.owed
    sent = fleet.platform.pushes
    token_file = fleet.folder / "token"
    token_file.unlink(missing_ok=True)
    async with fleet.host(platform={"base_url": fleet.platform.url, "api_key_file": str(token_file)}) as host:
        # There before anything is sent again, it must not join a batch that was sent.
        for agent in ("fleet", "other"):
            await oracle.push(host, oracle.make(), agent=agent)
        token_file.write_text(TOKEN)
        verdict = await oracle.holds(host)
        await shown(fleet, host)
        for agent in ("fleet", "other"):  # returns once everything of the agent is recorded
            await host.call("agentic.sync.push", {"agent_id": agent, "queue_only": True})
        status = await host.call("agentic.sync.status")
        assert field(field(status, "store"), "state") == "ok"
        assert (field(status, "queued"), field(status, "bytes")) == (0, 0)
    assert verdict.kept
    assert not verdict.doubled
    if point == "record.committed":
        again = {arrival.key for arrival in fleet.platform.pushes[len(sent) :]}
        assert any(arrival.key not in again for arrival in sent)


@pytest.mark.parametrize("point", IMPORTING)
async def test_killed_at_any_step_of_taking_over_the_go_agents_queue_it_takes_it_once(fleet: Fleet, point: str) -> None:
    oracle = Oracle(fleet.platform)
    left = oracle.make(3)
    oracle.owe(left)
    folder = fleet.folder / "root" / "sync"
    folder.mkdir(parents=True)
    entry = {"agent_id": "codex", "dispatches": left, "queued_at": "2026-04-14T12:00:00Z"}
    (folder / "queue.json").write_text(json.dumps([entry]))
    await start_and_die(fleet.host(environ={VARIABLE: point}))
    for _ in range(2):
        async with fleet.host() as host:
            await host.call("agentic.sync.push", {"agent_id": "codex"})  # returns once all that was taken over is out
            verdict = await oracle.holds(host)
            assert verdict.kept
    assert set(Counter(id_ for arrival in fleet.platform.pushes for id_ in arrival.ids).values()) == {1}


@pytest.mark.parametrize("point", SALVAGING)
async def test_killed_at_any_step_of_a_salvage_it_carries_it_on_and_loses_nothing(fleet: Fleet, point: str) -> None:
    oracle = Oracle(fleet.platform)
    async with fleet.host(platform={"base_url": fleet.platform.url, "api_key_file": "/nowhere"}) as host:
        await oracle.push(host, oracle.make(20))
    store = fleet.folder / "root" / "sync" / "agentic-sync.db"
    take_the_header(store)
    await start_and_die(fleet.host(environ={VARIABLE: point}))
    async with fleet.host() as host:
        verdict = await oracle.holds(host)
    assert verdict.kept
    assert not verdict.doubled
    assert len(list(store.parent.glob("agentic-sync.corrupt-*"))) == 1


@pytest.mark.parametrize("point", ["migrate.saved", "migrate.written", "migrate.committed"])
async def test_killed_at_any_step_of_a_migration_it_migrates_at_the_next_start(fleet: Fleet, point: str) -> None:
    oracle = Oracle(fleet.platform)
    async with fleet.host(platform={"base_url": fleet.platform.url, "api_key_file": "/nowhere"}) as host:
        await oracle.push(host, oracle.make(20))
    folder = fleet.folder / "root" / "sync"
    assert await migrate_to_a_next_version(folder, point) == -signal.SIGKILL
    assert await migrate_to_a_next_version(folder, "") == 0
    with sqlite3.connect(folder / "agentic-sync.db") as db:
        assert db.execute("SELECT note FROM next").fetchall() == [("made",)]
        assert {id_ for (id_,) in db.execute("SELECT record FROM outbox")} == oracle.owed
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    db.close()


async def test_a_point_ends_the_process_under_its_own_name_and_in_its_turn(tmp_path: Path) -> None:
    armed = environment(tmp_path, **{VARIABLE: "record.written:3"})
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", PASSING, cwd=ROOT, env=armed, stdout=PIPE)
    async with asyncio.timeout(20):
        said, _ = await process.communicate()
    assert (said.split(), process.returncode) == ([b"twice", b"still"], -signal.SIGKILL)


async def start_and_die(host: LoopbackHost) -> None:
    """Start an armed plugin that comes to its point by itself."""
    with contextlib.suppress(RpcError):  # it may die before it could answer
        await host.start()
    async with asyncio.timeout(20):
        assert await host.process.wait() == -signal.SIGKILL
    await host.kill()


PASSING = """
from plugin.crash import point

for _ in range(2):
    point("record.written")
    point("record.committed")
print("twice", flush=True)
point("record.committed")
print("still", flush=True)
point("record.written")
print("after")
"""
NEXT_VERSION = """
import sys
from pathlib import Path
from plugin.store import file, schema

def step(db):
    db.execute("CREATE TABLE next (note TEXT) STRICT")
    db.execute("INSERT INTO next VALUES ('made')")

folder = Path(sys.argv[1])
db = file.connect(folder / file.NAME, mode="rw")
schema.migrate(db, backup=folder / "backup", steps=(*schema.STEPS, step))
db.close()
"""


async def migrate_to_a_next_version(folder: Path, point: str) -> int:
    """Open the store as a version with one more step would."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", NEXT_VERSION, str(folder), cwd=ROOT, env=environment(folder, **{VARIABLE: point})
    )
    async with asyncio.timeout(20):
        return await process.wait()


def take_the_header(store: Path) -> None:
    """Damage the file so that all its rows are still there."""
    store.write_bytes(bytes(100) + store.read_bytes()[100:])
