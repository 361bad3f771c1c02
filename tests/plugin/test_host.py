"""Typed calls to the host, and the log handler that speaks to it."""

import asyncio
import logging
import sys
import threading
from typing import TypeVar

import pytest

from plugin.config import Host
from plugin.errors import HostCallFailed
from plugin.host import BURST_LINES, HostCalls, HostLogHandler, LogParams
from protocol.errors import CallTimeout, ProtocolError, RpcError
from tests.support.clock import FakeClock, settle

T = TypeVar("T")


class Wire:
    """A caller that answers what it was told to, and keeps what it was asked."""

    def __init__(self, answer: object) -> None:
        self.answer = answer
        self.asked: list[tuple[str, object, float]] = []
        self.told: list[tuple[str, object]] = []
        self.room = True

    async def call(self, method: str, params: object = None, *, timeout_s: float, result: type[T]) -> T:
        self.asked.append((method, params, timeout_s))
        if isinstance(self.answer, ProtocolError):
            raise self.answer
        assert isinstance(self.answer, result)
        return self.answer

    def notify_soon(self, method: str, params: object = None) -> bool:
        self.told.append((method, params))
        return self.room


@pytest.mark.parametrize("answer", [{"state": "busy"}, {"state": "busy", "since": 3}, "busy"])
async def test_a_state_is_taken_from_an_object_or_a_plain_string(answer: object) -> None:
    assert await HostCalls(Wire(answer), Host()).read_agent_state("codex") == "busy"


@pytest.mark.parametrize("answer", [None, 7, {}, {"state": 7}, ["busy"], CallTimeout("ReadAgentState", 10)])
async def test_an_error_or_an_answer_without_a_state_is_a_failed_host_call(answer: object) -> None:
    with pytest.raises(HostCallFailed) as caught:
        await HostCalls(Wire(answer), Host()).read_agent_state("codex")
    assert "codex" in caught.value.message


async def test_of_what_the_host_says_of_a_failure_only_the_beginning_is_repeated() -> None:
    with pytest.raises(HostCallFailed) as caught:
        await HostCalls(Wire(RpcError(1, "x" * 1_000_000)), Host()).read_agent_state("codex")
    assert len(caught.value.message) < 1000


async def test_the_host_is_called_under_its_own_names_from_the_next_call_on() -> None:
    wire = Wire("idle")
    calls = HostCalls(wire, Host())
    await calls.read_agent_state("codex")
    calls.reconfigure(Host(read_agent_state_method="agents/state", log_method="window/log", timeout_s=3))
    await calls.read_agent_state("codex")
    calls.log(LogParams(level="info", message="m", logger="l", time="t"))
    assert [(method, timeout_s) for method, _, timeout_s in wire.asked] == [("ReadAgentState", 10), ("agents/state", 3)]
    assert [method for method, _ in wire.told] == ["window/log"]


class Lines:
    def __init__(self) -> None:
        self.lines: list[LogParams] = []
        self.room = True

    def send(self, line: LogParams) -> bool:
        if self.room:
            self.lines.append(line)
        return self.room


def a_logger(lines: Lines, clock: FakeClock) -> logging.Logger:
    return speaking(HostLogHandler(lines.send, loop=asyncio.get_running_loop(), clock=clock))


def speaking(handler: HostLogHandler) -> logging.Logger:
    """A logger of its own, that no other test or handler hears."""
    logger = logging.Logger("plugin.test")  # noqa: LOG001 - getLogger() would share it
    logger.addHandler(handler)
    return logger


async def test_a_log_line_carries_level_message_fields_logger_and_time() -> None:
    lines = Lines()
    a_logger(lines, FakeClock(now=0.0)).warning("the gate closed", extra={"fields": {"reason": "refused"}})
    await settle()
    [line] = lines.lines
    assert (line.level, line.message, line.logger) == ("warn", "the gate closed", "plugin.test")
    assert line.fields == {"reason": "refused"}
    assert line.time == "1970-01-01T00:00:00.000+00:00"


@pytest.mark.parametrize(
    ("level", "name"),
    [
        (logging.DEBUG, "debug"),
        (logging.INFO, "info"),
        (logging.WARNING, "warn"),
        (logging.CRITICAL, "error"),
        (5, "debug"),
    ],
)
async def test_every_level_has_one_of_the_four_names(level: int, name: str) -> None:
    lines = Lines()
    a_logger(lines, FakeClock()).log(level, "m")
    await settle()
    assert [line.level for line in lines.lines] == [name]


async def test_an_exception_is_in_the_fields() -> None:
    lines = Lines()
    try:
        int("inner")
    except ValueError:
        a_logger(lines, FakeClock()).error("failed", exc_info=sys.exc_info())
    await settle()
    assert "ValueError: invalid literal" in str(lines.lines[0].fields["exception"])


async def test_a_flood_is_bounded_and_told_in_one_line_once_it_ebbs() -> None:
    lines, clock = Lines(), FakeClock()
    logger = a_logger(lines, clock)
    for _ in range(BURST_LINES + 1000):
        logger.info("again")
    await settle()
    assert len(lines.lines) == BURST_LINES
    await clock.advance(1)
    logger.info("after")
    await settle()
    summary, after = lines.lines[BURST_LINES:]
    assert (summary.level, summary.fields) == ("warn", {"count": 1000})
    assert after.message == "after"


async def test_lines_that_found_no_room_are_counted_too() -> None:
    lines = Lines()
    logger = a_logger(lines, FakeClock())
    lines.room = False
    logger.info("lost")
    await settle()
    lines.room = True
    logger.info("kept")
    await settle()
    assert [line.fields for line in lines.lines] == [{"count": 1}, {}]


async def test_a_line_from_another_thread_arrives() -> None:
    lines = Lines()
    logger = a_logger(lines, FakeClock())
    thread = threading.Thread(target=logger.info, args=("from afar",))
    thread.start()
    thread.join()
    await settle()
    assert [line.message for line in lines.lines] == ["from afar"]


def test_a_line_after_the_loop_has_closed_is_dropped_quietly() -> None:
    loop = asyncio.new_event_loop()
    lines = Lines()
    logger = speaking(HostLogHandler(lines.send, loop=loop, clock=FakeClock()))
    loop.close()
    logger.error("too late")
    assert lines.lines == []
