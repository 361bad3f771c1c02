"""The direction of imports, read from the sources: a reader finds the room for a change, and it stays there."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Each room and the rooms that it may import from, besides its own.
EDGE = {"clock", "config", "crash", "errors", "retry", "secret"}
BELOW = {
    "plugin.store": EDGE,
    "plugin.sync": EDGE | {"store", "web", "endpoint", "credentials"},
    "plugin.presence": EDGE | {"web", "endpoint", "credentials", "host"},
    "plugin.host": EDGE,
    "plugin.web": EDGE | {"endpoint", "__version__"},
    "plugin.endpoint": EDGE,
    "plugin.config": EDGE | {"endpoint"},
    "plugin.credentials": EDGE,
}


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Import(names=names):
                yield from (name.name for name in names)
            case ast.ImportFrom(module=str(module), names=names):
                yield from (f"{module}.{name.name}" for name in names)
            case _:
                pass


def modules(room: str) -> list[Path]:
    path = ROOT / room.replace(".", "/")
    return sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]


@pytest.mark.parametrize("room", BELOW)
def test_a_room_imports_only_from_the_rooms_below_it(room: str) -> None:
    allowed = {f"plugin.{name}" for name in BELOW[room]} | {room}
    strays = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in modules(room)
        for name in imported(path)
        if name.startswith("plugin.") and not any(name == door or name.startswith(f"{door}.") for door in allowed)
    ]
    assert strays == []


def test_the_protocol_knows_nothing_of_the_plugin() -> None:
    strays = [str(path) for path in modules("protocol") if any(name.startswith("plugin") for name in imported(path))]
    assert strays == []


def test_jsonrpcserver_is_imported_in_one_place() -> None:
    importers = {
        str(path.relative_to(ROOT))
        for room in ("plugin", "protocol")
        for path in modules(room)
        if any(name.split(".")[0] == "jsonrpcserver" for name in imported(path))
    }
    assert importers == {"protocol/dispatch.py"}


def test_httpx_and_aiohttps_client_are_used_in_one_place() -> None:
    importers = {
        str(path.relative_to(ROOT))
        for path in modules("plugin")
        if "loopback" not in path.parts
        and any(name.split(".")[0] in {"aiohttp", "httpx", "httpx_aiohttp"} for name in imported(path))
    }
    # URLs are judged by httpx's own idea of one, or a lookalike would pass the rules and reach another host.
    assert importers == {"plugin/web.py", "plugin/endpoint.py"}


def test_only_the_application_and_the_command_line_build_the_whole() -> None:
    importers = {
        str(path.relative_to(ROOT))
        for path in modules("plugin")
        if any(name.startswith(("plugin.app", "plugin.cli")) for name in imported(path))
    }
    assert importers <= {
        "plugin/__main__.py",
        "plugin/cli/serve.py",
        "plugin/cli/command.py",
        "plugin/cli/demo.py",
        "plugin/cli/manifest.py",
    }


def test_no_source_file_is_longer_than_four_hundred_lines() -> None:
    long = {
        str(path): lines
        for room in ("plugin", "protocol")
        for path in modules(room)
        if (lines := len(path.read_text().splitlines())) > 400
    }
    assert long == {}
