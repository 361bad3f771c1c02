"""Play the demo in a folder of its own, and leave nothing behind."""

import argparse
import asyncio
import logging
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.live import Live

from plugin.demo import screen
from plugin.demo.facts import Facts
from plugin.demo.story import Story
from plugin.demo.world import World
from protocol.stdio import Wire

SEED = 7


def run(options: argparse.Namespace, _wire: Wire | None) -> int:
    """Play it; return 1 when anything that must be so isn't."""
    logging.getLogger("plugin").addHandler(logging.NullHandler())
    facts = asyncio.run(_play(Console()))
    if options.svg is not None:
        Path(options.svg).write_text(screen.picture(facts), encoding="utf-8")
        sys.stdout.write(f"The picture is in {options.svg}\n")
    return 0 if facts.checks and all(check.good for check in facts.checks) else 1


async def _play(console: Console) -> Facts:
    with tempfile.TemporaryDirectory(prefix="agentic-sync-demo-") as folder:
        async with World(Path(folder), seed=SEED) as world:
            return await (_live(world, console) if console.is_terminal else _plain(world, console))


async def _live(world: World, console: Console) -> Facts:
    with Live(console=console, refresh_per_second=10) as live:
        story = Story(world, show=lambda facts: live.update(screen.frame(facts)), on_step=lambda _: None)
        return await story.play()


async def _plain(world: World, console: Console) -> Facts:
    story = Story(
        world,
        show=lambda _: None,
        on_step=lambda facts: console.print(screen.line(facts), highlight=False, soft_wrap=True),
    )
    facts = await story.play()
    console.print(screen.summary(facts.checks, facts.elapsed_s))
    return facts
