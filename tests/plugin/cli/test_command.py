"""The command line as a person meets it: real processes, at a terminal and away from one."""

import asyncio
import json
import os
import pty
import signal
import sys
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from plugin import __version__
from tests.support.fleet import Fleet, dispatch, environment, fleet_on_loopback
from tests.support.signals import inherited

ROOT = Path(__file__).parents[3]


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncGenerator[Fleet]:
    async with fleet_on_loopback(tmp_path) as fleet:
        yield fleet


class Ran:
    def __init__(self, code: int | None, out: bytes, err: bytes) -> None:
        self.code = code
        self.out = out.decode()
        self.err = err.decode()


async def run(*arguments: str, environ: dict[str, str], stdin: int | None = asyncio.subprocess.DEVNULL) -> Ran:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "plugin",
        *arguments,
        stdin=stdin,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environ,
        cwd=ROOT,
    )
    async with asyncio.timeout(50):
        out, err = await process.communicate()
    return Ran(process.returncode, out, err)


def settings(fleet: Fleet) -> dict[str, str]:
    return environment(
        fleet.folder,
        AGENTIC_SYNC_ROOT=str(fleet.folder / "root"),
        CORE_API_URL=fleet.platform.url,
        CORE_AGENT_API_KEY="loopback-token",
        AGENTIC_SYNC_FABRIC_CENTER_URL=fleet.center.url,
        AGENTIC_SYNC_BINDINGS=json.dumps([{"agent_id": "codex", "guild_node_id": "lobby"}]),
        AGENTIC_SYNC_IDENTITIES=json.dumps([{"agent_id": "codex", "api_key": "key-codex"}]),
    )


async def test_the_version_is_told(tmp_path: Path) -> None:
    ran = await run("--version", environ=environment(tmp_path))
    assert (ran.code, ran.out) == (0, f"agentic-sync {__version__}\n")


async def test_at_a_terminal_without_a_subcommand_it_explains_itself_and_ends(tmp_path: Path) -> None:
    terminal, ours = pty.openpty()
    try:
        ran = await run(environ=environment(tmp_path), stdin=ours)
    finally:
        os.close(terminal)
        os.close(ours)
    assert ran.code == 0
    for hint in ("agentic-sync demo", "agentic-sync call", "agentic-sync serve", "A terminal is no host"):
        assert hint in ran.out


async def test_away_from_a_terminal_it_serves_without_a_subcommand(tmp_path: Path) -> None:
    ran = await run(environ=environment(tmp_path))
    assert (ran.code, ran.out) == (0, "")


async def test_help_reaches_standard_output_even_for_serve(tmp_path: Path) -> None:
    ran = await run("serve", "--help", environ=environment(tmp_path))
    assert ran.code == 0
    assert "--framing" in ran.out


async def test_call_launches_the_plugin_and_prints_the_result(fleet: Fleet) -> None:
    params = json.dumps({"dispatches": [dispatch(1)]})
    ran = await run("call", "agentic.sync.push", params, environ=settings(fleet))
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["count"] == 1
    assert [record.id for record in fleet.platform.records] == ["work-1"]


async def test_call_never_touches_presence_since_it_knows_no_agents(fleet: Fleet) -> None:
    ran = await run("call", "agentic.sync.status", environ=settings(fleet))
    assert ran.code == 0, ran.err
    assert fleet.center.arrivals == []
    assert fleet.guilds[0].arrivals == []


async def test_call_prints_an_error_answer_and_fails(fleet: Fleet) -> None:
    ran = await run("call", "agentic.sync.push", '{"dispatches": 7}', environ=settings(fleet))
    assert ran.code == 1
    assert json.loads(ran.err)["code"] == -32602


async def test_call_with_parameters_that_are_no_json_says_so(fleet: Fleet) -> None:
    ran = await run("call", "agentic.sync.push", "{", environ=settings(fleet))
    assert ran.code == 2
    assert "JSON" in ran.err


async def test_call_on_a_configuration_that_is_wrong_says_what_and_where(tmp_path: Path) -> None:
    ran = await run("call", "ping", environ=environment(tmp_path, AGENTIC_SYNC_PLATFORM_TIMEOUT_S="soon"))
    assert ran.code == 1
    assert "platform.timeout_s" in ran.err
    assert "Traceback" not in ran.err


async def test_queue_export_prints_what_is_still_to_be_sent_while_the_plugin_runs(fleet: Fleet) -> None:
    await fleet.platform.down()
    async with fleet.host() as host:
        await host.call("agentic.sync.push", {"agent_id": "codex", "dispatches": [dispatch(1), dispatch(2)]})
        ran = await run("queue", "export", "--format", "core", environ=settings(fleet))
    [entry] = json.loads(ran.out)
    assert ran.code == 0, ran.err
    assert entry["agent_id"] == "codex"
    assert [record["id"] for record in entry["dispatches"]] == ["work-1", "work-2"]
    await fleet.platform.up()


