"""Draws the charts of docs/performance.md as SVG: bars for contestants, lines for growth. Pure."""

import math
from collections.abc import Iterator, Sequence
from html import escape

from bench.report import amount
from bench.values import Curve, Figure, Table

PLUGIN = "agentic-sync"
OURS, THEIRS, INK, RULE = "#0e7490", "#94a3b8", "#334155", "#e2e8f0"
LINES = (OURS, "#b45309", "#6d28d9", "#15803d", "#be123c")
WIDTH, LEFT, RIGHT, TOP = 760, 290, 90, 40
BAR = 28
HEIGHT = 260  # of the area in which lines are drawn
LOG_FROM = 30.0  # bars further apart than this are drawn on a logarithmic axis


def charts(tables: Sequence[Table]) -> dict[str, str]:
    """Return an SVG for each table that has something to compare, by its row's name."""
    return {table.row: _svg(table) for table in tables if table.drawn}


def _svg(table: Table) -> str:
    parts = list(_lines(table) if table.curves else _bars(table))
    height = TOP + (HEIGHT + 70 if table.curves else BAR * len(table.figures) + 34)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'font-family="system-ui, sans-serif" font-size="12" fill="{INK}">'
    )
    page = f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>'
    title = _text(12, 22, table.title, weight="bold")
    return "\n".join([head, page, title, *parts, "</svg>"]) + "\n"


def _bars(table: Table) -> Iterator[str]:
    medians = [figure.median for figure in table.figures]
    log = max(medians) > LOG_FROM * min(medians) > 0
    low = min(min(figure.values) for figure in table.figures) / 2 if log else 0.0
    high = max(max(figure.values) for figure in table.figures)

    def at(value: float) -> float:
        share = math.log(value / low) / math.log(high / low) if log else value / high
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    for number, figure in enumerate(table.figures):
        yield from _bar(figure, TOP + BAR * number, at(figure.median), at(min(figure.values)), at(max(figure.values)))
    scale = ", logarithmic" if log else ""
    yield _text(LEFT, TOP + BAR * len(table.figures) + 18, f"{table.unit}{scale}; the thin line spans all rounds")


def _bar(figure: Figure, y: float, end: float, low: float, high: float) -> Iterator[str]:
    colour = OURS if figure.contestant.startswith(PLUGIN) else THEIRS
    middle = y + BAR / 2
    yield _text(LEFT - 8, middle + 4, figure.contestant, anchor="end")
    yield f'<rect x="{LEFT}" y="{y + 4:.1f}" width="{end - LEFT:.1f}" height="{BAR - 8}" fill="{colour}"/>'
    yield _line(low, middle, high, middle, INK)
    yield _text(max(end, high) + 6, middle + 4, amount(figure.median))


def _lines(table: Table) -> Iterator[str]:
    xs = sorted({x for curve in table.curves for x, _ in curve.points})
    high = 4 * _step(max(y for curve in table.curves for _, y in curve.points) / 4)
    left, right, bottom = 80, WIDTH - 20, TOP + HEIGHT

    def at(x: float, y: float) -> tuple[float, float]:
        span = math.log10(1 + xs[-1]) or 1.0
        return left + math.log10(1 + x) / span * (right - left - 20), bottom - y / high * (HEIGHT - 20)

    for step in range(5):
        _, y = at(0, high * step / 4)
        yield _line(left, y, right, y, RULE)
        yield _text(left - 8, y + 4, amount(high * step / 4), anchor="end")
    for x in xs:
        yield _text(at(x, 0)[0], bottom + 18, f"{x:,.0f}", anchor="middle")
    yield _text(right, bottom + 36, f"{table.x}, logarithmic", anchor="end")
    yield _text(left, bottom + 36, table.unit)
    for number, (curve, colour) in enumerate(zip(table.curves, LINES, strict=False)):
        yield from _curve(curve, [at(x, y) for x, y in curve.points], colour, left + 190 * number, bottom + 56)


def _step(least: float) -> float:
    """Return the next round number, by which an axis is divided."""
    if least <= 0:
        return 1.0
    power: float = 10.0 ** math.floor(math.log10(least))
    return next(part * power for part in (1, 1.25, 1.5, 2, 2.5, 3, 4, 5, 7.5, 10) if part * power >= least)


def _curve(curve: Curve, places: Sequence[tuple[float, float]], colour: str, x: float, y: float) -> Iterator[str]:
    path = " ".join(f"{a:.1f},{b:.1f}" for a, b in places)
    yield f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>'
    yield from (f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3" fill="{colour}"/>' for a, b in places)
    yield f'<rect x="{x:.1f}" y="{y - 9:.1f}" width="10" height="10" fill="{colour}"/>'
    yield _text(x + 16, y, curve.name)


def _line(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"/>'


def _text(x: float, y: float, text: str, *, anchor: str = "start", weight: str = "normal") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}"'
    return f"<text {place}>{escape(text)}</text>"
