"""Run a coroutine in the task that is at hand, as if it were one of its own: asyncio's eager tasks, without a task."""

from collections.abc import Callable, Coroutine, Generator
from contextvars import copy_context
from types import TracebackType
from typing import Any


class Eager(Generator[Any, Any, None]):
    """Await a coroutine, in a context of its own; call `on_wait` when it first waits, if it ever does.

    From then on the task belongs to the coroutine, and whatever else it did is for another to do.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, None], on_wait: Callable[[], None]) -> None:
        self._coroutine = coroutine
        self._run = copy_context().run
        self._on_wait: Callable[[], None] | None = on_wait

    def __await__(self) -> Generator[Any, Any, None]:
        return self

    def send(self, value: object, /) -> object:
        """Take the next step; return what the coroutine waits for then."""
        awaited = self._run(self._coroutine.send, value)
        if self._on_wait is not None:
            on_wait, self._on_wait = self._on_wait, None
            on_wait()
        return awaited

    def throw(
        self,
        error: type[BaseException] | BaseException,
        _value: BaseException | object = None,
        _traceback: TracebackType | None = None,
        /,
    ) -> object:
        """Take the next step with an exception, which is a cancellation."""
        return self._run(self._coroutine.throw, error() if isinstance(error, type) else error)
