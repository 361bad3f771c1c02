"""Parse the command line and run the subcommand; each one's imports happen only when it runs."""

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import Protocol, cast

from plugin import __version__
from protocol.claim import Wire

INTERRUPTED = 130  # what a shell expects of a command that Ctrl-C ended
WHAT_IT_IS = """\
agentic-sync is a plugin: an agent host launches it and speaks JSON-RPC 2.0 with it over stdin and stdout.
A terminal is no host, so nothing was started. From here you can try:

  agentic-sync demo                          watch the whole job on this machine, in under 30 seconds
  agentic-sync call agentic.sync.status      launch the plugin, ask it something, print the answer
  agentic-sync manifest                      print what a host reads before it launches the plugin
  agentic-sync serve                         serve this terminal all the same (type JSON, end with Ctrl-D)
  agentic-sync --help                        every subcommand and its options
"""


class Subcommand(Protocol):
    """A module of this folder that is a subcommand."""

    def run(self, options: argparse.Namespace, wire: Wire | None) -> int:
        """Do it; return the exit code."""
        ...


def parser() -> argparse.ArgumentParser:
    """Describe every subcommand and option."""
    top = argparse.ArgumentParser(
        prog="agentic-sync",
        description="Brings finished agent work to a platform, and keeps every guild's presence true.",
    )
    top.add_argument("--version", action="version", version=f"agentic-sync {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND")

    serve = commands.add_parser("serve", help="speak JSON-RPC over stdin and stdout; what a host launches")
    serve.add_argument("--framing", choices=["ndjson", "content-length"], help="use this framing from the first byte")

    demo = commands.add_parser("demo", help="show the whole job on loopback servers, in under 30 seconds")
    demo.add_argument("--svg", metavar="FILE", help="also write a picture of the demo to this file")

    call = commands.add_parser("call", help="launch the plugin, call one method, print the result")
    call.add_argument("method", metavar="METHOD", help="for example agentic.sync.status")
    call.add_argument("params", metavar="JSON", nargs="?", help='parameters, for example \'{"agent_id": "codex"}\'')
    call.add_argument("--timeout", type=float, default=60.0, metavar="SECONDS", help="how long to wait (60)")

    queue = commands.add_parser("queue", help="read the outbox, also while a plugin works on it")
    of_queue = queue.add_subparsers(dest="action", metavar="ACTION", required=True)
    export = of_queue.add_parser("export", help="print what is still to be sent")
    export.add_argument("--format", choices=["core"], default="core", help="the Go agent's queue.json")

    manifest = commands.add_parser("manifest", help="print manifest.json as the code has it")
    action = manifest.add_mutually_exclusive_group()
    action.add_argument("--write", action="store_true", help="write manifest.json and the README's tables")
    action.add_argument("--check", action="store_true", help="fail when they differ from the code")
    return top


def run(arguments: Sequence[str], wire: Wire | None) -> int:
    """Run a subcommand and return its exit code; without one, serve a host, or explain to a terminal."""
    options = parser().parse_args(arguments or (["serve"] if wire is not None else []))
    if options.command is None:
        sys.stdout.write(WHAT_IT_IS)
        return 0
    module = cast("Subcommand", importlib.import_module(f"plugin.cli.{options.command}"))
    try:
        return module.run(options, wire)
    except KeyboardInterrupt:
        sys.stderr.write("agentic-sync: interrupted\n")
        return INTERRUPTED
