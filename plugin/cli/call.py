"""Launch the plugin as a host would, call one method, print what it answers."""

import argparse
import asyncio
import os
import sys
from typing import TextIO

import msgspec

from plugin.errors import PluginError
from plugin.loopback.host import LoopbackHost
from protocol.errors import RpcError
from protocol.stdio import Wire


def run(options: argparse.Namespace, _wire: Wire | None) -> int:
    """Print the result as JSON on stdout and return 0; print the error on stderr and return 1."""
    try:
        params = None if options.params is None else msgspec.json.decode(options.params)
    except msgspec.DecodeError as error:
        sys.stderr.write(f"agentic-sync: the parameters are not JSON: {error}\n")
        return 2
    return asyncio.run(_call(options.method, params, options.timeout))


async def _call(method: str, params: object, timeout_s: float) -> int:
    # This process knows no agents: with presence on, it would tell every guild that they are offline.
    environ = {**os.environ, "AGENTIC_SYNC_PRESENCE_ENABLED": "false"}
    try:
        async with LoopbackHost(environ=environ) as host:
            result = await host.call(method, params, timeout_s=timeout_s)
    except RpcError as error:
        _write(sys.stderr, {"code": error.code, "message": error.message, "data": error.data})
        return 1
    except PluginError as error:
        sys.stderr.write(f"agentic-sync: {error.message}\n")
        return 1
    _write(sys.stdout, result)
    return 0


def _write(stream: TextIO, value: object) -> None:
    stream.write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")
