"""Shows tables in the terminal, and writes them as Markdown."""

from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from bench.values import Figure, Goal, Table


def show(table: Table, console: Console) -> None:
    """Print one table: contestants, goals, curves."""
    console.print()
    console.print(Text(table.title, style="bold"), Text(f"({table.row})", style="bright_black"))
    if table.figures:
        grid = Grid(box=None, padding=(0, 2))
        for heading in ("", table.unit, "spread", "runs"):
            grid.add_column(heading, justify="left" if not heading else "right")
        for figure in table.figures:
            grid.add_row(figure.contestant, amount(figure.median), f"± {figure.spread:.0%}", str(len(figure.values)))
        console.print(grid)
    for curve in table.curves:
        points = "  ".join(f"{amount(x)}: {amount(y)}" for x, y in curve.points)
        console.print(Text(f"  {curve.name}, {table.unit} by {table.x}: {points}"))
    for goal in table.goals:
        console.print(Text(f"  {verdict(goal)}", style="green" if goal.met else "red"))
    if table.note:
        console.print(Text(f"  {table.note}", style="bright_black"))


def verdict(goal: Goal) -> str:
    """Say in a line whether a goal is met, and why it is not."""
    return f"{outcome(goal)}. {goal.why}" if goal.why and not goal.met else outcome(goal)


def outcome(goal: Goal) -> str:
    """Say in a line whether a goal is met."""
    return f"{'met' if goal.met else 'MISSED'}: {goal.what} {amount(goal.value)}, {goal.bound} {amount(goal.limit)}"


def markdown(tables: Sequence[Table]) -> str:
    """Return all tables as Markdown, and before them which goals are met."""
    return "\n".join([*_summary(tables), *(line for table in tables for line in _section(table))])


def _summary(tables: Sequence[Table]) -> Iterator[str]:
    goals = [(table.row, goal) for table in tables for goal in table.goals]
    yield f"{sum(goal.met for _, goal in goals)} of {len(goals)} goals are met.\n"
    yield "| row | what | found | goal | |\n|---|---|---:|---|---|"
    for row, goal in goals:
        met = "met" if goal.met else "**missed**"
        yield f"| {row} | {goal.what.rstrip(':')} | {amount(goal.value)} | {goal.bound} {amount(goal.limit)} | {met} |"
    yield ""


def _section(table: Table) -> Iterator[str]:
    yield f"### {table.title}\n"
    if table.figures:
        yield f"| | {table.unit} | spread |\n|---|---:|---:|"
        yield from (_line(figure) for figure in table.figures)
        yield ""
    if table.drawn:
        yield f"![{table.title}](performance/{table.row}.svg)\n"
    yield from (f"- **{'met' if goal.met else 'missed'}**: {_sentence(goal)}" for goal in table.goals)
    yield f"\n{table.note}\n" if table.note else ""


def _line(figure: Figure) -> str:
    return f"| {figure.contestant} | {amount(figure.median)} | ± {figure.spread:.0%} |"


def _sentence(goal: Goal) -> str:
    line = f"{goal.what} {amount(goal.value)} ({goal.bound} {amount(goal.limit)})"
    return f"{line}. {goal.why}" if goal.why and not goal.met else line


def amount(value: float) -> str:
    """Write a number with three digits that matter."""
    if value == 0 or abs(value) >= 100:  # noqa: PLR2004 - three digits
        return f"{value:,.0f}"
    return f"{value:.3g}"
