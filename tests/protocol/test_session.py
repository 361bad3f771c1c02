from typing import Any

import pytest

from protocol.messages import Id, Notification, Request
from protocol.methods import Context
from protocol.session import Answer, Calls, Fate, Gathering, Requests, Stage, Step, Work, cut_short, key_of
from tests.support.stage import Listener


def work(id_: Id = 1, batch: Gathering | None = None) -> Work[str]:
    return Work(Request(id_, "m", None, 10), Context(Listener(), "m", id_, None), key_of(id_), batch=batch)


class TestCalls:
    def test_ids_count_from_one_and_are_never_used_again(self) -> None:
        calls: Calls[str] = Calls()
        assert [calls.open("a"), calls.open("b")] == [1, 2]
        assert calls.take(2) == "b"
        assert calls.open("c") == 3
        assert len(calls) == 2

    def test_an_answer_finds_its_waiter_once(self) -> None:
        calls: Calls[str] = Calls()
        call_id = calls.open("a")
        assert calls.take(call_id) == "a"
        assert calls.take(call_id) is None

    @pytest.mark.parametrize("id_", [None, 2, "1", 1.5, -1])
    def test_an_unknown_answer_finds_none(self, id_: Id) -> None:
        calls: Calls[str] = Calls()
        calls.open("a")
        assert calls.take(id_) is None
        assert len(calls) == 1

    def test_a_number_that_came_back_as_a_float_still_finds_its_waiter(self) -> None:
        calls: Calls[str] = Calls()
        calls.open("a")
        assert calls.take(1.0) == "a"

    def test_the_end_takes_all(self) -> None:
        calls: Calls[str] = Calls()
        calls.open("a")
        calls.open("b")
        assert calls.take_all() == ["a", "b"]
        assert calls.take_all() == []


class TestRequests:
    def test_an_id_in_flight_is_taken_until_it_is_closed(self) -> None:
        requests: Requests[str] = Requests()
        first = work(1)
        assert not requests.taken(first.key)
        requests.open(first)
        assert requests.taken(work(1).key)
        assert requests.find(1) is first
        requests.close(first)
        assert not requests.taken(first.key)
        assert requests.find(1) is None

    def test_ids_of_different_types_are_different(self) -> None:
        requests: Requests[str] = Requests()
        ids: list[Id] = [1, 1.0, "1", 0, 0.0, "", 2**70]
        works = [work(id_) for id_ in ids]
        for one in works:
            assert not requests.taken(one.key)
            requests.open(one)
        assert [requests.find(id_) for id_ in ids] == works

    def test_null_is_no_id_to_tell_requests_apart(self) -> None:
        requests: Requests[str] = Requests()
        first, second = work(None), work(None)
        requests.open(first)
        assert not requests.taken(second.key)
        requests.open(second)
        requests.close(first)
        requests.close(second)
        assert requests.find(None) is None

    def test_a_request_that_was_never_entered_may_be_closed(self) -> None:
        requests: Requests[str] = Requests()
        requests.close(work(1))
        assert not requests.taken(1)

    @pytest.mark.parametrize("id_", [True, False, None, [1], {"id": 1}])
    def test_what_is_no_id_finds_nothing(self, id_: object) -> None:
        requests: Requests[str] = Requests()
        requests.open(work(1))
        requests.open(work(0))
        assert requests.find(id_) is None


class TestCutShort:
    @pytest.mark.parametrize(
        ("stage", "step"),
        [(Stage.WAITING, Step.WITHDRAW), (Stage.STARTED, Step.LEAVE), (Stage.RUNNING, Step.INTERRUPT)],
    )
    def test_work_that_is_not_through_gets_the_fate_once(self, stage: Stage, step: Step) -> None:
        one = work()
        one.stage = stage
        assert cut_short(one, Fate.CANCELLED) is step
        assert one.fate is Fate.CANCELLED
        assert cut_short(one, Fate.SILENCED) is Step.NOTHING
        assert one.fate is Fate.CANCELLED

    def test_work_that_is_through_keeps_its_own(self) -> None:
        one = work()
        one.stage = Stage.DONE
        assert cut_short(one, Fate.CANCELLED) is Step.NOTHING
        assert one.fate is Fate.NATURAL


class TestSettle:
    def test_a_request_is_answered_with_what_follows(self) -> None:
        one, callback = work(), print
        one.context.after_answer(callback)
        assert one.settle(b"answer") == Answer(b"answer", (callback,))
        assert one.settled

    def test_a_notification_is_not(self) -> None:
        one: Work[Any] = Work(Notification("m", None, 10), Context(Listener(), "m", None, None))
        assert one.settle(None) is None
        assert one.settled

    def test_a_silenced_request_is_not(self) -> None:
        one = work()
        one.fate = Fate.SILENCED
        assert one.settle(b"answer") is None

    def test_a_member_of_a_batch_waits_for_the_others(self) -> None:
        batch = Gathering(3)
        one, two = work(1, batch), work(2, batch)
        assert one.settle(b"1") is None
        assert batch.add(None) is None
        two.context.after_answer(print)
        assert two.settle(b"2") == Answer(b"[1,2]", (print,))

    def test_a_batch_without_answers_has_none(self) -> None:
        batch = Gathering(2)
        assert batch.add(None) is None
        assert batch.add(None) is None
