"""Tokens and keys are in nothing that the plugin writes, whatever goes wrong, and reach only whom they are for.

Every test greps all that a run produced: the wire, stderr, log lines, the command line in /proc, and every file below
its folder while it runs and afterwards. The environment of the process is the person's own choice.

Elsewhere: which endpoints are refused (tests/plugin/test_endpoint.py), values that are wrong in the configuration
(tests/property/test_config.py), reprs and log lines of each part (tests/plugin).
"""

import asyncio
import base64
import sys
from collections.abc import AsyncGenerator, Iterable
from pathlib import Path
from urllib.parse import quote

import pytest

from plugin.loopback.faults import Kind, NotHttp, Status
from plugin.loopback.guild import LoopbackGuild
from plugin.loopback.platform import LoopbackPlatform
from tests.support.certificates import server_tls
from tests.support.fleet import Fleet, dispatch, environment, fleet_on_loopback
from tests.support.rawhost import Message, RawHost, raw_host

TOKEN = "sk/platform+7f3a9c4e1b"
KEY = "sk/identity+51d0e2ab66"
PROXY_PASSWORD = "sk-proxy-90ab12cd34"
KEPT = 12  # so much of the beginning of a secret is a secret too

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the command line is read from /proc")


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncGenerator[Fleet]:
    async with fleet_on_loopback(tmp_path, agents=("codex", "claude"), guilds=("build", "lobby")) as fleet:
        fleet.platform.tokens = {TOKEN}
        for agent in fleet.agents:
            fleet.center.add(agent, *fleet.guilds, api_key=KEY)
        yield fleet


def config_of(fleet: Fleet, **parts: object) -> dict[str, object]:
    """A configuration with the secrets in it, under which as much as possible is written down."""
    given: dict[str, object] = {
        "platform": {"base_url": fleet.platform.url, "api_key": TOKEN, "timeout_s": 1},
        "fabric": {"center_url": fleet.center.url, "timeout_s": 1},
        "identities": [{"agent_id": agent, "api_key": KEY} for agent in fleet.agents],
        "presence": {"interval_s": 0.2, "refresh_s": 1},
        "sync": {"mirror_json": True},
        "log": {"level": "debug"},
    }
    return fleet.config(**{**given, **parts})


def busy(call: Message) -> Iterable[Message]:
    return [{"jsonrpc": "2.0", "id": call["id"], "result": {"state": "busy"}}]


def echoes(secrets: Iterable[str], elsewhere: str) -> list[Kind]:
    """Answers that repeat what they were sent, in every place where an answer has one."""
    said = " ".join(f"Authorization: Bearer {secret}" for secret in secrets)
    message = f'{{"error": "{said}", "message": "{said}", "errors": {{"{said}": ["{said}"]}}}}'.encode()
    escaped = message.replace(b"/", b"\\/")  # as PHP writes JSON
    codes = (200, 201, 302, 400, 401, 403, 404, 409, 413, 422, 500, 503)
    return [
        *(
            Status(code=code, headers={"X-Echo": said, "Location": f"{elsewhere}/{said}"}, body=message)
            for code in codes
        ),
        *(Status(code=code, body=escaped) for code in (400, 401, 422, 500)),
        Status(code=503, headers={"Retry-After": said, "X-RateLimit-Reset": said}),
        Status(code=200, headers={"Content-Type": said}, body=said.encode()),
        Status(code=500, headers={"Content-Encoding": said}, body=said.encode()),
        NotHttp(raw=f"{said}\r\n\r\n".encode()),
        NotHttp(raw=f"HTTP/1.1 200 OK\r\n{said}\r\n{said}{said}\r\n\r\n".encode()),
        NotHttp(raw=f"HTTP/1.1 {said}\r\nContent-Length: {said}\r\n\r\n".encode()),
    ]


def guild_tokens(fleet: Fleet) -> list[str]:
    return [fleet.center.token(agent, guild) for agent in fleet.agents for guild in fleet.guilds]


def forms(secret: str) -> set[bytes]:
    """How a secret may be written: as it is, its beginning, its repr in other encodings."""
    plain = secret.encode()
    return {
        plain,
        plain[:KEPT],
        base64.b64encode(plain),
        quote(secret, safe="").encode(),
        secret.replace("/", "\\/").encode(),
        plain.hex().encode(),
    }


