"""A plain model of the outbox: rows in a list, and nothing clever."""

from dataclasses import dataclass, field

from plugin.store.interface import Batch, Record, RowState


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

    def as_record(self) -> Record:
        return Record(id=self.id, fingerprint=self.fingerprint, body=self.body)


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
