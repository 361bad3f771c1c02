import logging

import pytest

from plugin.presence.trouble import REPEAT_S, Trouble, Troubles
from tests.support.clock import FakeClock

LASTING = Trouble("it is wrong", "it is well")
SINGLE = Trouble("it is odd", "it is even", logging.ERROR, repeats=False)
MASS = Trouble("all is wrong", "all is well", each=False)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def troubles(clock: FakeClock, caplog: pytest.LogCaptureFixture) -> Troubles:
    caplog.set_level(logging.DEBUG, "plugin.presence.trouble")
    return Troubles(clock)


def lines(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str, object]]:
    found = [(record.levelname, record.getMessage(), record.__dict__["fields"]["count"]) for record in caplog.records]
    caplog.clear()
    return found


async def test_a_trouble_is_logged_when_it_starts_every_ten_minutes_with_its_count_and_when_it_ends(
    troubles: Troubles, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(5):
        troubles.add(LASTING, where="g1", who="ada", reason="reset")
    assert lines(caplog) == [("WARNING", "it is wrong", 1)]
    await clock.advance(REPEAT_S - 1)
    troubles.add(LASTING, where="g1", who="ada", reason="reset")
    assert lines(caplog) == []
    await clock.advance(1)
    troubles.add(LASTING, where="g1", who="ada", reason="reset")
    assert lines(caplog) == [("WARNING", "it is wrong", 7)]
    troubles.end(LASTING, where="g1", who="ada")
    troubles.end(LASTING, where="g1", who="ada")
    assert lines(caplog) == [("INFO", "it is well", 7)]
    troubles.add(LASTING, where="g1", who="ada", reason="reset")
    assert lines(caplog) == [("WARNING", "it is wrong", 1)]


async def test_one_that_does_not_repeat_is_logged_once_while_it_lasts(
    troubles: Troubles, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        troubles.add(SINGLE, where="g1", who="ada", reason="x")
        await clock.advance(REPEAT_S)
    assert lines(caplog) == [("ERROR", "it is odd", 1)]


def test_each_who_is_newly_affected_is_logged_and_it_ends_with_the_last(
    troubles: Troubles, caplog: pytest.LogCaptureFixture
) -> None:
    for who in ("ada", "bob", "ada"):
        troubles.add(LASTING, where="g1", who=who, reason="x")
    assert len(lines(caplog)) == 2
    troubles.end(LASTING, where="g1", who="ada")
    assert lines(caplog) == []
    troubles.end(LASTING, where="g1", who="bob")
    assert [text for _, text, _ in lines(caplog)] == ["it is well"]


def test_a_trouble_of_many_is_one_line(troubles: Troubles, caplog: pytest.LogCaptureFixture) -> None:
    for who in ("ada", "bob", "cyd"):
        troubles.add(MASS, where="host", who=who, reason="x")
    assert len(lines(caplog)) == 1


def test_who_is_forgotten_has_no_trouble_any_more(troubles: Troubles, caplog: pytest.LogCaptureFixture) -> None:
    troubles.add(LASTING, where="g1", who="ada", reason="x")
    troubles.add(SINGLE, where="g2", who="ada", reason="x")
    troubles.add(LASTING, where="g2", who="bob", reason="x")
    lines(caplog)
    troubles.forget("ada")
    assert [text for _, text, _ in lines(caplog)] == ["it is well", "it is even"]


def test_the_same_trouble_elsewhere_is_another(troubles: Troubles, caplog: pytest.LogCaptureFixture) -> None:
    troubles.add(LASTING, where="g1", who="ada", reason="x")
    troubles.add(LASTING, where="g2", who="ada", reason="x")
    assert len(lines(caplog)) == 2
    troubles.end(LASTING, where="g1", who="ada")
    assert len(lines(caplog)) == 1
