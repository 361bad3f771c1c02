"""One cell against a model of the guild behind it: whatever happens, the cell knows what it does not know."""

import math
from dataclasses import dataclass, field
from typing import Literal, assert_never

from hypothesis import given, settings
from hypothesis import strategies as st

from plugin.presence import cell as step
from plugin.presence.cell import Cell, Forget, Place, Send, Wait, decide
from plugin.presence.state import Status

REFRESH_S = 300.0
PLACES: tuple[Place, ...] = (("u1", "https://one"), ("u1", "https://two"), ("u2", "https://one"))


@dataclass(frozen=True)
class Want:
    status: Status


@dataclass(frozen=True)
class Pass:
    seconds: float


@dataclass(frozen=True)
class Start:
    pass


@dataclass(frozen=True)
class End:
    how: Literal["done", "lost_before", "lost_after", "refused", "redirected", "busy"]


@dataclass(frozen=True)
class Move:
    place: Place


@dataclass(frozen=True)
class Told:
    what: Literal["resend", "retire", "revive", "lose", "release"]


Op = Want | Pass | Start | End | Move | Told
OPS = st.one_of(
    st.builds(Want, st.sampled_from(Status)),
    st.builds(Pass, st.sampled_from([0.0, 0.2, 1.0, 30.0, 400.0])),
    st.just(Start()),
    st.just(Start()),
    st.builds(End, st.sampled_from(["done", "done", "lost_before", "lost_after", "refused", "redirected", "busy"])),
    st.builds(Move, st.sampled_from(PLACES)),
    st.builds(Told, st.sampled_from(["resend", "retire", "revive", "lose", "release"])),
)


@dataclass
class Model:
    """A cell, the guild's rows, and the one PUT that may be in flight."""

    cell: Cell = field(default_factory=lambda: Cell("a"))
    rows: dict[Place, Status] = field(default_factory=dict[Place, Status])
    now: float = 1000.0
    flying: tuple[Status, Place] | None = None
    forgotten: bool = False
    forced: bool = True
    change_at: float = -math.inf

    def __post_init__(self) -> None:
        step.move(self.cell, PLACES[0], self.now)

    def do(self, op: Op) -> None:
        cell = self.cell
        match op:
            case Want(status=status):
                if not cell.retired:
                    step.want(cell, status)
            case Pass(seconds=seconds):
                self.now += seconds
            case Start():
                self.start()
            case End(how=how):
                self.end(how)
            case Move(place=place):
                self.forced |= place != self.place
                step.move(cell, place, self.now)
            case Told(what=what):
                self.tell(what)
            case _:
                assert_never(op)
        action = decide(cell, self.now)
        if isinstance(action, Wait) and not self.flying:
            assert action.until <= cell.forget_at
        assert self.flying or cell.confirmed in {None, self.rows.get(self.place)}

    @property
    def place(self) -> Place:
        assert self.cell.user_id is not None
        assert self.cell.endpoint is not None
        return self.cell.user_id, self.cell.endpoint

    def tell(self, what: Literal["resend", "retire", "revive", "lose", "release"]) -> None:
        match what:
            case "resend":
                self.forced = True
                step.resend(self.cell, self.now)
            case "retire":
                step.retire(self.cell, self.now)
            case "revive":
                step.revive(self.cell)
            case "lose":
                # The guild lost its rows, and was seen to have been away.
                self.rows.clear()
                step.lose(self.cell, self.now + 5)
            case "release":
                self.forced |= self.cell.reason is not None
                step.release(self.cell, self.now)

    def start(self) -> None:
        cell = self.cell
        action = decide(cell, self.now)
        if isinstance(action, Forget):
            assert cell.retired
            assert not self.flying
            assert cell.forget_at <= self.now or self.rows.get(self.place, Status.OFFLINE) is Status.OFFLINE
            self.forgotten = True
        if not isinstance(action, Send) or self.forgotten:
            return
        assert self.flying is None
        assert cell.parked_until <= self.now
        if cell.confirmed is cell.wanted and not self.forced:
            assert cell.due_at <= self.now
        if action.rank == step.CHANGE and not self.forced:
            assert self.now - self.change_at >= step.GAP_S
        if action.rank < 0:
            self.change_at = self.now
        self.flying = step.begin(cell, self.now), self.place
        cell.in_flight = True
        self.forced = False

    def end(self, how: Literal["done", "lost_before", "lost_after", "refused", "redirected", "busy"]) -> None:
        if self.flying is None:
            return
        (status, place), self.flying = self.flying, None
        cell, cell.in_flight = self.cell, False
        if how in {"done", "lost_after"}:
            self.rows[place] = status
        match how:
            case "done":
                step.accept(cell, status, place, wall=self.now, due_at=self.now + REFRESH_S)
            case "lost_before" | "lost_after":
                step.doubt(cell)
                step.fail(cell, self.now)
                step.retry(cell, self.now)
            case "refused" | "redirected":
                if how == "redirected":
                    step.doubt(cell)
                step.park(cell, self.now + REFRESH_S, how)
            case "busy":
                step.retry(cell, self.now)

    def settle(self) -> None:
        """Let a guild that does everything right be told, until nothing is to be done but a refresh."""
        self.do(End("done"))
        for _ in range(20):
            if self.forgotten:
                return
            match decide(self.cell, self.now):
                case Send() | Forget():
                    self.do(Start())
                    self.do(End("done"))
                case Wait(until=until):
                    if until == math.inf or (until >= self.now + REFRESH_S and self.cell.parked_until <= self.now):
                        return
                    self.now = max(self.now, until)
        raise AssertionError("the cell never comes to rest")


@settings(max_examples=200, deadline=None)
@given(st.lists(OPS, max_size=60))
def test_a_cell_comes_to_what_is_wanted_and_never_believes_what_was_not_confirmed(ops: list[Op]) -> None:
    model = Model()
    for op in ops:
        if not model.forgotten:
            model.do(op)
    model.settle()
    cell = model.cell
    if cell.wanted is None:
        assert model.rows == {}
    elif not model.forgotten:
        assert model.rows[model.place] is cell.wanted
        assert cell.confirmed is cell.wanted
        assert decide(cell, model.now) == Wait(cell.due_at)


@settings(max_examples=50, deadline=None)
@given(st.lists(OPS, max_size=30), st.sampled_from(Status), st.sampled_from([End("lost_before"), End("lost_after")]))
def test_after_an_ambiguous_outcome_the_next_value_is_sent_even_if_it_is_the_old_one(
    ops: list[Op], status: Status, lost: End
) -> None:
    model = Model()
    for op in ops:
        if not model.forgotten:
            model.do(op)
    if model.forgotten or model.cell.retired:
        return
    model.do(Told("revive"))
    model.do(Want(status))
    model.settle()
    other = Status.BUSY if status is not Status.BUSY else Status.IDLE
    for op in (Want(other), Pass(1.0), Start(), lost, Want(status), Pass(1.0)):
        model.do(op)
    assert model.cell.confirmed is None
    assert isinstance(decide(model.cell, model.now), Send)
