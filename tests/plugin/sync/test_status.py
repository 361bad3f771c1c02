"""`agentic.sync.status`: what is known here, and what the platform says when it can be asked."""

import asyncio
import json
from pathlib import Path

import msgspec
import pytest

from plugin.loopback import faults
from plugin.loopback.faults import Hang, RateLimit, Reset
from plugin.loopback.faults import Status as Said
from plugin.store.interface import Gate, GateState, Store, StoreHealth, StoreState
from plugin.sync.gate import GateView, LiveGate
from plugin.sync.platform import Platform, Scope
from plugin.sync.pull import PullParams
from plugin.sync.status import Status, StatusParams, SyncStatus
from tests.support.clock import FakeClock, settle
from tests.support.sync import TOKEN, World, configuration, world
from tests.support.trouble import TroubledStore


async def status(one: World, **given: object) -> SyncStatus:
    return await one.service.status(msgspec.convert(given, StatusParams))


def asked(one: World) -> int:
    return sum(arrival.route == "status" for arrival in one.platform.arrivals)


async def test_without_a_token_everything_is_known_from_here(tmp_path: Path) -> None:
    async with world(tmp_path, platform_settings={"api_key": None, "api_key_file": str(tmp_path / "none")}) as one:
        await one.push("a")
        answer = msgspec.to_builtins(await status(one))
        size = answer.pop("bytes")
        assert "none does not exist" in answer.pop("remote_error")
        assert size > 20
        assert answer == {
            "agent_id": "codex",
            "status": "offline",
            "queued": 1,
            "context_count": 0,
            "dead": 0,
            "ledger": 0,
            "in_flight": 0,
            "enabled": True,
            "gate": {"state": "ready"},
            "store": {"state": "ok"},
            "oldest_queued_at": "2023-11-14T22:13:20.000Z",
        }


async def test_a_token_that_came_meanwhile_is_seen_and_sending_starts(tmp_path: Path) -> None:
    file = tmp_path / "brain.key"
    async with world(tmp_path, platform_settings={"api_key": None, "api_key_file": str(file)}) as one:
        await one.push("a")
        await one.quiet()
        file.write_text(TOKEN, encoding="utf-8")
        assert (await status(one)).status == "idle"
        await one.until_drained()


async def test_counts_and_times_are_those_of_the_store(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        one.platform.context_rows = [{"id": 1}, {"id": 2}]
        one.platform.poison = {"bad"}
        await one.push("a", "b", "bad")
        await one.service.pull(PullParams())
        await one.platform.down()
        answer = await status(one)
        assert (answer.queued, answer.dead, answer.ledger, answer.context_count) == (0, 1, 2, 2)
        assert answer.last_push_at == answer.last_pull_at == "2023-11-14T22:13:20.000Z"


async def test_what_the_platform_says_comes_first(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        body = {
            "data": {
                "agent_id": "codex-1",
                "status": "busy",
                "last_push_at": "2026-03-31T12:00:00+02:00",
                "last_pull_at": "0001-01-01T00:00:00Z",
            }
        }
        one.platform.menu.add(Said(code=200, body=json.dumps(body).encode()))
        answer = await status(one)
        assert (answer.agent_id, answer.status) == ("codex-1", "busy")
        assert answer.last_push_at == "2026-03-31T10:00:00.000Z"
        assert answer.last_pull_at is msgspec.UNSET
        assert answer.remote_error is msgspec.UNSET


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ({"data": {}}, "online"),
        ({"data": {"status": ""}}, "online"),
        ({"data": {"status": {"status": "idle"}}}, "idle"),
        ({"status": "idle"}, "idle"),
        ({"data": {"status": 7, "agent_id": 7, "last_push_at": "yesterday"}}, "online"),
        ({"data": {"status": "x" * 1_000}}, "x" * 200),
    ],
)
async def test_the_platforms_answer_is_read_leniently(tmp_path: Path, body: object, word: str) -> None:
    async with world(tmp_path) as one:
        one.platform.menu.add(Said(code=200, body=json.dumps(body).encode()))
        answer = await status(one)
        assert (answer.agent_id, answer.status) == ("codex", word)
        assert answer.last_push_at is msgspec.UNSET


@pytest.mark.parametrize(
    "fault", [Said(code=500), faults.unauthorised(), faults.login_page(), Said(code=200, body=b"[]"), Reset()]
)
async def test_a_platform_that_says_nothing_is_an_error_text(tmp_path: Path, fault: faults.Kind) -> None:
    async with world(tmp_path) as one:
        one.platform.menu.add(fault, times=None)
        answer = await status(one)
        assert answer.status == "offline"
        assert answer.remote_error