async def test_queue_export_of_a_folder_without_a_store_says_so(fleet: Fleet) -> None:
    ran = await run("queue", "export", environ=settings(fleet))
    assert (ran.code, ran.out) == (1, "")
    assert "nothing was ever queued" in ran.err


async def test_the_manifest_is_in_step_with_the_code(tmp_path: Path) -> None:
    ran = await run("manifest", "--check", environ=environment(tmp_path))
    assert (ran.code, ran.err) == (0, "")


async def test_the_demo_shows_the_whole_job_ends_by_itself_and_leaves_nothing_behind(tmp_path: Path) -> None:
    work, picture = tmp_path / "tmp", tmp_path / "demo.svg"
    work.mkdir()
    ran = await run("demo", "--svg", str(picture), environ=environment(tmp_path, TMPDIR=str(work)))
    assert ran.code == 0, ran.out + ran.err
    assert "everything is so" in ran.out
    assert list(work.iterdir()) == []
    assert picture.read_text().startswith("<svg")
    assert "http" not in picture.read_text().replace("http://www.w3.org/2000/svg", "")


async def test_ctrl_c_ends_the_demo_without_a_traceback_and_leaves_nothing_behind(tmp_path: Path) -> None:
    work = tmp_path / "tmp"
    work.mkdir()
    with inherited(signal.SIGINT, signal.SIG_DFL):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-u", "-m", "plugin", "demo"),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=environment(tmp_path, TMPDIR=str(work)),
            cwd=ROOT,
        )
    assert process.stdout is not None
    async with asyncio.timeout(50):
        await process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, err = await process.communicate()
    assert process.returncode == 130
    assert err == b"agentic-sync: interrupted\n"
    assert list(work.iterdir()) == []


def ping(number: int) -> bytes:
    return b'{"jsonrpc":"2.0","id":%d,"method":"ping"}\n' % number


async def serving(folder: Path, stdin: int) -> tuple[asyncio.subprocess.Process, asyncio.StreamReader]:
    with inherited(signal.SIGINT, signal.SIG_DFL):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "plugin", "serve"),
            stdin=stdin,
            stdout=asyncio.subprocess.PIPE,
            env=environment(folder),
            cwd=ROOT,
        )
    assert process.stdout is not None
    return process, process.stdout


async def answered(stdout: asyncio.StreamReader, number: int) -> None:
    while b'"id":%d' % number not in await stdout.readline():
        pass


async def test_ctrl_c_ends_serving_at_a_terminal(tmp_path: Path) -> None:
    terminal, ours = pty.openpty()
    process, stdout = await serving(tmp_path, ours)
    async with asyncio.timeout(50):
        os.write(terminal, ping(1))
        await answered(stdout, 1)
        process.send_signal(signal.SIGINT)
        await stdout.read()
        assert await process.wait() == 0
    os.close(terminal)
    os.close(ours)


async def test_ctrl_c_is_the_hosts_affair_where_the_host_has_the_terminal(tmp_path: Path) -> None:
    process, stdout = await serving(tmp_path, asyncio.subprocess.PIPE)
    assert process.stdin is not None
    async with asyncio.timeout(50):
        process.stdin.write(ping(1))
        await answered(stdout, 1)
        process.send_signal(signal.SIGINT)
        process.stdin.write(ping(2))
        await answered(stdout, 2)
        process.stdin.close()
        await stdout.read()
        assert await process.wait() == 0


async def test_ctrl_c_is_the_hosts_affair_while_the_plugin_still_starts(tmp_path: Path) -> None:
    early = """
import os, signal, sys
from plugin.__main__ import main

class Interrupt:
    def find_spec(self, name, path, target=None):
        if name == "plugin.cli":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupt())
sys.argv = ["agentic-sync", "serve"]
sys.exit(main())
"""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", early),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env=environment(tmp_path),
        cwd=ROOT,
    )
    async with asyncio.timeout(50):
        out, _ = await process.communicate(ping(1))
    assert process.returncode == 0
    assert b'"id":1' in out


TERMINATED_WHILE_IMPORTING = """
import os, signal, sys
import plugin.__main__

class Terminate:
    def find_spec(self, name, path=None, target=None):
        if name == "plugin.cli":
            os.kill(os.getpid(), signal.SIGTERM)

sys.meta_path.insert(0, Terminate())
sys.argv = ["agentic-sync", "serve"]
sys.exit(plugin.__main__.main() + 7)
"""


async def test_sigterm_while_it_still_starts_is_a_clean_end(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", TERMINATED_WHILE_IMPORTING),
        stdin=asyncio.subprocess.DEVNULL,
        env=environment(tmp_path),
        cwd=ROOT,
    )
    async with asyncio.timeout(50):
        assert await process.wait() == 0
