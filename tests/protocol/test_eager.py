import asyncio
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from typing import Any

import pytest

from protocol.eager import Rest, begin

VAR: ContextVar[str] = ContextVar("VAR", default="outside")


class Log(list[str]):
    def wait(self) -> None:
        self.append("waits")


async def eagerly(coroutine: Coroutine[Any, Any, None], on_wait: Callable[[], None]) -> None:
    rest = begin(coroutine)
    if isinstance(rest, Rest):
        on_wait()
        await rest


async def test_what_runs_through_at_once_never_waits() -> None:
    log = Log()

    async def work() -> None:
        log.append("worked")

    await eagerly(work(), log.wait)
    assert log == ["worked"]


async def test_the_first_wait_is_told_once_and_before_anything_else_runs() -> None:
    log = Log()

    async def work() -> None:
        log.append("first")
        await asyncio.sleep(0)
        log.append("second")
        await asyncio.sleep(0)
        log.append("third")

    asyncio.get_running_loop().call_soon(log.append, "other")
    await eagerly(work(), log.wait)
    assert log == ["first", "waits", "other", "second", "third"]


async def test_results_and_errors_of_what_is_awaited_come_through() -> None:
    loop = asyncio.get_running_loop()
    good, bad = loop.create_future(), loop.create_future()
    loop.call_soon(good.set_result, 5)
    loop.call_soon(bad.set_exception, LookupError())
    seen: list[object] = []

    async def work() -> None:
        seen.append(await good)
        with pytest.raises(LookupError):
            await bad
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await eagerly(work(), Log().wait)
    assert seen == [5]


async def test_a_cancel_reaches_the_coroutine() -> None:
    log = Log()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            log.append("cancelled")
            await asyncio.sleep(0)
            log.append("cleaned up")
            raise

    async def run() -> None:
        await eagerly(work(), log.wait)

    task = asyncio.create_task(run())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert log == ["waits", "cancelled", "cleaned up"]


async def test_timeouts_and_task_groups_work_in_it() -> None:
    done: list[str] = []

    async def work() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await asyncio.Event().wait()
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(0))
        done.append("done")

    await eagerly(work(), Log().wait)
    assert done == ["done"]


async def test_context_variables_stay_with_the_coroutine_through_its_waits() -> None:
    seen: list[str] = []

    async def work() -> None:
        VAR.set("inside")
        await asyncio.sleep(0)
        seen.append(VAR.get())

    await eagerly(work(), lambda: seen.append(VAR.get()))
    assert seen == ["outside", "inside"]
    assert VAR.get() == "outside"


def test_closing_the_rest_closes_the_coroutine() -> None:
    log = Log()

    async def work() -> None:
        try:
            await asyncio.sleep(0)
        finally:
            log.append("closed")

    rest = begin(work())
    assert isinstance(rest, Rest)
    steps = rest.__await__()
    next(steps)
    steps.close()
    assert log == ["closed"]
