"""Run a coroutine in the task that is at hand, as if it were one of its own: asyncio's eager tasks, without a task."""

from collections.abc import Callable, Coroutine, Generator
from contextvars import copy_context
from types import TracebackType
from typing import Any, Final, TypeVar

T = TypeVar("T")

_TAKEN: Final = object()


class Rest(Generator[Any, Any, T]):
    """What is left of a coroutine after its first step: await it once, in the task that took the step."""

    def __init__(self, coroutine: Coroutine[Any, Any, T], run: Callable[..., object], awaited: object) -> None:
        self._coroutine = coroutine
        self._run = run
        self._awaited = awaited

    def __await__(self) -> Generator[Any, Any, T]:
        return self

    def send(self, value: object, /) -> object:
        """Take the next step; return what the coroutine waits for then, at first what it waits for already."""
        if self._awaited is _TAKEN:
            return self._run(self._coroutine.send, value)
        awaited, self._awaited = self._awaited, _TAKEN
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


def begin(coroutine: Coroutine[Any, Any, T]) -> T | Rest[T]:
    """Take the first step of a coroutine, in a context of its own; return its result, or the rest, to be awaited."""
    run = copy_context().run
    try:
        awaited = run(coroutine.send, None)
    except StopIteration as end:
        return end.value
    return Rest(coroutine, run, awaited)
