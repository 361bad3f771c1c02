"""What is open on a connection, in both directions. Pure: values in, decisions out; it starts and stops nothing.

Calls of ours: each has an id of its own, from 1 up; the first answer takes its waiter, a later or unknown one finds
none and is dropped.

Work that came in, a request or a notification, goes one way through its stages:

    WAITING ---> STARTED ---> RUNNING ---> DONE
       `------------+------------+---> settled early: cancelled before it ran, or cut off at the end

It is settled once, by whoever is first; settling gives what is to be sent, which is nothing for a notification.
"""

from collections.abc import Callable
from enum import Enum, auto
from typing import Generic, TypeAlias, TypeVar

from msgspec import Struct

from protocol.messages import Id, Notification, Request, join_batch
from protocol.methods import Context

H = TypeVar("H")
W = TypeVar("W")

Callback: TypeAlias = Callable[[], None]


class Calls(Generic[W]):
    """Calls of ours that wait for their answer, each with its waiter."""

    def __init__(self) -> None:
        self._waiters: dict[Id, W] = {}
        self._last = 0

    def __len__(self) -> int:
        return len(self._waiters)

    def open(self, waiter: W) -> int:
        """Return the id for a new call."""
        self._last += 1
        self._waiters[self._last] = waiter
        return self._last

    def take(self, id_: Id) -> W | None:
        """Return the waiter of an open call, which is open no longer; None for an answer that nobody waits for."""
        return self._waiters.pop(id_, None)

    def take_all(self) -> list[W]:
        """Return every waiter; no call is open any longer."""
        waiters = list(self._waiters.values())
        self._waiters.clear()
        return waiters


class Answer(Struct, frozen=True, gc=False):
    """What is to be sent, and what to run once it was."""

    payload: bytes
    callbacks: tuple[Callback, ...] = ()


class Gathering:
    """The answers to the members of one batch, until there are all: one array, or nothing if none has an answer."""

    def __init__(self, members: int) -> None:
        self._missing = members
        self._parts: list[bytes] = []
        self._callbacks: tuple[Callback, ...] = ()

    def add(self, answer: Answer | None) -> Answer | None:
        """Take what one member came to, None for no answer; return what is to be sent, with the last."""
        self._missing -= 1
        if answer is not None:
            self._parts.append(answer.payload)
            self._callbacks += answer.callbacks
        if self._missing or not self._parts:
            return None
        return Answer(join_batch(self._parts), self._callbacks)


class Stage(Enum):
    """How far a piece of work has come."""

    WAITING = auto()
    STARTED = auto()  # it has a handler slot, and its first step is yet to come
    RUNNING = auto()
    DONE = auto()  # the handler is through; at most its answer waits to be sent


class Fate(Enum):
    """How a piece of work is to end."""

    NATURAL = auto()
    CANCELLED = auto()  # answered with -32800, unless the handler finishes all the same
    SILENCED = auto()  # not answered
    CLOSED = auto()  # answered with -32000


class Work(Struct, Generic[H], eq=False):
    """A request or notification on its way; `key` tells it from others, `handle` is whatever runs it."""

    call: Request | Notification
    context: Context
    key: object = None
    urgent: bool = False
    batch: Gathering | None = None
    stage: Stage = Stage.WAITING
    fate: Fate = Fate.NATURAL
    settled: bool = False
    handle: H | None = None

    def settle(self, payload: bytes | None) -> Answer | None:
        """Take the answer; return what is to be sent now. Once."""
        self.settled = True
        answer = None
        if payload is not None and self.fate is not Fate.SILENCED:
            answer = Answer(payload, self.context.callbacks)
        return answer if self.batch is None else self.batch.add(answer)


class Step(Enum):
    """What to do to work that is cut short."""

    NOTHING = auto()  # too late, or done already
    LEAVE = auto()  # its first step is due, where it will notice
    WITHDRAW = auto()  # it waits: take it out of the lane and settle it
    INTERRUPT = auto()  # its handler runs


class Requests(Generic[H]):
    """Requests in flight, by id. Ids that are null are never the same; 1, 1.0 and "1" are three."""

    def __init__(self) -> None:
        self._by_id: dict[object, Work[H]] = {}

    def taken(self, key: object) -> bool:
        """Return whether a request with the id of that key is in flight."""
        return key in self._by_id

    def open(self, work: Work[H]) -> None:
        """Enter a request whose id is not taken."""
        if work.key is not None:
            self._by_id[work.key] = work

    def close(self, work: Work[H]) -> None:
        """Let go of a request, if it was entered."""
        self._by_id.pop(work.key, None)

    def find(self, id_: object) -> Work[H] | None:
        """Return the request in flight that a cancel means."""
        if not isinstance(id_, str | int | float) or isinstance(id_, bool):
            return None
        return self._by_id.get(key_of(id_))


def cut_short(work: Work[H], fate: Fate) -> Step:
    """Give work another fate, if it is not through and has none yet; return what to do to it."""
    if work.stage is Stage.DONE or work.fate is not Fate.NATURAL:
        return Step.NOTHING
    work.fate = fate
    match work.stage:
        case Stage.WAITING:
            return Step.WITHDRAW
        case Stage.STARTED:
            return Step.LEAVE
        case Stage.RUNNING:
            return Step.INTERRUPT


def key_of(id_: Id) -> object:
    """Return what tells a request from others in flight; it keeps 1 and 1.0 apart, which are equal in Python."""
    return (id_,) if isinstance(id_, float) else id_
