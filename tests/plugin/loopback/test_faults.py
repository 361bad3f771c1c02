from dataclasses import dataclass

from plugin.loopback.faults import Cut, FaultMenu, Hang, Reset, Status, forbidden


@dataclass(frozen=True)
class Asked:
    route: str = "sync"
    agent: str = "a"


def test_an_empty_menu_means_good_behaviour() -> None:
    assert FaultMenu().take(Asked()) is None


def test_faults_are_taken_in_order_and_as_often_as_they_say() -> None:
    menu = FaultMenu()
    twice, once = menu.add(Reset(), times=2), menu.add(Hang())
    assert menu.faults == (twice, once)
    assert [menu.take(Asked()) for _ in range(4)] == [twice, twice, once, None]
    assert menu.faults == ()


def test_a_fault_for_another_request_is_passed_over_and_kept() -> None:
    menu = FaultMenu()
    other_route = menu.add(Reset(), route="status")
    other_agent = menu.add(Cut(), agent="b")
    both = menu.add(Hang(), route="sync", agent="a", applied=True)
    assert menu.take(Asked()) is both
    assert menu.take(Asked()) is None
    assert menu.take(Asked(route="status")) is other_route
    assert menu.take(Asked(agent="b")) is other_agent


def test_a_fault_without_end_stays_until_it_is_removed() -> None:
    menu = FaultMenu()
    endless, after = menu.add(forbidden(), times=None), menu.add(Status(code=500))
    assert [menu.take(Asked()) for _ in range(3)] == [endless] * 3
    menu.remove(endless)
    assert menu.take(Asked()) is after
    menu.remove(after)


def test_equal_faults_are_removed_one_by_one() -> None:
    menu = FaultMenu()
    first, second = menu.add(Reset()), menu.add(Reset())
    menu.remove(first)
    assert [fault is second for fault in menu.faults] == [True]


def test_a_cleared_menu_is_empty() -> None:
    menu = FaultMenu()
    menu.add(Reset(), times=None)
    menu.clear()
    assert menu.take(Asked()) is None
