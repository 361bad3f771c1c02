"""From the first byte to the last deadline, with the plugin as a real process and real servers."""

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path
from typing import cast

import pytest

from plugin.loopback.faults import Delay, Hang
from protocol.errors import RpcError
from protocol.framing import Framing
from tests.support.fleet import TOKEN, Fleet, dispatch, environment, field, fleet_on_loopback
from tests.support.signals import inherited

SERVE = [sys.executable, "-m", "plugin", "serve"]
HARD_LIMIT_S = 1.5 + 1.0 + 5.0  # the deadline, the watchdog's second, and room for a busy machine


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncGenerator[Fleet]:
    async with fleet_on_loopback(tmp_path) as fleet:
        yield fleet


@pytest.mark.parametrize("framing", list(Framing))
async def test_a_host_launches_it_from_the_manifest_pushes_and_shuts_it_down(fleet: Fleet, framing: Framing) -> None:
    host = fleet.host(framing=framing)
    async with host:
        answer = await host.call("agentic.sync.push", {"dispatches": [dispatch(1), dispatch(2)]})
        assert field(answer, "count") == 2
        await fleet.wait_shown("codex", "idle")
        await host.set_state("codex", "busy")
        await fleet.wait_shown("codex", "busy")
    assert host.process.returncode == 0
    assert [record.id for record in fleet.platform.records] == ["work-1", "work-2"]
    assert fleet.guilds[0].presence == {"user-codex": "offline"}


async def test_the_initialize_answer_holds_the_manifests_own_objects(fleet: Fleet) -> None:
    manifest = json.loads((Path(__file__).parents[2] / "manifest.json").read_text())
    async with fleet.host(initialize=False) as host:
        answer = await host.call("initialize", {"config": fleet.config()})
        assert field(answer, "actions") == manifest["actions"]
        assert field(answer, "host_callbacks") == manifest["host_callbacks"]
        described = await host.call("rpc.discover")
        known = cast("dict[str, dict[str, object]]", field(field(described, "components"), "errors"))
        assert {-32010, -32011, -32012, -32014, -32015, -32016, -32017, -32022} <= {
            error["code"] for error in known.values()
        }
        methods = cast("list[dict[str, str]]", field(described, "methods"))
        names = {method["name"] for method in methods}
        assert {action["name"] for action in manifest["actions"]} <= names


async def test_a_simple_host_that_never_initializes_is_served_from_the_environment(fleet: Fleet) -> None:
    lines = [
        {"jsonrpc": "2.0", "id": 1, "method": "agentic.sync.push", "params": {"dispatches": [dispatch(1)]}},
        {"jsonrpc": "2.0", "id": 2, "method": "ping"},
    ]
    done = await run_on_files(
        fleet.folder,
        lines,
        AGENTIC_SYNC_ROOT=str(fleet.folder / "root"),
        CORE_API_URL=fleet.platform.url,
        CORE_AGENT_API_KEY="loopback-token",
    )
    answers = {answer["id"]: answer for answer in done.answers if "id" in answer}
    assert done.code == 0
    assert answers[1]["result"]["success"] is True
    assert answers[2]["result"] == {}
    # The answer of the push may come before the platform's at the end of the input; the work is stored all the same.
    assert answers[1]["result"]["count"] + answers[1]["result"]["queued"] == 1


async def test_regular_files_for_input_and_output_answer_every_line_even_the_last_without_a_newline(
    tmp_path: Path,
) -> None:
    lines = [{"jsonrpc": "2.0", "id": number, "method": "ping"} for number in range(200)]
    done = await run_on_files(tmp_path, lines)
    assert done.code == 0
    assert sorted(answer["id"] for answer in done.answers if "id" in answer) == list(range(200))


async def test_an_invalid_configuration_names_every_path_and_the_process_lives_on(fleet: Fleet) -> None:
    async with fleet.host(initialize=False) as host:
        wrong = {"presence": {"interval_s": "often"}, "platform": {"base_ulr": fleet.platform.url}}
        with pytest.raises(RpcError) as caught:
            await host.call("initialize", {"config": wrong})
        assert caught.value.code == -32015
        problems = cast("list[dict[str, str]]", field(caught.value.data, "detail"))
        assert {problem["path"] for problem in problems} == {"platform.base_ulr", "presence.interval_s"}
        with pytest.raises(RpcError) as caught:
            await host.call("agentic.sync.push", {"dispatches": [dispatch(1)]})
        assert caught.value.code == -32015  # it must not go where the defaults point
        await host.call("initialize", {"config": fleet.config()})
        answer = await host.call("agentic.sync.push", {"dispatches": [dispatch(1)]})
        assert field(answer, "count") == 1


