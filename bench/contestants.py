"""Who takes part on the wire: the plugin, its peers, and the floor, each as its users run it."""

import sys
from pathlib import Path
from typing import Final

from bench.stdio import Contestant

PLUGIN: Final = "agentic-sync"
PING: Final = "agentic-sync, ping"
FLOOR: Final = "asyncio + msgspec (floor)"
PACKAGES: Final = "the required packages alone (bare)"
PYGLS, MCP, JSONRPCSERVER, PYLSP = "pygls", "mcp", "jsonrpcserver", "python-lsp-jsonrpc"

_PEERS: Final = Path(__file__).parent / "peers"
# From an environment without the peers: httpx imports a command line of its own where it finds their click.
_OURS: Final = Path(__file__).parent.parent / ".venv" / "bin"
_ECHO: Final = {"agent_id": "codex", "n": 1}
_LSP: Final[dict[str, object]] = {"processId": None, "rootUri": None, "capabilities": {}}
_MCP: Final[dict[str, object]] = {
    "protocolVersion": "2025-06-18",
    "capabilities": {},
    "clientInfo": {"name": "bench", "version": "1"},
}


def contestants(state_dir: Path) -> tuple[Contestant, ...]:
    """Return one of each; the plugin keeps its state below that folder."""
    return (
        _plugin(PLUGIN, state_dir / "status", method="agentic.presence.status", params={"agent_id": "codex"}),
        _peer(FLOOR, "floor", initialize=_ECHO),
        _peer(JSONRPCSERVER, "jsonrpcserver_alone", initialize=_ECHO),
        _peer(PYLSP, "pylsp_server", initialize=_ECHO, headers=True),
        _peer(PYGLS, "pygls_server", initialize=_LSP, initialized="initialized", headers=True),
        _peer(
            MCP,
            "mcp_server",
            method="tools/call",
            params={"name": "echo", "arguments": _ECHO},
            initialize=_MCP,
            initialized="notifications/initialized",
        ),
    )


def ping(state_dir: Path) -> Contestant:
    """Return the plugin once more, asked for what has nothing to do: the share of the wire alone."""
    return _plugin(PING, state_dir / "ping", method="ping", params={})


def packages() -> Contestant:
    """Return a server that has loaded what the plugin needs, and nothing of the plugin."""
    return _peer(PACKAGES, "packages", initialize=_ECHO, python=str(_OURS / "python"))


def _plugin(name: str, state_dir: Path, *, method: str, params: object) -> Contestant:
    config = {"state_dir": str(state_dir)}
    return Contestant(
        name=name,
        argv=(str(_OURS / "agentic-sync"), "serve"),
        method=method,
        params=params,
        initialize={"protocol_version": 1, "host": {"name": "bench"}, "config": config},
        initialized="initialized",
    )


def _peer(
    name: str,
    program: str,
    *,
    initialize: object,
    method: str = "echo",
    params: object = _ECHO,
    initialized: str | None = None,
    headers: bool = False,
    python: str = sys.executable,
) -> Contestant:
    return Contestant(
        name=name,
        argv=(python, str(_PEERS / f"{program}.py")),
        method=method,
        params=params,
        initialize=initialize,
        initialized=initialized,
        headers=headers,
    )
