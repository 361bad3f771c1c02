"""The outbox against a plain model, under arbitrary interleavings of calls, answers, restarts and crashes.

The model knows no batches in advance: it holds rows in order, and learns a batch from the claim that hands it out. From
then on it says what that batch must be until an answer changes it.
"""

import asyncio
import shutil
import sqlite3
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import TypeVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from plugin.clock import SystemClock
from plugin.errors import QueueFull
from plugin.store.interface import Acknowledged, Batch, Caps, Dead, Failed, Record, RowState, SetApart, Split
from plugin.store.sqlite import SqliteStore, open_store
from tests.support.stores import NOW_MS, PLATFORM, new_folder_in_memory, record

T = TypeVar("T")

CAPS = Caps(records=14, bytes=10_000)
AGENTS = st.sampled_from(["amy", "bob"])
RECORDS = st.lists(st.builds(record, st.sampled_from("abcdef"), st.integers(1, 2)), min_size=1, max_size=5)


@dataclass
class Row:
    """What the model knows of a row."""

    number: int
    agent: str
    id: str
    fingerprint: str
    body: bytes
    state: RowState = RowState.WAITING
    batch: int | None = None
    due_ms: int = 0


@dataclass
class Model:
    """The rows in order, what was delivered, and what nobody wants."""

    rows: dict[int, Row] = field(default_factory=dict[int, Row])
    keys: dict[int, str] = field(default_factory=dict[int, str])
    failures: dict[int, int] = field(default_factory=dict[int, int])
    suspects: set[int] = field(default_factory=set[int])
    ledger: dict[str, str] = field(default_factory=dict[str, str])
    dropped: set[tuple[str, str]] = field(default_factory=set[tuple[str, str]])
    last: int = 0

    def add(self, agent: str, one: Record) -> None:
        self.last += 1
        self.rows[self.last] = Row(self.last, agent, one.id, one.fingerprint, one.body)

    def queued(self, agent: str, name: str, fingerprint: str) -> bool:
        return any(
            (row.agent, row.id, row.fingerprint) == (agent, name, fingerprint) and row.state is not RowState.DEAD
            for row in self.rows.values()
        )

    def known(self, name: str, fingerprint: str) -> bool:
        return (
            any((row.id, row.fingerprint) == (name, fingerprint) for row in self.rows.values())
            or self.ledger.get(name) == fingerprint
            or (name, fingerprint) in self.dropped
        )

    def members(self, batch: int) -> list[Row]:
        return [row for row in self.rows.values() if row.batch == batch]

    def failing(self, batch: int) -> bool:
        return self.failures[batch] >= (1 if batch in self.suspects else 3)

    def forget(self, batch: int) -> None:
        for row in self.members(batch):
            row.batch = None
        for kept in (self.keys, self.failures):
            kept.pop(batch, None)
        self.suspects.discard(batch)

    def is_current(self, batch: Batch) -> bool:
        if batch.apart:
            row = self.rows.get(batch.rows[0])
            return row is not None and row.state is RowState.APART
        return self.keys.get(batch.id) == batch.key and [row.number for row in self.members(batch.id)] == [*batch.rows]


