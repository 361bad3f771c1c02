"""Serve a host over the claimed wire."""

import asyncio
import contextlib
import os
import resource
from typing import TYPE_CHECKING

from plugin.app import App
from protocol.framing import Framing
from protocol.stdio import Wire, open_stream, wait_hung_up

if TYPE_CHECKING:
    import argparse


DESCRIPTORS = 10_240  # more than this macOS grants nobody


def run(options: "argparse.Namespace", wire: Wire | None) -> int:
    """Serve until the host is done."""
    if wire is None:
        raise SystemExit("agentic-sync: serve needs stdin and stdout as its wire")
    return serve(wire, None if getattr(options, "framing", None) is None else Framing(options.framing))


def serve(wire: Wire, framing: Framing | None = None) -> int:
    """Serve until the host is done; return the exit code. Without a framing the first byte decides."""
    raise_descriptors()
    return asyncio.run(_serve(wire, framing))


def raise_descriptors() -> None:
    """Let the process open as many connections as its guilds may need, as far as the system allows it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # refused: what is allowed already must do
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def _serve(wire: Wire, framing: Framing | None) -> int:
    interactive = os.isatty(wire.read_fd)
    stream = await open_stream(wire)
    return await App(environ=os.environ).run(
        stream, framing=framing, interactive=interactive, hung_up=lambda: wait_hung_up(wire.read_fd)
    )
