"""What a call costs, in steps of SQLite's machine: as much with thousands of records as with a few."""

import asyncio
import sqlite3
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from plugin.store.interface import Batch, Dead, Gate, RowState, SetApart
from plugin.store.sqlite import SqliteStore
from tests.support.stores import AGENT, NOW_MS, PLATFORM, acknowledge, opened, put, record, scan, take

FEW, MANY = 30, 4000

Call = Callable[[SqliteStore], Awaitable[object]]


async def steps_of(store: SqliteStore, call: Call) -> int:
    """Count the steps that the database takes for a call."""
    count = 0

    def step() -> None:
        nonlocal count
        count += 1

    def watch(db: sqlite3.Connection) -> None:
        db.set_progress_handler(step, 1)

    def look_away(db: sqlite3.Connection) -> None:
        db.set_progress_handler(None, 1)

    await store.engine.run(watch)
    await call(store)
    await store.engine.run(look_away)
    return count


@asynccontextmanager
async def filled(folder: Path, records: int, *, agents: int = 1) -> AsyncGenerator[SqliteStore]:
    """Open a store that has much delivered and queued, for some agents, and at the very end one apart and one dead."""
    async with opened(folder) as store:
        await put(store, *(f"done{number}" for number in range(records)))
        while (await store.counts()).queued:
            await acknowledge(store, await take(store, max_records=1000))
        for agent in range(agents):
            names = (f"r{agent}-{number}" for number in range(records))
            await put(store, *names, agent=AGENT if agent == 0 else f"agent{agent}")
        await put(store, "apart", "dead", agent="culprit")
        busy = [AGENT, *(f"agent{agent}" for agent in range(1, agents))]
        for change in (SetApart(due_ms=NOW_MS, reason="500"), Dead(reason="no", status=422, answer="")):
            batch = await take(store, *busy, max_records=1)
            await store.record(batch, change, platform=PLATFORM, gate=None, now_ms=NOW_MS)
        yield store


async def send(store: SqliteStore) -> Batch:
    batch = await take(store, max_records=5)
    await acknowledge(store, batch)
    return batch


CALLS: dict[str, Call] = {
    "enqueue": lambda store: put(store, "new"),
    "enqueue what is queued": lambda store: put(store, "r0-3"),
    "enqueue what was scanned": lambda store: scan(store, record("r0-4"), record("done3"), record("scanned")),
    "claim and acknowledge": send,
    "known": lambda store: store.known(PLATFORM, [("r0-5", "x", None), ("done5", "x", "y")]),
    "unsettled": lambda store: store.unsettled(AGENT, up_to_row=10**6),
    "counts": lambda store: store.counts(),
    "counts of an agent": lambda store: store.counts(AGENT),
    "ledger size": lambda store: store.ledger_size(),
    "next due": lambda store: store.next_due_ms(),
    "dead rows": lambda store: store.rows(state=RowState.DEAD),
    "a page of rows": lambda store: store.rows(limit=5),
    "gate": lambda store: store.gate(PLATFORM),
    "drop": lambda store: store.drop_dead(None),
}


async def test_no_call_costs_more_when_much_is_queued_and_delivered(tmp_path: Path) -> None:
    async with filled(tmp_path / "few", FEW) as few, filled(tmp_path / "many", MANY) as many:
        costs = {name: (await steps_of(few, call), await steps_of(many, call)) for name, call in CALLS.items()}
    dearer = {name: cost for name, cost in costs.items() if cost[1] > cost[0] * 1.1 + 20}
    assert dearer == {}


async def test_a_batch_takes_twenty_statements_whatever_its_size(tmp_path: Path) -> None:
    async def sent(records: int) -> list[str]:
        statements: list[str] = []
        await put(store, *(f"{records}-{number}" for number in range(records)))
        await store.engine.run(lambda db: db.set_trace_callback(statements.append))
        await acknowledge(store, await take(store), gate=Gate(passes=1))
        await store.engine.run(lambda db: db.set_trace_callback(None))
        assert (await store.counts()).queued == 0
        return [sql.split()[0] for sql in statements]

    async with opened(tmp_path) as store:
        few, many = await sent(3), await sent(50)
    assert few == many
    assert len(many) <= 20
    assert many.count("UPDATE") <= 2  # how far batches reach, and how large the ledger is: never a row of the outbox


async def test_calls_that_come_together_look_and_write_once_each_and_share_the_rest(tmp_path: Path) -> None:
    statements: list[str] = []
    async with opened(tmp_path) as store:
        await store.engine.run(lambda db: db.set_trace_callback(statements.append))
        await asyncio.gather(*(put(store, f"r{number}") for number in range(64)))
        await store.engine.run(lambda db: db.set_trace_callback(None))
    assert sum("FROM outbox WHERE record" in sql for sql in statements) == 64
    assert sum(sql.startswith("INSERT INTO outbox") for sql in statements) == 64
    # The first may be served before the others come: then there are two transactions.
    assert len(statements) <= 2 * 64 + 2 * 7


async def test_agents_that_have_something_queued_cost_no_other_agent_anything(tmp_path: Path) -> None:
    calls = {name: CALLS[name] for name in ("enqueue", "claim and acknowledge", "next due", "counts of an agent")}
    async with opened(tmp_path) as store:
        await put(store, *(f"r0-{number}" for number in range(20)))
        before = {name: await steps_of(store, call) for name, call in calls.items()}
        for agent in range(500):
            await put(store, f"queued-{agent}", agent=f"agent{agent}")
        costs = {name: await steps_of(store, call) for name, call in calls.items()}
    assert {name: cost for name, cost in costs.items() if cost > before[name] * 1.1 + 20} == {}


@pytest.mark.parametrize("name", ["claim and acknowledge", "counts", "enqueue"])
async def test_agents_that_have_nothing_left_cost_nothing(tmp_path: Path, name: str) -> None:
    call = CALLS[name]
    async with filled(tmp_path, FEW) as store:
        before = await steps_of(store, call)
        for agent in range(50):
            await put(store, f"one-{agent}", agent=f"gone{agent}")
            await acknowledge(store, await take(store, AGENT))
        assert await steps_of(store, call) <= before * 1.1 + 20
