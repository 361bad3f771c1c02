"""Read the outbox of a state folder, also while a plugin works on it; nothing here writes."""

import argparse
import os
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from plugin.config import sources
from plugin.errors import ConfigInvalid
from plugin.store import file, outbox
from plugin.store.interface import QueueRow, RowState
from plugin.sync.mirror import export_queue
from protocol.claim import Wire

PAGE = 1000


def run(_options: argparse.Namespace, _wire: Wire | None) -> int:
    """Print what is still to be sent in the Go agent's shape; dead letters are not."""
    try:
        folder = Path(sources.load(os.environ).state_dir)
    except ConfigInvalid as invalid:
        sys.stderr.write(f"agentic-sync: {invalid.message}\n")
        return 1
    if not (folder / file.NAME).is_file():
        sys.stderr.write(f"agentic-sync: {folder} has no store yet: nothing was ever queued there\n")
        return 1
    try:
        with closing(file.open_reader(folder)) as db:
            exported = export_queue(row for row in _rows(db) if row.state is not RowState.DEAD)
    except (sqlite3.Error, file.Damaged, file.Newer) as error:
        sys.stderr.write(f"agentic-sync: the store in {folder} cannot be read: {error}\n")
        return 1
    sys.stdout.buffer.write(exported.rstrip(b"\n") + b"\n")
    return 0


def _rows(db: sqlite3.Connection) -> Iterator[QueueRow]:
    after = 0
    while page := outbox.rows(db, state=None, after=after, limit=PAGE):
        yield from page
        after = page[-1].row
