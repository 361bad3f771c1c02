"""Run a coroutine in the task that is at hand, as if it were one of its own: asyncio's eager tasks, without a task."""

from collections.abc import Callable, Coroutine, Generator
from contextvars import copy_context
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Rest(Generic[T]):
    """What is left of a coroutine after its first step: await it once, in the task that took the step."""

    def __init__(self, coroutine: Coroutine[Any, Any, T], run: Callable[..., Any], awaited: object) -> None:
        self._coroutine = coroutine
        self._run = run
        self._awaited = awaited  # what the coroutine waits for already

    def __await__(self) -> Generator[Any, Any, T]:
        run, coroutine, awaited = self._run, self._coroutine, self._awaited
        try:
            while True:
                try:
                    value = yield awaited
                except BaseException as error:  # noqa: BLE001 -- it is the coroutine's, which may take it or pass it on
                    awaited = run(coroutine.throw, error)
                else:
                    awaited = run(coroutine.send, value)
        except StopIteration as end:
            return end.value


def begin(coroutine: Coroutine[Any, Any, T]) -> T | Rest[T]:
    """Take the first step of a coroutine, in a context of its own; return its result, or the rest, to be awaited."""
    run = copy_context().run
    try:
        awaited = run(coroutine.send, None)
    except StopIteration as end:
        return end.value
    return Rest(coroutine, run, awaited)