async def test_the_platform_is_asked_once_in_thirty_seconds_for_each_agent(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        for _ in range(29):
            await status(one)
            await one.clock.advance(1)
        assert asked(one) == 1
        await status(one, agent_id="other")
        assert asked(one) == 2
        await one.clock.advance(1.5)
        await status(one)
        assert asked(one) == 3


async def test_callers_at_once_share_one_question(tmp_path: Path) -> None:
    async with world(tmp_path) as one, asyncio.TaskGroup() as tasks:
        for _ in range(10):
            tasks.create_task(status(one))
    assert asked(one) == 1


async def test_a_platform_that_hangs_is_not_waited_for_long(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        one.platform.menu.add(Hang())
        scope = Scope(one.config, Platform.of(one.config, {}))
        impatient = Status(
            store=one.store, sender=one.service.sender, scope=scope, clock=one.clock, remote_timeout_s=0.05
        )
        answer = await impatient(StatusParams())
        assert answer.status == "offline"
        assert answer.remote_error
        await scope.platform.retire()


async def test_what_is_remembered_is_bounded(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        for number in range(300):
            await status(one, _arg=f"agent-{number}")
        assert asked(one) == 300
        await status(one, _arg="agent-299")
        assert asked(one) == 300
        await status(one, _arg="agent-0")
        assert asked(one) == 301


async def test_a_closed_gate_answers_for_the_platform(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        one.platform.menu.add(faults.unauthorised())
        await one.push("a")
        await one.until_closed()
        answer = await status(one)
        assert (answer.status, answer.queued) == ("offline", 1)
        assert answer.remote_error
        assert msgspec.to_builtins(answer.gate) == {
            "state": "parked",
            "reason": "unauthorised",
            "until": "2023-11-14T22:14:20.000Z",
        }
        assert asked(one) == 0
        assert TOKEN not in repr(answer)


async def test_a_limit_that_is_over_is_shown_no_more_though_nothing_was_sent_since(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        one.platform.menu.add(RateLimit(reset_s=30))
        await one.push("a")
        assert (await status(one)).gate.state is GateState.WAITING
        await one.clock.advance(31)
        answer = await status(one)
        assert (answer.gate.state, answer.status) == (GateState.READY, "idle")
        assert answer.remote_error is msgspec.UNSET


async def test_a_closed_gate_that_nothing_is_left_to_probe_is_not_asked_for_ever(tmp_path: Path) -> None:
    async with world(tmp_path, run=False) as one:
        gate = Gate(state=GateState.PARKED, reason="unauthorised", until_ms=1, failures=1)
        await one.store.wait_ready()
        await one.store.set_gate(one.platform.url, gate)
        one.tasks.create_task(one.service.run())
        await one.until(lambda: one.service.sender.gate.state is GateState.PARKED)
        answer = await status(one)
        assert answer.status == "idle"
        assert answer.remote_error is msgspec.UNSET


@pytest.mark.parametrize("state", [GateState.PARKED, GateState.WAITING])
async def test_a_closed_gate_names_a_time_only_as_long_as_that_is_to_come(state: GateState) -> None:
    clock = FakeClock()
    stored = Gate(state=state, reason="unauthorised", until_ms=round(clock.now() * 1000) + 60_000, failures=1)
    gate = LiveGate(stored, clock)
    assert gate.view() == GateView(state=state, reason="unauthorised", until="2023-11-14T22:14:20.000Z")
    await clock.advance(60)
    assert gate.view() == GateView(state=state, reason="unauthorised")


async def test_that_sync_is_switched_off_is_said(tmp_path: Path) -> None:
    async with world(tmp_path, sync={"enabled": False}) as one:
        assert not (await status(one)).enabled
        await one.service.reconfigure(configuration(tmp_path, one.platform.url))
        assert (await status(one)).enabled


async def test_another_token_is_asked_with_at_once(tmp_path: Path) -> None:
    file = tmp_path / "brain.key"
    file.write_text("old", encoding="utf-8")
    async with world(tmp_path, platform_settings={"api_key": None, "api_key_file": str(file)}) as one:
        assert (await status(one)).remote_error
        file.write_text(TOKEN, encoding="utf-8")
        assert (await status(one)).status == "idle"


async def test_a_platform_that_gave_one_agent_no_answer_is_not_waited_for_by_the_others(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        one.platform.menu.add(faults.NotHttp(), times=None)
        for number in range(5):
            assert (await status(one, agent_id=f"agent-{number}")).remote_error
        assert asked(one) == 1
        one.platform.menu.clear()
        await one.clock.advance(30.5)
        assert (await status(one, agent_id="agent-3")).status == "idle"


async def test_a_refused_connection_is_said(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        await one.platform.down()
        await one.push("a")
        await one.until_closed()
        answer = await status(one)
        assert "refused" in str(answer.gate.reason)
        assert "refused" in str(answer.remote_error)


async def test_a_name_is_for_its_agent_and_none_for_all(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        await one.platform.down()
        await one.push("a")
        await one.push("b", "c", agent="other")
        assert (await status(one)).queued == 3
        assert (await status(one, agent_id="codex")).queued == 1
        assert (await status(one, **{"agent-id": "other"})).queued == 2


async def test_requests_in_flight_are_counted(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        one.platform.menu.add(Hang(), route="sync")
        push = one.pushing("a")
        await one.platform.wait_until(lambda server: server.in_flight == 1)
        assert (await status(one)).in_flight == 1
        push.cancel()
        await settle()


async def test_a_store_that_cannot_be_read_is_said_and_no_error(tmp_path: Path) -> None:
    class InUse(TroubledStore):
        health = StoreHealth(state=StoreState.IN_USE, pid=4711, reason="another plugin")

    def taken(store: Store) -> Store:
        troubled = InUse(store)
        troubled.full = {"counts", "context", "times", "ledger_size"}
        return troubled.as_store()

    async with world(tmp_path, wrap=taken) as one:
        answer = await status(one)
        assert msgspec.to_builtins(answer.store) == {"state": "in_use", "pid": 4711, "reason": "another plugin"}
        assert (answer.queued, answer.status) == (0, "idle")
