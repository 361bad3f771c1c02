"""Print what a host reads before it launches the plugin; keep the files that say it in step with the code."""

import argparse
import sys
from pathlib import Path

from plugin import manifest
from plugin.app import App
from plugin.cli import readme
from plugin.launch import find
from protocol.claim import Wire
from protocol.methods import MethodTable


def run(options: argparse.Namespace, _wire: Wire | None) -> int:
    """Print manifest.json; `--write` writes it and its like, `--check` returns 1 when one of them is stale."""
    return act(options, root=find().parent, table=App(environ={}).table)


def act(options: argparse.Namespace, *, root: Path, table: MethodTable) -> int:
    """Do what the options ask for with the files below `root`."""
    if (options.write or options.check) and not (root / "README.md").is_file():
        sys.stderr.write(f"agentic-sync: {root} is no checkout: the files to write or check are in the sources only\n")
        return 1
    if options.write:
        write(root, table)
        return 0
    if options.check:
        problems = check(root, table)
        sys.stderr.writelines(f"{problem}\n" for problem in problems)
        if problems:
            sys.stderr.write("run: agentic-sync manifest --write\n")
        return 1 if problems else 0
    sys.stdout.write(manifest.render(manifest.build(table)))
    return 0


def write(root: Path, table: MethodTable) -> None:
    """Write manifest.json, its format's schema, and the README's tables."""
    manifest.write(root / "manifest.json", manifest.build(table))
    manifest.write(root / manifest.SCHEMA_FILE, manifest.format_schema())
    readme.write(root / "README.md", table)


def check(root: Path, table: MethodTable) -> list[str]:
    """Return where those files differ from the code."""
    return [
        *manifest.check(root / "manifest.json", manifest.build(table)),
        *manifest.check(root / manifest.SCHEMA_FILE, manifest.format_schema()),
        *readme.check(root / "README.md", table),
    ]
