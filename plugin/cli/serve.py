"""Serve a host over the claimed wire."""

import argparse
import asyncio
import os

from plugin.app import App
from protocol.framing import Framing
from protocol.stdio import Wire, open_stream, wait_hung_up


def run(options: argparse.Namespace, wire: Wire | None) -> int:
    """Serve until the host is done."""
    if wire is None:
        raise SystemExit("agentic-sync: serve needs stdin and stdout as its wire")
    framing = None if getattr(options, "framing", None) is None else Framing(options.framing)
    return asyncio.run(_serve(wire, framing))


async def _serve(wire: Wire, framing: Framing | None) -> int:
    interactive = os.isatty(wire.read_fd)
    stream = await open_stream(wire)
    return await App(environ=os.environ).run(
        stream, framing=framing, interactive=interactive, hung_up=lambda: wait_hung_up(wire.read_fd)
    )
