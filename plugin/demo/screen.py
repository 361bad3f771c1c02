"""Draw one frame of the demo from its facts; keep frames for the picture."""

import io
import re
from collections.abc import Sequence

from rich import box
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from plugin.demo.facts import Check, Facts, Work

WIDTH = 96
SPARKS = " ▁▂▃▄▅▆▇█"
LOOKS = {
    "idle": ("● idle", "green"),
    "on_call": ("◆ on call", "yellow"),
    "busy": ("■ busy", "red"),
    "offline": ("○ offline", "bright_black"),
    "": ("· nothing", "bright_black"),
}


def frame(facts: Facts) -> RenderableType:
    """Lay one frame out: what happens, the outbox, the matrix, the last events, and at the end the checks."""
    sides = Table.grid(expand=True, padding=0)
    sides.add_column(ratio=9)
    sides.add_column(ratio=14)
    sides.add_row(_outbox(facts), _matrix(facts))
    parts: list[RenderableType] = [_head(facts), sides, _events(facts)]
    if facts.checks:
        parts.append(summary(facts.checks, facts.elapsed_s))
    return Group(*parts)


def _head(facts: Facts) -> RenderableType:
    title = Text.assemble(("agentic-sync", "bold cyan"), f"  step {facts.step} of {len(facts.outline)}")
    return Panel(
        Text(_caption(facts), style="bold"),
        title=title,
        title_align="left",
        subtitle=f"{facts.elapsed_s:4.1f} s",
        subtitle_align="right",
        border_style="cyan",
        height=3,
    )


def _caption(facts: Facts) -> str:
    return facts.outline[facts.step - 1] if facts.step else ""


def _outbox(facts: Facts) -> RenderableType:
    work = facts.work
    rows = Table.grid(padding=(0, 1), expand=True)
    rows.add_column(style="bright_black", no_wrap=True)
    rows.add_column(justify="right", no_wrap=True)
    rows.add_row("finished by agents", str(work.made))
    rows.add_row("on the platform", Text(str(work.delivered), style="green"))
    rows.add_row("waiting in the outbox", Text(str(work.queued), style="yellow" if work.queued else "green"))
    rows.add_row("refused, kept aside", Text(str(work.dead), style="red" if work.dead else "green"))
    rows.add_row("requests (sent again)", f"{work.requests} ({work.resent})")
    rows.add_row("platform", _light("up", "down", good=work.platform_up))
    rows.add_row("plugin", _light(f"pid {work.plugin_pid}", "not running", good=work.plugin_pid is not None))
    total = max(work.made - work.dead, 1)
    bar = ProgressBar(total=total, completed=work.delivered, complete_style="green", finished_style="green")
    return Panel(
        Group(rows, bar, _sparkline(facts.depths)), title="outbox", title_align="left", border_style="blue", height=11
    )


def _light(on: str, off: str, *, good: bool) -> Text:
    return Text(on if good else off, style="green" if good else "bold red")


