"""A line chart as one self-contained SVG: no plotting package, readable in light and dark and without colour.

Lines differ in dash and marker as well as in colour, and each is named beside its end.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from devft_jax.reporting.svg import COLOURS, document, escape

WIDTH, HEIGHT = 760, 420
LEFT, RIGHT, TOP, BOTTOM = 64, 176, 48, 56
DASHES = ("", "7 4", "2 3", "9 3 2 3")
LABEL_GAP = 17


@dataclass(frozen=True)
class Line:
    """A named series of (x, y) points, in order."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Level:
    """A named horizontal line across the chart: a bound, or a result to compare the lines with."""

    name: str
    y: float


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Two or more round values that span [low, high], about as many as asked for."""
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        margin = abs(low) / 10 or 1.0
        low, high = low - margin, high + margin
    span = high - low
    magnitude = 10.0 ** math.floor(math.log10(span / about))
    step = next(unit * magnitude for unit in (1, 2, 2.5, 5, 10) if span / (unit * magnitude) <= about)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [index * step for index in range(first, last + 1)]


def _marker(index: int, x: float, y: float, colour: str) -> str:
    size = 4.0
    shapes = (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size}" fill="{colour}"/>',
        f'<rect x="{x - size:.1f}" y="{y - size:.1f}" width="{2 * size}" height="{2 * size}" fill="{colour}"/>',
        f'<path d="M{x:.1f} {y - size - 1:.1f}l{size + 1} {2 * size + 1}h{-2 * size - 2}z" fill="{colour}"/>',
        f'<path d="M{x:.1f} {y - size - 1:.1f}l{size + 1} {size + 1}l{-size - 1} {size + 1}l{-size - 1} {-size - 1}z" '
        f'fill="{colour}"/>',
    )
    return shapes[index % len(shapes)]


def _spread(positions: Sequence[float]) -> list[float]:
    """Label heights moved apart so that none covers another."""
    order = sorted(range(len(positions)), key=lambda index: positions[index])
    placed = list(positions)
    for before, after in pairwise(order):
        placed[after] = max(placed[after], placed[before] + LABEL_GAP)
    lowest = HEIGHT - LABEL_GAP / 2
    for index in reversed(order):
        placed[index] = min(placed[index], lowest)
        lowest = placed[index] - LABEL_GAP
    return placed


def line_chart(title: str, x_label: str, y_label: str, lines: Sequence[Line], *, levels: Sequence[Level] = ()) -> str:
    """The chart of one or more lines, each with at least one point, and of levels, as SVG text."""
    xs = [x for line in lines for x, _ in line.points]
    ys = [*(y for line in lines for _, y in line.points), *(level.y for level in levels)]
    x_ticks, y_ticks = ticks(min(xs), max(xs)), ticks(min(ys), max(ys))

    def across(x: float) -> float:
        share = (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0])
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def down(y: float) -> float:
        share = (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    floor, wall = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = []
    for tick in y_ticks:
        y = down(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{wall}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in x_ticks:
        x = across(tick)
        parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{floor}" y2="{floor + 5}"/>')
        parts.append(f'<text x="{x:.1f}" y="{floor + 20}" text-anchor="middle">{tick:g}</text>')
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{wall}" y1="{floor}" y2="{floor}"/>')
    parts.append(f'<text x="{(LEFT + wall) / 2}" y="{HEIGHT - 14}" text-anchor="middle">{escape(x_label)}</text>')
    parts.append(
        f'<text transform="translate(18 {(TOP + floor) / 2}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>'
    )
    ends = [*(line.points[-1][1] for line in lines), *(level.y for level in levels)]
    heights = _spread([down(y) for y in ends])
    for level, height in zip(levels, heights[len(lines) :], strict=True):
        y = down(level.y)
        parts.append(
            f'<path class="axis" d="M{LEFT} {y:.1f}H{wall}L{wall + 8} {height:.1f}" fill="none" stroke-dasharray="1 4"/>'
        )
        parts.append(f'<text x="{wall + 12}" y="{height + 4:.1f}">{escape(level.name)}</text>')
    for index, (line, height) in enumerate(zip(lines, heights, strict=False)):
        colour, dash = COLOURS[index % len(COLOURS)], DASHES[index % len(DASHES)]
        places = [(across(x), down(y)) for x, y in line.points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"/>')
        parts += [_marker(index, x, y, colour) for x, y in places]
        end = places[-1][0]
        parts.append(
            f'<line x1="{end + 6:.1f}" y1="{places[-1][1]:.1f}" x2="{wall + 8}" y2="{height:.1f}" '
            f'stroke="{colour}" stroke-width="0.7" opacity="0.6"/>'
        )
        parts.append(f'<text x="{wall + 12}" y="{height + 4:.1f}">{escape(line.name)}</text>')
    return document(title, WIDTH, HEIGHT, parts, left=LEFT)