async def test_the_configuration_in_force_is_logged_for_a_debugger_without_its_secrets(fleet: Fleet) -> None:
    async with fleet.host(log={"level": "debug"}) as host:
        line = await host.wait_for_log(lambda line: line.message == "the configuration in force")
    platform = cast("dict[str, object]", line.fields["platform"])
    assert (platform["base_url"], platform["api_key"]) == (fleet.platform.url, "***")
    assert not any(TOKEN in str(line) for line in host.logs)


async def test_a_protocol_version_that_it_cannot_speak_is_refused_with_those_it_can(fleet: Fleet) -> None:
    async with fleet.host(initialize=False) as host:
        with pytest.raises(RpcError) as caught:
            await host.call("initialize", {"protocol_version": 7})
        assert caught.value.code == -32022
        assert field(field(caught.value.data, "detail"), "supported") == [1]


async def test_a_version_that_is_null_is_none_also_where_params_come_by_position(fleet: Fleet) -> None:
    async with fleet.host(initialize=False) as host:
        assert field(await host.call("initialize", [None, None, fleet.config()]), "protocol_version") == 1
        assert field(await host.call("agentic.sync.status"), "agent_id") == "fleet"


async def test_an_invalid_environment_is_logged_for_a_host_that_calls_no_action(tmp_path: Path) -> None:
    ping = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
    done = await run_on_files(tmp_path, [ping], AGENTIC_SYNC_QUEUE_MAX_RECORDS="many")
    errors = [one["params"] for one in done.answers if one.get("method") == "log" and one["params"]["level"] == "error"]
    assert [[path for path, _ in line["fields"]["problems"]] for line in errors] == [["queue.max_records"]]


async def test_wrong_parameters_name_their_path_and_nothing_of_them_is_stored(fleet: Fleet) -> None:
    async with fleet.host() as host:
        wrong: list[tuple[dict[str, object], str]] = [
            ({"dispatches": [dispatch(1), {"task": "of nowhere"}]}, "$.dispatches[1]"),
            ({"dispatches": "no json"}, "$.dispatches"),
            ({"agent_id": "a" * 256, "dispatches": [dispatch(1)]}, "$.agent_id"),
            ({"_arg": "a" * 256, "dispatches": [dispatch(1)]}, "$._arg"),
            ({"dispatchs": []}, "$.dispatchs"),
        ]
        for params, path in wrong:
            with pytest.raises(RpcError) as caught:
                await host.call("agentic.sync.push", params)
            assert caught.value.code == -32602
            assert field(caught.value.data, "path") == path
        assert field(await host.call("agentic.sync.status"), "queued") == 0
    assert fleet.platform.records == []


async def test_end_of_input_with_work_in_flight_ends_in_time_with_nothing_lost(fleet: Fleet) -> None:
    fleet.platform.menu.add(Hang(), route="sync", times=None)
    host = fleet.host()
    await host.start()
    push = asyncio.create_task(host.call("agentic.sync.push", {"dispatches": [dispatch(1)]}))
    await fleet.platform.wait_until(lambda platform: len(platform.pushes) == 1)
    started_at = time.monotonic()
    assert await host.close_input() == 0
    assert time.monotonic() - started_at < HARD_LIMIT_S
    with pytest.raises(RpcError):
        await push
    fleet.platform.menu.clear()
    async with fleet.host():
        await fleet.platform.wait_until(lambda platform: len(platform.records) == 1)
    first, *others = [arrival.key for arrival in fleet.platform.pushes]
    assert set(others) == {first}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
async def test_sigterm_and_sighup_set_presence_offline_and_exit_cleanly(fleet: Fleet, number: signal.Signals) -> None:
    with inherited(number, signal.SIG_DFL):
        async with fleet.host() as host:
            await fleet.wait_shown("codex", "idle")
            host.process.send_signal(number)
            assert await host.process.wait() == 0
    assert fleet.guilds[0].presence == {"user-codex": "offline"}


async def test_under_nohup_it_does_not_end_with_its_terminal(fleet: Fleet) -> None:
    with inherited(signal.SIGHUP, signal.SIG_IGN):
        async with fleet.host() as host:
            await fleet.wait_shown("codex", "idle")
            host.process.send_signal(signal.SIGHUP)
            await host.set_state("codex", "busy")
            await fleet.wait_shown("codex", "busy")
            host.process.send_signal(signal.SIGTERM)
            assert await host.process.wait() == 0


async def test_shutdown_with_work_in_flight_answers_it_and_records_it(fleet: Fleet) -> None:
    released = asyncio.Event()
    fleet.platform.menu.add(Delay(until=released), route="sync")
    host = fleet.host()
    await host.start()
    push = asyncio.create_task(host.call("agentic.sync.push", {"dispatches": [dispatch(1)]}))
    await fleet.platform.wait_until(lambda platform: len(platform.pushes) == 1)
    stop = asyncio.create_task(host.stop())
    released.set()
    assert field(await push, "count") == 1
    assert await stop == 0
    async with fleet.host() as again:
        status = await again.call("agentic.sync.status")
        assert field(status, "queued") == 0
    assert len(fleet.platform.records) == 1


