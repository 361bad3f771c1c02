"""The outbox against a plain model, under arbitrary interleavings of calls, answers, restarts and crashes.

The model knows no batches in advance: it holds rows in order, and learns a batch from the claim that hands it out. From
then on it says what that batch must be until an answer changes it.
"""

import asyncio
import shutil
import sqlite3
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from typing import TypeVar, assert_never

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

from plugin.clock import SystemClock
from plugin.errors import QueueFull
from plugin.store.interface import (
    Acknowledged,
    Batch,
    BatchChange,
    Caps,
    Dead,
    Failed,
    Record,
    RowState,
    SetApart,
    Split,
)
from plugin.store.sqlite import SqliteStore, open_store
from tests.support.outbox import Model, Row
from tests.support.stores import NOW_MS, PLATFORM, new_folder_in_memory, record

T = TypeVar("T")

CAPS = Caps(records=14, bytes=10_000)
AGENTS = st.sampled_from(["amy", "bob"])
# Few records and small batches, so that the same ones meet again in every state.
RECORDS = st.lists(st.builds(record, st.sampled_from("abcd"), st.integers(1, 2)), min_size=1, max_size=3)
MOST = st.sampled_from([1, 1, 2, 4])
FAILED = Failed(counts=True)
DEAD = Dead(reason="no", status=422, answer="")
APART = st.builds(SetApart, due_ms=st.integers(0, 300_000), reason=st.just("500"))  # from now
ANSWERS: st.SearchStrategy[BatchChange] = st.one_of(
    st.just(Acknowledged(synced=1, payload_bytes=1)),
    st.just(FAILED),
    st.builds(Split, suspect=st.booleans()),
    st.just(DEAD),
    APART,
)
# Some are late: what they are about has gone another way by then.
SEVERAL: st.SearchStrategy[Sequence[BatchChange]] = st.one_of(
    st.lists(ANSWERS, min_size=1, max_size=3),
    st.just((FAILED, FAILED, FAILED)),
    st.just((DEAD,)),
    APART.map(lambda apart: (apart, DEAD)),
)


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
        self.hand_in(agent, records)

    def hand_in(self, agent: str, records: list[Record]) -> None:
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
        self.find(agent, records)

    def find(self, agent: str, records: list[Record]) -> None:
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

    @rule(target=claimed, busy=st.sets(AGENTS, max_size=1), most=MOST)
    def claim(self, busy: set[str], most: int) -> Batch | MultipleResults[Batch]:
        found = self.next_batch(busy, most)
        return multiple() if found is None else found

    @rule(target=claimed, busy=st.sets(AGENTS, max_size=1), most=MOST, answers=SEVERAL)
    def send(self, busy: set[str], most: int, answers: Sequence[BatchChange]) -> Batch | MultipleResults[Batch]:
        found = self.next_batch(busy, most)
        if found is None:
            return multiple()
        for how in answers:
            self.answered(found, how)
        return found

    @rule(most=MOST)
    def drain(self, most: int) -> None:
        while (found := self.next_batch(set(), most)) is not None:
            self.answered(found, Acknowledged(synced=len(found.rows), payload_bytes=1))

    @rule(most=MOST)
    def pipeline(self, most: int) -> None:
        """Ask for the next batch while what came of the last one is being recorded."""
        found = self.next_batch(set(), most)
        while found is not None and not found.apart:
            done = Acknowledged(synced=len(found.rows), payload_bytes=1)
            following = self.run(self.both(found, done, most))
            self.deliver(found)
            self.expect(following, set(), most)
            found = following

    async def both(self, batch: Batch, change: BatchChange, most: int) -> Batch | None:
        _, claimed = await asyncio.gather(
            self.store.record(batch, change, platform=PLATFORM, gate=None, now_ms=self.now_ms),
            self.store.claim(
                PLATFORM,
                busy=(),
                settling=[batch.agent_id],
                max_records=most,
                max_bytes=1000,
                now_ms=self.now_ms,
            ),
        )
        return claimed[0] if claimed else None

    @rule(batch=claimed, how=ANSWERS)
    def answer(self, batch: Batch, how: BatchChange) -> None:
        """Answer at any time what was sent at any time."""
        self.answered(batch, how)

    def next_batch(self, busy: set[str], most: int) -> Batch | None:
        claimed = self.run(self.store.claim(PLATFORM, busy=busy, max_records=most, max_bytes=1000, now_ms=self.now_ms))
        found = claimed[0] if claimed else None
        self.expect(found, busy, most)
        if found is not None:
            assert found.bodies == tuple(self.model.rows[number].body for number in found.rows)
        return found

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

    def answered(self, batch: Batch, how: BatchChange) -> None:
        """Record an answer, and do to the model what it should have done; one that cannot be to this batch is none."""
        alone = len(batch.rows) == 1
        match how:
            case Acknowledged():
                self.recorded(batch, how)
                self.deliver(batch)
            case Failed():
                if self.recorded(batch, how) and not batch.apart:
                    self.model.failures[batch.id] += 1
            case Split(suspect=suspect):
                if not alone and self.recorded(batch, how):
                    self.cut(batch, suspect=suspect)
            case Dead():
                if alone and self.recorded(batch, how):
                    self.leave(batch, RowState.DEAD)
            case SetApart(due_ms=wait_ms):
                if alone and self.recorded(batch, replace(how, due_ms=self.now_ms + wait_ms)):
                    self.leave(batch, RowState.APART)
                    self.model.rows[batch.rows[0]].due_ms = self.now_ms + wait_ms
            case _:
                assert_never(how)

    def recorded(self, batch: Batch, change: BatchChange) -> bool:
        """Record a change; say whether it should have had an effect."""
        current = self.model.is_current(batch)
        self.run(self.store.record(batch, change, platform=PLATFORM, gate=None, now_ms=self.now_ms))
        return current

    def deliver(self, batch: Batch) -> None:
        model = self.model
        for number in batch.rows:
            row = model.rows.pop(number, None)
            if row is not None:
                model.ledger[row.id] = row.fingerprint
                if row.batch is not None:
                    model.forget(row.batch)

    def cut(self, batch: Batch, *, suspect: bool) -> None:
        model = self.model
        rows = model.members(batch.id)
        middle = (len(rows) + 1) // 2
        model.forget(batch.id)
        for half in (rows[:middle], rows[middle:]):
            number = half[0].number
            for row in half:
                row.batch = number
            model.failures[number] = 0
            model.suspects |= {number} if suspect else set()
            model.keys[number] = self.key_of(number)

    def key_of(self, batch: int) -> str:
        return self.run(
            self.store.engine.run(
                lambda db: str(db.execute("SELECT key FROM batch WHERE id = ?", (batch,)).fetchone()[0])
            )
        )

    def leave(self, batch: Batch, state: RowState) -> None:
        self.model.forget(batch.id)
        self.model.rows[batch.rows[0]].state = state

    @precondition(lambda self: self.dead())
    @rule(whole=st.booleans(), anew=st.booleans(), data=st.data())
    def retry(self, data: st.DataObject, *, whole: bool, anew: bool) -> None:
        dead = self.dead()
        chosen = dead if whole else [row for row in dead if data.draw(st.booleans())]
        for row in dead if anew else []:
            self.hand_in(row.agent, [row.as_record()])
        numbers = None if whole else [row.number for row in chosen]
        assert self.run(self.store.retry_dead(numbers, now_ms=self.now_ms)) == len(chosen)
        for row in chosen:
            if self.model.queued(row.agent, row.id, row.fingerprint):
                del self.model.rows[row.number]
            else:
                row.state = RowState.WAITING

    @precondition(lambda self: self.dead())
    @rule(whole=st.booleans(), anew=st.booleans(), data=st.data())
    def drop(self, data: st.DataObject, *, whole: bool, anew: bool) -> None:
        dead = self.dead()
        chosen = dead if whole else [row for row in dead if data.draw(st.booleans())]
        numbers = None if whole else [row.number for row in chosen]
        assert self.run(self.store.drop_dead(numbers)) == len(chosen)
        for row in chosen:
            del self.model.rows[row.number]
            self.model.dropped.add((row.id, row.fingerprint))
        for row in chosen if anew else []:
            self.find(row.agent, [row.as_record()])

    def dead(self) -> list[Row]:
        return [row for row in self.model.rows.values() if row.state is RowState.DEAD]

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
    def the_store_says_what_the_model_says(self) -> None:
        if hasattr(self, "store"):
            self.run(self.compare())

    async def compare(self) -> None:
        store, rows = self.store, list(self.model.rows.values())
        found = await store.rows()
        assert [(row.row, row.agent_id, row.record_id, row.fingerprint, row.body, row.state) for row in found] == [
            (row.number, row.agent, row.id, row.fingerprint, row.body, row.state) for row in rows
        ]
        for agent in ("amy", "bob", None):
            mine = [row for row in rows if agent in (None, row.agent)]
            dead = sum(row.state is RowState.DEAD for row in mine)
            counts = await store.counts(agent)
            assert (counts.queued, counts.dead) == (len(mine) - dead, dead)
            assert counts.bytes == sum(len(row.body) for row in mine)
        assert await store.ledger_size() == len(self.model.ledger)
        assert await store.engine.run(kept) == await store.engine.run(recounted)
        for number in (0, self.model.last // 2, self.model.last):
            mine = [
                row for row in rows if row.agent == "amy" and row.state is RowState.WAITING and row.number <= number
            ]
            assert await store.unsettled("amy", up_to_row=number) == len(mine)


def kept(db: sqlite3.Connection) -> list[tuple[str, str, int, int, int | None]]:
    return db.execute("SELECT agent, state, records, bytes, head FROM totals ORDER BY 1, 2").fetchall()


def recounted(db: sqlite3.Connection) -> list[tuple[str, str, int, int, int | None]]:
    return db.execute(
        "SELECT agent, state, count(*), sum(length(body)), min(row) FILTER (WHERE state = 'waiting' AND"
        " row NOT IN (SELECT value FROM batch, json_each(batch.rows))) FROM outbox GROUP BY agent, state"
        " UNION ALL SELECT '', state, count(*), sum(length(body)), NULL FROM outbox GROUP BY state ORDER BY 1, 2"
    ).fetchall()


def test_whatever_happens_the_outbox_does_what_a_plain_model_does() -> None:
    run_state_machine_as_test(OutboxMachine, settings=settings(max_examples=60, stateful_step_count=40, deadline=None))