class OutboxMachine(RuleBasedStateMachine):
    """Do the same to a real store and to the model, and compare what they say."""

    claimed = Bundle[Batch]("claimed")

    def __init__(self) -> None:
        super().__init__()
        self.folder = new_folder_in_memory()
        self.runner = asyncio.Runner()
        self.model = Model()
        self.now_ms = NOW_MS
        self.store: SqliteStore

    def run(self, call: Coroutine[object, object, T]) -> T:
        return self.runner.run(call)

    @initialize()
    def open(self) -> None:
        async def start() -> SqliteStore:
            return open_store(self.folder, clock=SystemClock())

        self.store = self.run(start())

    def teardown(self) -> None:
        self.run(self.store.close())
        self.runner.close()
        shutil.rmtree(self.folder)

    @rule(agent=AGENTS, records=RECORDS)
    def push(self, agent: str, records: list[Record]) -> None:
        model = self.model
        fresh = {(one.id, one.fingerprint): one for one in records if not model.queued(agent, one.id, one.fingerprint)}
        count, size = self.volume()
        room = count + len(fresh) <= CAPS.records and size + sum(len(one.body) for one in fresh.values()) <= CAPS.bytes
        try:
            done = self.run(self.store.enqueue(agent, records, caps=CAPS, now_ms=self.now_ms))
        except QueueFull:
            assert not room
            return
        assert room
        assert (done.added, done.known, done.left_out) == (len(fresh), len(records) - len(fresh), 0)
        for one in fresh.values():
            model.add(agent, one)

    @rule(agent=AGENTS, records=RECORDS)
    def scan(self, agent: str, records: list[Record]) -> None:
        model = self.model
        done = self.run(self.store.enqueue(agent, records, caps=CAPS, now_ms=self.now_ms, scanned_for=PLATFORM))
        known = left_out = 0
        for one in records:
            if model.known(one.id, one.fingerprint):
                known += 1
            elif len(model.rows) < CAPS.records:
                model.add(agent, one)
            else:
                left_out += 1
        assert (done.known, done.left_out) == (known, left_out)

    @rule(target=claimed, busy=st.sets(AGENTS, max_size=1), most=st.integers(1, 4))
    def claim(self, busy: set[str], most: int) -> Batch | MultipleResults[Batch]:
        found = self.run(self.store.claim(PLATFORM, busy=busy, max_records=most, max_bytes=1000, now_ms=self.now_ms))
        self.expect(found, busy, most)
        if found is not None:
            assert found.bodies == tuple(self.model.rows[number].body for number in found.rows)
        return multiple() if found is None else found

    def expect(self, found: Batch | None, busy: set[str], most: int) -> None:
        """Check that this is the batch whose turn it is, and learn it when it is new."""
        model = self.model
        formed = sorted(
            (batch for batch in model.keys if model.members(batch)[0].agent not in busy),
            key=lambda batch: model.members(batch)[0].number,
        )
        steady = [batch for batch in formed if not model.failing(batch)]
        free = [
            row
            for row in model.rows.values()
            if row.state is RowState.WAITING and row.batch is None and row.agent not in busy
        ]
        due = [
            row
            for row in model.rows.values()
            if row.state is RowState.APART and row.due_ms <= self.now_ms and row.agent not in busy
        ]
        if steady:
            self.expect_formed(found, steady[0])
        elif free:
            assert found is not None
            line = [row for row in free if row.agent == free[0].agent][:most]
            assert found.rows == tuple(row.number for row in line)
            assert found.id not in model.keys
            model.keys[found.id], model.failures[found.id] = found.key, 0
            for row in line:
                row.batch = found.id
        elif formed:
            self.expect_formed(found, min(formed, key=lambda batch: model.failures[batch]))
        elif due:
            assert found is not None
            assert found.apart
            assert found.rows[0] in {row.number for row in due}
        else:
            assert found is None

    def expect_formed(self, found: Batch | None, batch: int) -> None:
        model = self.model
        assert found is not None
        assert (found.id, found.key) == (batch, model.keys[batch])
        assert found.rows == tuple(row.number for row in model.members(batch))
        assert (found.failures, found.suspect) == (model.failures[batch], batch in model.suspects)

    def answer(self, batch: Batch, change: Acknowledged | Failed | Split | Dead | SetApart) -> bool:
        """Record a change; say whether it should have had an effect."""
        current = self.model.is_current(batch)
        self.run(self.store.record(batch, change, platform=PLATFORM, gate=None, now_ms=self.now_ms))
        return current

    @rule(batch=claimed)
    def acknowledge(self, batch: Batch) -> None:
        model = self.model
        self.answer(batch, Acknowledged(synced=len(batch.rows), payload_bytes=1))
        for number in batch.rows:
            row = model.rows.pop(number, None)
            if row is not None:
                model.ledger[row.id] = row.fingerprint
                if row.batch is not None:
                    model.forget(row.batch)

    @rule(batch=claimed)
    def fail(self, batch: Batch) -> None:
        if self.answer(batch, Failed(counts=True)) and not batch.apart:
            self.model.failures[batch.id] += 1

    @rule(batch=claimed, suspect=st.booleans())
    def split(self, batch: Batch, *, suspect: bool) -> None:
        model = self.model
        if len(batch.rows) < 2 or not self.answer(batch, Split(suspect=suspect)):
            return
        rows = model.members(batch.id)
        middle = (len(rows) + 1) // 2
        model.forget(batch.id)
        newest = self.newest_batch()
        for number, half in ((newest - 1, rows[:middle]), (newest, rows[middle:])):
            for row in half:
                row.batch = number
            model.failures[number] = 0
            model.suspects |= {number} if suspect else set()
            model.keys[number] = self.key_of(number)

    def newest_batch(self) -> int:
        return self.run(self.store.engine.run(lambda db: int(db.execute("SELECT max(id) FROM batch").fetchone()[0])))

    def key_of(self, batch: int) -> str:
        return self.run(
            self.store.engine.run(
                lambda db: str(db.execute("SELECT key FROM batch WHERE id = ?", (batch,)).fetchone()[0])
            )
        )

    @rule(batch=claimed)
    def bury(self, batch: Batch) -> None:
        if len(batch.rows) == 1 and self.answer(batch, Dead(reason="no", status=422, answer="")):
            self.leave(batch, RowState.DEAD)

    @rule(batch=claimed, wait_ms=st.integers(0, 300_000))
    def set_apart(self, batch: Batch, wait_ms: int) -> None:
        change = SetApart(due_ms=self.now_ms + wait_ms, reason="500")
        if len(batch.rows) == 1 and self.answer(batch, change):
            self.leave(batch, RowState.APART)
            self.model.rows[batch.rows[0]].due_ms = change.due_ms

    def leave(self, batch: Batch, state: RowState) -> None:
        self.model.forget(batch.id)
        self.model.rows[batch.rows[0]].state = state

    @rule(whole=st.booleans(), data=st.data())
    def retry(self, data: st.DataObject, *, whole: bool) -> None:
        dead = [row for row in self.model.rows.values() if row.state is RowState.DEAD]
        chosen = dead if whole else [row for row in dead if data.draw(st.booleans())]
        numbers = None if whole else [row.number for row in chosen]
        assert self.run(self.store.retry_dead(numbers, now_ms=self.now_ms)) == len(chosen)
        for row in chosen:
            if self.model.queued(row.agent, row.id, row.fingerprint):
                del self.model.rows[row.number]
            else:
                row.state = RowState.WAITING

    @rule(whole=st.booleans(), data=st.data())
    def drop(self, data: st.DataObject, *, whole: bool) -> None:
        dead = [row for row in self.model.rows.values() if row.state is RowState.DEAD]
        chosen = dead if whole else [row for row in dead if data.draw(st.booleans())]
        numbers = None if whole else [row.number for row in chosen]
        assert self.run(self.store.drop_dead(numbers)) == len(chosen)
        for row in chosen:
            del self.model.rows[row.number]
            self.model.dropped.add((row.id, row.fingerprint))

    @rule(seconds=st.integers(1, 400))
    def wait(self, seconds: int) -> None:
        self.now_ms += seconds * 1000

    @rule()
    def reopen(self) -> None:
        self.run(self.store.close())
        self.open()

    @rule()
    def crash(self) -> None:
        """Go on from what is on the disk now, as a process does after it was killed."""
        copy = new_folder_in_memory()

        def take_picture(_: sqlite3.Connection) -> None:
            # In the writer thread, so that no checkpoint comes between the files.
            for name in ("agentic-sync.db", "agentic-sync.db-wal", "state.lock"):
                if (self.folder / name).exists():
                    shutil.copyfile(self.folder / name, copy / name)

        self.run(self.store.engine.run(take_picture))
        self.run(self.store.close())
        shutil.rmtree(self.folder)
        self.folder = copy
        self.open()

    def volume(self) -> tuple[int, int]:
        counts = self.run(self.store.counts())
        return counts.queued + counts.dead, counts.bytes

    @invariant()
    def the_rows_are_the_models(self) -> None:
        if not hasattr(self, "store"):
            return
        rows = self.run(self.store.rows())
        assert [(row.row, row.agent_id, row.record_id, row.fingerprint, row.body, row.state) for row in rows] == [
            (row.number, row.agent, row.id, row.fingerprint, row.body, row.state) for row in self.model.rows.values()
        ]

    @invariant()
    def the_totals_are_the_models(self) -> None:
        if not hasattr(self, "store"):
            return
        for agent in ("amy", "bob", None):
            mine = [row for row in self.model.rows.values() if agent in (None, row.agent)]
            dead = sum(row.state is RowState.DEAD for row in mine)
            counts = self.run(self.store.counts(agent))
            assert (counts.queued, counts.dead) == (len(mine) - dead, dead)
            assert counts.bytes == sum(len(row.body) for row in mine)
        assert self.run(self.store.ledger_size()) == len(self.model.ledger)
        waiting = [row for row in self.model.rows.values() if row.state is RowState.WAITING]
        for number in (0, self.model.last // 2, self.model.last):
            mine = [row for row in waiting if row.agent == "amy" and row.number <= number]
            assert self.run(self.store.unsettled("amy", up_to_row=number)) == len(mine)


def test_whatever_happens_the_outbox_does_what_a_plain_model_does() -> None:
    run_state_machine_as_test(OutboxMachine, settings=settings(max_examples=30, stateful_step_count=40, deadline=None))