async def test_a_pushed_state_does_not_wait_behind_pushes_that_wait_for_the_platform(fleet: Fleet) -> None:
    released = asyncio.Event()
    fleet.platform.menu.add(Delay(until=released), route="sync", times=None)
    async with fleet.host(presence={"interval_s": 60}) as host:
        await fleet.wait_shown("codex", "idle")
        pushes = [
            asyncio.create_task(
                host.call("agentic.sync.push", {"agent_id": f"a{number}", "dispatches": [dispatch(number)]})
            )
            for number in range(9)
        ]
        await fleet.platform.wait_until(lambda platform: len(platform.pushes) == 2)
        await host.set_state("codex", "busy")
        await fleet.wait_shown("codex", "busy", timeout_s=10)
        assert not any(push.done() for push in pushes)
        released.set()
        await asyncio.gather(*pushes)


async def test_a_shutdown_that_expects_no_answer_ends_the_process_all_the_same(fleet: Fleet) -> None:
    host = fleet.host()
    async with host:
        await host.peer.notify("shutdown")
        async with asyncio.timeout(60):
            assert await host.process.wait() == 0


async def test_exit_without_shutdown_is_exit_code_one(fleet: Fleet) -> None:
    host = fleet.host()
    await host.start()
    await host.peer.notify("exit", None)
    assert await host.process.wait() == 1
    await host.kill()


async def test_the_deadline_holds_when_everything_hangs(fleet: Fleet) -> None:
    async def never(_agent: str) -> object:
        await asyncio.Event().wait()
        return None

    for server in (fleet.platform, fleet.center, *fleet.guilds):
        server.menu.add(Hang(), times=None)
    host = fleet.host()
    host.answer = never
    await host.start()
    calls = [
        asyncio.create_task(host.call("agentic.sync.push", {"dispatches": [dispatch(1)]})),
        asyncio.create_task(host.call("agentic.sync.pull")),
        asyncio.create_task(host.call("agentic.sync.status")),
        asyncio.create_task(host.call("agentic.presence.refresh")),
    ]
    await fleet.platform.wait_until(lambda platform: len(platform.arrivals) == 3)
    started_at = time.monotonic()
    await host.terminate()
    assert time.monotonic() - started_at < HARD_LIMIT_S
    await asyncio.gather(*calls, return_exceptions=True)


async def test_the_plugin_does_not_outlive_a_host_that_is_killed(tmp_path: Path) -> None:
    # The input stays open in this process, so only the watch on the parent can end the plugin.
    read_fd, write_fd = os.pipe()
    script = f"import subprocess, time; subprocess.Popen({SERVE!r}); print('up', flush=True); time.sleep(60)"
    launcher = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        script,
        stdin=read_fd,
        stdout=asyncio.subprocess.PIPE,
        env=environment(tmp_path, AGENTIC_SYNC_ROOT=str(tmp_path)),
        cwd=Path(__file__).parents[2],
    )
    os.close(read_fd)
    assert launcher.stdout is not None
    async with asyncio.timeout(30):
        assert await launcher.stdout.readline() == b"up\n"
        os.write(write_fd, b'{"jsonrpc":"2.0","id":1,"method":"ping"}\n')
        assert json.loads(await launcher.stdout.readline())["id"] == 1
        launcher.send_signal(signal.SIGKILL)
        # The output ends when the last process that holds it has ended: the plugin. Its last lines are log lines.
        last = await launcher.stdout.read()
        await launcher.wait()
    assert all("id" not in json.loads(line) for line in last.splitlines())
    os.close(write_fd)


class Done:
    def __init__(self, code: int, output: bytes) -> None:
        self.code = code
        self.answers = [json.loads(line) for line in output.splitlines()]


async def run_on_files(folder: Path, lines: Sequence[Mapping[str, object]], **environ: str) -> Done:
    source, target = folder / "in.jsonl", folder / "out.jsonl"
    source.write_text("\n".join(json.dumps(line) for line in lines))
    with source.open("rb") as stdin, target.open("wb") as stdout:
        process = await asyncio.create_subprocess_exec(
            *SERVE,
            stdin=stdin,
            stdout=stdout,
            env=environment(folder, **{"AGENTIC_SYNC_ROOT": str(folder), **environ}),
            cwd=Path(__file__).parents[2],
        )
        async with asyncio.timeout(30):
            code = await process.wait()
    return Done(code, target.read_bytes())