def _sparkline(depths: Sequence[int]) -> Text:
    last = depths[-34:]
    top = max(*last, 1) if last else 1
    line = "".join(SPARKS[-(-depth * (len(SPARKS) - 1) // top)] for depth in last)
    return Text(line or " ", style="yellow", no_wrap=True)


def _matrix(facts: Facts) -> RenderableType:
    table = Table(box=box.SIMPLE_HEAD, expand=True, padding=0)
    table.add_column("agent", style="bold", no_wrap=True)
    table.add_column("does", no_wrap=True)
    for guild in facts.guilds:
        table.add_column(guild, no_wrap=True)
    for agent, state in facts.doing.items():
        cells = [Text(*LOOKS.get(shown, (shown, "magenta"))) for shown in facts.shown.get(agent, ())]
        table.add_row(agent, state, *cells)
    return Panel(table, title="what each guild shows", title_align="left", border_style="blue", height=11)


def _events(facts: Facts) -> RenderableType:
    lines = [*facts.events[-5:], *[""] * (5 - len(facts.events[-5:]))]
    return Panel(
        Text("\n".join(lines), style="bright_black", no_wrap=True, overflow="ellipsis"), border_style="blue", height=7
    )


def summary(checks: Sequence[Check], elapsed_s: float) -> RenderableType:
    """Draw the table of checks."""
    table = Table(box=box.SIMPLE, show_header=False, padding=(0, 1), expand=True)
    table.add_column(width=2)
    table.add_column(ratio=4)
    table.add_column(ratio=1)
    for check in checks:
        table.add_row(Text("✓", "bold green") if check.good else Text("✗", "bold red"), check.name, check.found)
    good = all(check.good for check in checks)
    verdict = f"{'everything is so' if good else 'NOT everything is so'}, after {elapsed_s:.1f} s"
    return Panel(
        table,
        title=Text(verdict, "bold green" if good else "bold red"),
        title_align="left",
        border_style="green" if good else "red",
    )


def line(facts: Facts) -> str:
    """Say a step in one line, for a terminal that cannot redraw."""
    return (
        f"[{facts.elapsed_s:5.1f} s] {facts.step}/{len(facts.outline)} {_caption(facts)}\n          {tally(facts.work)}"
    )


def tally(work: Work) -> str:
    """Say the counts in one line."""
    return (
        f"made {work.made}, on the platform {work.delivered}, waiting {work.queued}, refused {work.dead}, "
        f"requests {work.requests} ({work.resent} sent again)"
    )


# One frame: a terminal window that needs nothing from elsewhere, fonts neither.
SVG = """\
<g class="{unique_id}-frame">
<style>
.{unique_id}-matrix {{
  font: {char_height}px ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; line-height: {line_height}px;
}}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/>
</clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</g>
<!-- {width} {height} -->
"""
FRAME_S = 3


def picture(frames: Sequence[Facts]) -> str:
    """Draw frames as one SVG that shows them in turn, three seconds each; where nothing moves, the last one."""
    most_checks = max(len(facts.checks) for facts in frames)
    drawn = [_window(facts, f"demo{number}", most_checks=most_checks) for number, facts in enumerate(frames)]
    sizes = [re.findall(r"<!-- (\S+) (\S+) -->", window)[-1] for window in drawn]
    width, height = (max(float(size[axis]) for size in sizes) for axis in (0, 1))
    turn = FRAME_S * len(drawn)
    ground = f'<rect width="{width}" height="{height}" rx="8" fill="#292929"/>'
    parts = [
        f'<svg viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg" role="img">',
        "<title>The agentic-sync demo, step by step</title>",
        "<style>",
        f".turn {{ visibility: hidden; animation: turn {turn}s step-end infinite; }}",
        f"@keyframes turn {{ 0% {{ visibility: visible; }} {100 / len(drawn):.3f}% {{ visibility: hidden; }} }}",
        "@media (prefers-reduced-motion) { .turn { animation: none; } }",
        "</style>",
        f"{ground}{drawn[-1]}",
    ]
    parts += [
        f'<g class="turn" style="animation-delay: {FRAME_S * number}s">{ground}{window}</g>'
        for number, window in enumerate(drawn[:-1])
    ]
    return "\n".join([*parts, "</svg>", ""])


def _outline(facts: Facts, *, height: int) -> RenderableType:
    """Draw the whole story, as far as it has come, where the checks will be."""
    table = Table(box=box.SIMPLE, show_header=False, padding=(0, 1), expand=True)
    table.add_column(width=2)
    table.add_column(ratio=1)
    for number, caption in enumerate(facts.outline, 1):
        sign = Text("✓", "green") if number < facts.step else Text("▶" if number == facts.step else "·", "cyan")
        table.add_row(sign, Text(caption, "bold" if number == facts.step else "bright_black"))
    return Panel(table, title="the story", title_align="left", border_style="blue", height=height)


def _window(facts: Facts, name: str, *, most_checks: int) -> str:
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(frame(facts) if facts.checks else Group(frame(facts), _outline(facts, height=most_checks + 4)))
    return console.export_svg(title="agentic-sync demo", code_format=SVG, unique_id=name)