def produced(host: RawHost, folder: Path) -> dict[str, bytes]:
    """Everything that the run has written so far, by its place."""
    files = {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert any(name.endswith(".db") for name in files)
    process = Path(f"/proc/{host.process.pid}/cmdline")
    command_line = process.read_bytes() if host.process.returncode is None else b""
    return {"wire": bytes(host.wire), "stderr": bytes(host.stderr), "command line": command_line, **files}


def check(found: dict[str, bytes], secrets: Iterable[str]) -> None:
    leaks = [
        (place, form) for secret in secrets for form in forms(secret) for place, text in found.items() if form in text
    ]
    assert leaks == []


async def provoke(host: RawHost, number: int) -> None:
    """Let the plugin talk to every server and answer about it."""
    await host.call("agentic.sync.push", {"dispatches": [dispatch(number)]})
    await host.call("agentic.sync.pull")
    await host.call(
        "agentic.sync.status", {"agent_id": f"agent-{number}"}
    )  # asked of the platform once in 30 s for each
    await host.call("agentic.presence.status")


async def test_answers_that_repeat_the_token_put_it_nowhere(fleet: Fleet) -> None:
    async with LoopbackPlatform() as elsewhere, raw_host(environment(fleet.folder), config_of(fleet)) as host:
        host.answer = busy
        secrets = {TOKEN, KEY, *guild_tokens(fleet)}
        for server in (fleet.center, *fleet.guilds):
            known = [KEY] if server is fleet.center else guild_tokens(fleet)
            for echo in echoes(known, elsewhere.url):
                server.menu.add(echo)
        number = 0
        for echo in echoes([TOKEN], elsewhere.url):
            number += 1
            # The status is asked for once in 30 s, so that it comes by one echo only.
            for route in ("sync", "context", "status") if number == 1 else ("sync", "context"):
                fleet.platform.menu.add(echo, route=route)
            fleet.center.rotate("codex")
            secrets.update(guild_tokens(fleet))
            await provoke(host, number)
            await host.result("configure", {"config": config_of(fleet)})
        servers = (fleet.platform, fleet.center, *fleet.guilds)
        async with asyncio.timeout(30):
            while any(server.menu.faults for server in servers):
                number += 1
                fleet.center.rotate("codex")
                secrets.update(guild_tokens(fleet))
                await host.result("configure", {"config": config_of(fleet)})
                await host.result("agentic.presence.refresh", {"agent_id": "codex"})
                await provoke(host, number)
        assert (await host.result("agentic.sync.status"))["dead"] > 0  # their answers are kept, and held the token
        check(produced(host, fleet.folder), secrets)
        host.hang_up()
        await host.gone()
        assert elsewhere.arrivals == []
        check(produced(host, fleet.folder), secrets)


async def test_no_failure_of_the_network_shows_a_secret(tmp_path: Path) -> None:
    async with fleet_on_loopback(tmp_path, tls=server_tls("elsewhere")) as fleet, LoopbackPlatform() as proxy:
        await fleet.guilds[0].down()
        with_proxy = {"proxy": proxy.url.replace("http://", f"http://person:{PROXY_PASSWORD}@"), "timeout_s": 1}
        names = {"base_url": "https://platform.invalid", "api_key": TOKEN}
        identities = [{"agent_id": "codex", "api_key": KEY}]
        through: dict[str, object] = {
            "platform": {**names, **with_proxy},
            "fabric": {"center_url": fleet.center.url, **with_proxy},
        }
        # What is in force at the start is logged, so that there is a password in it.
        async with raw_host(environment(tmp_path), config_of(fleet, identities=identities, **through)) as host:
            host.answer = busy
            await provoke(host, 1)
            for parts in ({}, {"platform": names, "fabric": {"center_url": "https://center.invalid"}}, through):
                await host.result("configure", {"config": config_of(fleet, identities=identities, **parts)})
                await provoke(host, 2)
            await host.call("shutdown")
            check(produced(host, tmp_path), [TOKEN, KEY, PROXY_PASSWORD])


def bad_configs(fleet: Fleet) -> list[object]:
    platform = {"base_url": fleet.platform.url}
    return [
        {"platform": {**platform, "api_key": [TOKEN]}},
        {"platform": {**platform, "api_key": {TOKEN: TOKEN}}},
        {"platform": {**platform, "api_key": TOKEN, "api_key_env": "X"}},
        {"platform": {**platform, "apikey": TOKEN}},
        {"platform": {**platform, "base_url": f"https://person:{TOKEN}@example.org"}},
        {"platform": {**platform, "base_url": f"https://person:{quote(TOKEN, safe='')}@example.org"}},
        {"platform": {**platform, "base_url": f"https://example.org/?token={TOKEN}"}},
        {"platform": {**platform, "proxy": f"socks5://person:{TOKEN}@example.org"}},
        {"platform": TOKEN},
        {"fabric": {"center_url": f"http://{TOKEN}"}},
        {"identities": [{"agent_id": "codex", "api_key": 7, "key": TOKEN}, TOKEN, {"api_key": TOKEN}]},
        {"identities": {"codex": TOKEN}},
        {"presence": {"interval_s": TOKEN}},
        TOKEN,
        [TOKEN],
    ]


async def test_a_configuration_that_is_refused_is_not_repeated(fleet: Fleet) -> None:
    async with raw_host(environment(fleet.folder), config_of(fleet)) as host:
        for bad in bad_configs(fleet):
            for method, params in (("configure", {"config": bad}), ("initialize", {"config": bad})):
                answer = await host.call(method, params)
                assert answer["error"]["code"] in {-32602, -32015}, bad
        # A key with a line break in it is read, but never sent.
        broken = {"base_url": fleet.platform.url, "api_key": f"{TOKEN}\nX-Other: {TOKEN}"}
        await host.call("configure", {"config": config_of(fleet, platform=broken)})
        await provoke(host, 1)
        await host.write(f'{{"jsonrpc":"2.0","id":1,"method":"configure","params":{{"config":"{TOKEN}"\n'.encode())
        await host.until(lambda message: "error" in message and message["id"] is None)
        await host.call("shutdown")
        check(produced(host, fleet.folder), [TOKEN, KEY])


async def test_secrets_from_files_and_variables_are_not_shown_either(fleet: Fleet) -> None:
    key_file = fleet.folder.with_name(f"{fleet.folder.name}-key")
    key_file.write_text(f"{KEY}\n{KEY}\n")  # holds more than a key
    environ = environment(fleet.folder, CORE_AGENT_API_KEY=TOKEN, CORE_BRAIN_KEY=TOKEN)
    parts: dict[str, object] = {
        "platform": {"base_url": fleet.platform.url},
        "identities": [{"agent_id": agent, "api_key_file": str(key_file)} for agent in fleet.agents],
    }
    async with raw_host(environ, config_of(fleet, **parts)) as host:
        host.answer = busy
        await provoke(host, 1)
        assert fleet.platform.arrivals[0].token == TOKEN
        await host.call("shutdown")
        check(produced(host, fleet.folder), [TOKEN, KEY])


def session(endpoints: dict[str, str]) -> Status:
    """A session whose guilds are at these places, each with the token `for-<guild>`."""
    entries = ",".join(
        f'{{"node_id": "{name}", "endpoint": "{url}", "token": "for-{name}"}}' for name, url in endpoints.items()
    )
    return Status(code=200, body=f'{{"user_id": "user-codex", "guilds": [{entries}]}}'.encode())


async def test_a_session_that_names_other_places_brings_each_token_only_where_it_was_issued_for(fleet: Fleet) -> None:
    build, lobby = fleet.guilds
    async with LoopbackGuild("elsewhere") as elsewhere, raw_host(environment(fleet.folder), config_of(fleet)) as host:
        host.answer = busy
        await host.read_while(lambda: len(build.presence) < 2 or len(lobby.presence) < 2)
        fleet.center.menu.add(session({"build": elsewhere.url, "lobby": lobby.url}), agent="codex", times=None)
        fleet.center.rotate("codex")
        async with asyncio.timeout(30):
            while not elsewhere.arrivals:
                await host.result("agentic.presence.refresh")
        for _ in range(3):
            await host.result("agentic.presence.refresh")
        host.hang_up()
        await host.gone()
    assert {arrival.token for arrival in elsewhere.arrivals} == {"for-build"}
    for guild in (build, lobby):
        issued = {token for token in guild_tokens(fleet) if token.endswith(guild.node_id)}
        others = {arrival.token for arrival in guild.arrivals if arrival.token not in issued}
        assert all(token is not None and token.endswith(guild.node_id) for token in others)
    assert "for-build" not in {arrival.token for arrival in (*build.arrivals, *lobby.arrivals)}


@pytest.mark.parametrize(
    "endpoint",
    [
        "http://example.org",
        "http://192.0.2.1:8080",
        "https://169.254.169.254/latest",
        "https://person:password@example.org",
        "ftp://127.0.0.1",
        "https://0.0.0.0",
        "http://2130706433",
        "file:///etc/passwd",
        "",
    ],
)
async def test_an_endpoint_that_must_not_be_contacted_is_said_and_the_other_guild_goes_on(
    fleet: Fleet, endpoint: str
) -> None:
    lobby = fleet.guilds[1]
    lobby.tokens["for-lobby"] = "user-codex"
    fleet.center.menu.add(session({"build": endpoint, "lobby": lobby.url}), agent="codex", times=None)
    async with raw_host(environment(fleet.folder), config_of(fleet)) as host:
        host.answer = busy
        await host.read_while(lambda: lobby.presence.get("user-codex") != "busy")
        status = await host.result("agentic.presence.status", {"agent_id": "codex"})
        cells = {cell["guild_node_id"]: cell for cell in status["agents"][0]["guilds"]}
        assert cells["lobby"]["state"] == "in_sync"
        assert cells["build"]["state"] == "parked"
        assert cells["build"]["reason"]


async def test_plain_http_to_another_machine_is_refused_in_the_configuration(fleet: Fleet) -> None:
    wrong = {"platform": {"base_url": "http://example.org"}, "fabric": {"center_url": "http://example.org"}}
    async with raw_host(environment(fleet.folder)) as host:
        answer = await host.call("initialize", {"config": fleet.config(**wrong)})
        assert answer["error"]["code"] == -32015
        paths = {problem["path"] for problem in answer["error"]["data"]["detail"]}
        assert paths == {"platform.base_url", "fabric.center_url"}
