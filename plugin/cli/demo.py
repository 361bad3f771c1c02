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
    # What the servers of the demo log is for their own tests; the story is told by the screen.
    logging.getLogger("plugin").addHandler(logging.NullHandler())
    frames = asyncio.run(_play(Console()))
    if options.svg is not None:
        Path(options.svg).write_text(screen.picture(frames), encoding="utf-8")
        sys.stdout.write(f"The picture is in {options.svg}\n")
    checks = frames[-1].checks
    return 0 if checks and all(check.good for check in checks) else 1


async def _play(console: Console) -> list[Facts]:
    """Return the facts after each step, and the last ones, with the checks."""
    with tempfile.TemporaryDirectory(prefix="agentic-sync-demo-") as folder:
        async with World(Path(folder), seed=SEED) as world:
            return await (_live(world, console) if console.is_terminal else _plain(world, console))


async def _live(world: World, console: Console) -> list[Facts]:
    frames: list[Facts] = []
    with Live(console=console, refresh_per_second=10) as live:
        story = Story(world, show=lambda facts: live.update(screen.frame(facts)), on_step=frames.append)
        return await _told(story, frames)


async def _plain(world: World, console: Console) -> list[Facts]:
    frames: list[Facts] = []

    def tell(facts: Facts) -> None:
        frames.append(facts)
        console.print(screen.line(facts), highlight=False, soft_wrap=True)

    told = await _told(Story(world, show=lambda _: None, on_step=tell), frames)
    console.print(screen.summary(told[-1].checks, told[-1].elapsed_s))
    return told


async def _told(story: Story, frames: list[Facts]) -> list[Facts]:
    last = await story.play()
    return [*frames, last]
