"""Charts of lines and of spots as self-contained SVG: no plotting package; readable in light and dark mode and without
colour.

Lines and spots differ in dash and marker as well as in colour, and each is named at its end or in a legend.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from devft_jax.reporting.svg import COLOURS, TITLE_HEIGHT, Picture, escape
from devft_jax.reporting.ticks import decades, ticks

WIDTH, HEIGHT = 760, 420
LEFT, RIGHT, TOP, BOTTOM = 64, 176, 48, 56
DASHES = ("", "7 4", "2 3", "9 3 2 3")
LABEL_GAP = 17


@dataclass(frozen=True)
class Line:
    """A named series of points. Lines of the same name are pieces of one series, with one look and one label.

    Attributes:
      name: name of the series.
      points: (x, y), in order.
      markers: whether every point has a marker.
      intervals: the lower and upper end of the interval at each point, None if it is not known.
      joined: whether a line joins the points; if not, nothing was measured between them.
    """

    name: str
    points: Sequence[tuple[float, float]]
    markers: bool = True
    intervals: Sequence[tuple[float, float] | None] = ()
    joined: bool = True


@dataclass(frozen=True)
class Spot:
    """A named point with intervals in both directions.

    Attributes:
      name: name of the point.
      x: horizontal position.
      y: vertical position.
      x_interval: ends of the horizontal interval; None if there is none.
      y_interval: ends of the vertical interval; None if there is none.
    """

    name: str
    x: float
    y: float
    x_interval: tuple[float, float] | None = None
    y_interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Band:
    """A range of the x axis.

    Attributes:
      start: its first x.
      end: its last x.
      labels: the first of these that fits is written above the range.
      shaded: whether the range is shaded.
    """

    start: float
    end: float
    labels: Sequence[str]
    shaded: bool = True


@dataclass(frozen=True)
class Mark:
    """A thin vertical line across the chart.

    Attributes:
      x: position of the line.
      text: explanation of the line.
    """

    x: float
    text: str


@dataclass(frozen=True)
class Level:
    """A named horizontal line across the chart, such as a bound or a result to compare with.

    Attributes:
      name: name of the line.
      y: height of the line.
    """

    name: str
    y: float


@dataclass(frozen=True)
class Frame:
    """The layout of a chart and what surrounds its lines.

    Attributes:
      width: of the picture, in pixels.
      height: of the picture, in pixels.
      named: whether lines are named at their ends; if not, a legend names them.
      whole: whether the x axis shows whole numbers only.
      bands: ranges of the x axis.
      marks: thin vertical lines.
      levels: horizontal lines.
      x_names: names in place of the ticks at 0, 1, ...
      low: a value that the y axis must include.
      first: a value that the x axis must include.
      values: whether every point with a marker shows its y.
      logarithm: whether the y axis is logarithmic; all values must be above 0.
      right: free pixels at the right.
    """

    width: int = WIDTH
    height: int = HEIGHT
    named: bool = True
    whole: bool = False
    bands: Sequence[Band] = ()
    marks: Sequence[Mark] = ()
    levels: Sequence[Level] = ()
    x_names: Sequence[str] = ()
    low: float | None = None
    first: float | None = None
    values: bool = False
    logarithm: bool = False
    right: int = field(init=False)

    def __post_init__(self) -> None:
        """Leave space for names at the right."""
        object.__setattr__(self, "right", RIGHT if self.named else 18)


def marker(index: int, x: float, y: float, colour: str) -> str:
    """The marker of the line with this index: circle, square, triangle or diamond; shifted by one after each round of
    colours.

    Args:
      index: index of the line.
      x: in pixels.
      y: in pixels.
      colour: #rrggbb.
    """
    index += index // len(COLOURS)
    size = 4.0
    shapes = (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size}" fill="{colour}"/>',
        f'<rect x="{x - size:.1f}" y="{y - size:.1f}" width="{2 * size}" height="{2 * size}" fill="{colour}"/>',
        f'<path d="M{x:.1f} {y - size - 1:.1f}l{size + 1} {2 * size + 1}h{-2 * size - 2}z" fill="{colour}"/>',
        f'<path d="M{x:.1f} {y - size - 1:.1f}l{size + 1} {size + 1}l{-size - 1} {size + 1}l{-size - 1} {-size - 1}z" '
        f'fill="{colour}"/>',
    )
    return shapes[index % len(shapes)]


def _spread(positions: Sequence[float], lowest: float) -> list[float]:
    """Label heights moved apart so that none covers another, and none is below `lowest`."""
    order = sorted(range(len(positions)), key=lambda index: positions[index])
    placed = list(positions)
    for before, after in pairwise(order):
        placed[after] = max(placed[after], placed[before] + LABEL_GAP)
    for index in reversed(order):
        placed[index] = min(placed[index], lowest)
        lowest = placed[index] - LABEL_GAP
    return placed


@dataclass(frozen=True)
class _Scales:
    """Converts values to pixels."""

    x_span: tuple[float, float]
    y_span: tuple[float, float]
    frame: Frame

    @property
    def floor(self) -> float:
        return self.frame.height - BOTTOM

    @property
    def wall(self) -> float:
        return self.frame.width - self.frame.right

    def across(self, x: float) -> float:
        return LEFT + (x - self.x_span[0]) / (self.x_span[1] - self.x_span[0]) * (self.wall - LEFT)

    def down(self, y: float) -> float:
        low, high = self.y_span
        if self.frame.logarithm:
            y, low, high = math.log(y), math.log(low), math.log(high)
        return self.floor - (y - low) / (high - low) * (self.floor - TOP)


def _bands(scales: _Scales, bands: Sequence[Band]) -> Iterator[str]:
    for band in bands:
        start, end = scales.across(band.start), scales.across(band.end)
        if band.shaded:
            yield (
                f'<rect class="band" x="{start:.1f}" y="{TOP - 18}" width="{end - start:.1f}" '
                f'height="{scales.floor - TOP + 18}"/>'
            )
        label = next((text for text in band.labels if 6.2 * len(text) < end - start - 2), "")
        if label:
            middle = (start + end) / 2
            yield f'<text class="note soft" x="{middle:.1f}" y="{TOP - 5}" text-anchor="middle">{escape(label)}</text>'


def _marks(scales: _Scales, marks: Sequence[Mark]) -> Iterator[str]:
    for mark in marks:
        x, floor = scales.across(mark.x), scales.floor
        yield (
            f'<g class="resume"><title>{escape(mark.text)}</title>'
            f'<path class="aside" stroke-dasharray="1 3" d="M{x:.1f} {TOP}V{floor}"/>'
            f'<path class="aside" d="M{x - 4:.1f} {floor + 7}l4 -7l4 7z"/></g>'
        )


def _axes(scales: _Scales, x_ticks: Sequence[float], y_ticks: Sequence[float], x_label: str, y_label: str) -> Iterator[str]:
    floor, wall, names = scales.floor, scales.wall, scales.frame.x_names
    for tick in y_ticks:
        y = scales.down(tick)
        yield f'<line class="grid" x1="{LEFT}" x2="{wall}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield f'<text class="tick" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>'
    for tick in x_ticks:
        x = scales.across(tick)
        name = escape(names[int(tick)]) if names else f"{tick:g}"
        yield f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{floor}" y2="{floor + 5}"/>'
        yield f'<text class="tick" x="{x:.1f}" y="{floor + 20}" text-anchor="middle">{name}</text>'
    yield f'<line class="axis" x1="{LEFT}" x2="{wall}" y1="{floor}" y2="{floor}"/>'
    yield f'<text x="{(LEFT + wall) / 2}" y="{scales.frame.height - 14}" text-anchor="middle">{escape(x_label)}</text>'
    middle = (TOP + floor) / 2
    yield f'<text transform="translate(13 {middle}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>'


def look(index: int) -> tuple[str, str]:
    """Colour and dash of the line with this index; dashes shift by one after each round of colours, so that 16 lines differ.

    Args:
      index: index of the line.
    """
    return COLOURS[index % len(COLOURS)], DASHES[(index + index // len(COLOURS)) % len(DASHES)]


def _whisker(scales: _Scales, x: float, interval: tuple[float, float], colour: str) -> str:
    """A vertical interval; an end beyond the axis has no end bar."""
    least, most = scales.y_span
    low, high = (scales.down(min(max(end, least), most)) for end in interval)
    bars = [f"M{x - 4:.1f} {low:.1f}h8"] if interval[0] >= least else []
    bars += [f"M{x - 4:.1f} {high:.1f}h8"] if interval[1] <= most else []
    return f'<path d="M{x:.1f} {low:.1f}V{high:.1f}{"".join(bars)}" stroke="{colour}"/>'


def _within_reach(values: Sequence[float], ends: Sequence[float]) -> list[float]:
    """The values, with those interval ends that are not so far away that the values would become one flat line."""
    low, high = min(values), max(values)
    span = high - low or abs(high) / 10
    return [*values, *(min(max(end, low - span), high + span) for end in ends)]


def _line(scales: _Scales, line: Line, index: int) -> Iterator[str]:
    colour, dash = look(index)
    places = [(scales.across(x), scales.down(y)) for x, y in line.points]
    if line.joined:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        yield f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"/>'
    for (x, _), interval in zip(places, line.intervals, strict=False):
        if interval is not None:
            yield _whisker(scales, x, interval, colour)
    if line.markers:
        yield from (marker(index, x, y, colour) for x, y in places)
    if line.markers and scales.frame.values:
        for (x, y), (_, value) in zip(places, line.points, strict=True):
            # Below the end of a falling line, where nothing is drawn.
            under = (x, y) == places[-1] and y > places[0][1] and y < scales.floor - 24
            height = y + 20 if under else y - 10
            yield f'<text class="note" x="{x:.1f}" y="{height:.1f}" text-anchor="middle">{value:.2f}</text>'


def plot_lines(
    title: str,
    x_label: str,
    y_label: str,
    lines: Sequence[Line],
    frame: Frame | None = None,
    *,
    names: Sequence[str] | None = None,
) -> Picture:
    """The picture of one or more lines, each with at least one point.

    Args:
      title: title of the picture.
      x_label: label of the x axis.
      y_label: label of the y axis.
      lines: the lines to draw.
      frame: the layout and what surrounds the lines.
      names: names of all lines of the legend, if some are not in this picture, so that lines keep their looks.
    """
    frame = frame or Frame()
    xs = [x for line in lines for x, _ in line.points] + [x for band in frame.bands for x in (band.start, band.end)]
    xs += [] if frame.first is None else [frame.first]
    ys = [y for line in lines for _, y in line.points] + [level.y for level in frame.levels]
    ends = [end for line in lines for interval in line.intervals if interval is not None for end in interval]
    ys = _within_reach(ys, ends)
    if frame.low is not None:
        # A line along the lowest possible value has space above it, none below.
        ys += [frame.low] if max(ys) > frame.low else [frame.low, frame.low + 1]
    about = max(2, min(5, (frame.width - LEFT - frame.right) // 60))
    y_ticks = (decades if frame.logarithm else ticks)(min(ys), max(ys))
    x_ticks = ticks(min(xs), max(xs), about, whole=frame.whole)
    x_span = (min(xs), max(xs)) if max(xs) > min(xs) else (x_ticks[0], x_ticks[-1])
    if frame.x_names:
        x_ticks, x_span = [float(index) for index in range(len(frame.x_names))], (-0.3, len(frame.x_names) - 0.7)
    scales = _Scales(x_span, (y_ticks[0], y_ticks[-1]), frame)
    slack = 1e-9 * (x_span[1] - x_span[0])
    shown = [tick for tick in x_ticks if x_span[0] - slack <= tick <= x_span[1] + slack]
    parts = [*_bands(scales, frame.bands), *_axes(scales, shown, y_ticks, x_label, y_label), *_marks(scales, frame.marks)]
    names = list(dict.fromkeys(line.name for line in lines)) if names is None else names
    for line in lines:
        parts += _line(scales, line, names.index(line.name))
    for level in frame.levels:
        y = scales.down(level.y)
        parts.append(f'<path class="axis level" d="M{LEFT} {y:.1f}H{scales.wall}" fill="none" stroke-dasharray="1 4"/>')
    if frame.named:
        last = {line.name: line for line in lines}
        tips = [
            (name, *last[name].points[-1], f'stroke="{look(index)[0]}"') for index, name in enumerate(names) if name in last
        ]
        tips += [(level.name, x_span[1], level.y, 'class="axis"') for level in frame.levels]
        heights = _spread([scales.down(y) for _, _, y, _ in tips], frame.height - LABEL_GAP / 2)
        for (name, x, y, style), height in zip(tips, heights, strict=True):
            parts.append(
                f'<line {style} x1="{scales.across(x) + 6:.1f}" y1="{scales.down(y):.1f}" x2="{scales.wall + 8}" '
                f'y2="{height:.1f}" stroke-width="0.7" opacity="0.6"/>'
            )
            parts.append(f'<text x="{scales.wall + 12}" y="{height + 4:.1f}">{escape(name)}</text>')
    else:
        # A legend names the lines; the name of a level is written on it.
        heights = _spread([scales.down(level.y) - 4 for level in frame.levels], scales.floor - 4)
        for level, height in zip(frame.levels, heights, strict=True):
            x = scales.wall - 2
            parts.append(f'<text class="note soft" x="{x}" y="{height:.1f}" text-anchor="end">{escape(level.name)}</text>')
    return Picture(title, frame.width, frame.height, parts, left=LEFT)


def plot_spots(
    title: str,
    x_label: str,
    y_label: str,
    spots: Sequence[Spot],
    *,
    front: Sequence[tuple[float, float]] = (),
    width: int = 480,
    height: int = 340,
) -> Picture:
    """A picture of one or more spots over an x axis from 0, named in a legend.

    Args:
      title: title of the picture.
      x_label: label of the x axis.
      y_label: label of the y axis.
      spots: the spots to draw.
      front: points of a Pareto front by ascending x and descending y, drawn as the border of the dominated area.
      width: in pixels.
      height: in pixels.
    """
    frame = Frame(width=width, height=height, named=False)
    ys = _within_reach([spot.y for spot in spots], [end for spot in spots for end in spot.y_interval or ()])
    xs = _within_reach([spot.x for spot in spots], [end for spot in spots for end in spot.x_interval or ()])
    most = 1.06 * max(xs) or 1.0
    y_ticks = ticks(min(ys), max(ys))
    x_ticks = [tick for tick in ticks(0.0, most, max(2, min(5, (width - LEFT - frame.right) // 60))) if tick <= most]
    scales = _Scales((0.0, most), (y_ticks[0], y_ticks[-1]), frame)
    parts = [*_axes(scales, x_ticks, y_ticks, x_label, y_label)]
    if front:
        steps = [f"H{scales.across(x):.1f}V{scales.down(y):.1f}" for x, y in front]
        parts.append(
            f'<path class="aside front" stroke-dasharray="6 4" d="M{scales.across(front[0][0]):.1f} {TOP}'
            f'{"".join(steps)}H{scales.wall}"/>'
        )
    for index, name in enumerate(dict.fromkeys(spot.name for spot in spots)):
        colour, _ = look(index)
        for spot in (each for each in spots if each.name == name):
            x, y = scales.across(spot.x), scales.down(spot.y)
            shapes = [marker(index, x, y, colour)]
            if spot.y_interval is not None:
                shapes.append(_whisker(scales, x, spot.y_interval, colour))
            if spot.x_interval is not None:
                low, high = (scales.across(min(max(end, 0.0), most)) for end in spot.x_interval)
                shapes.append(f'<path d="M{low:.1f} {y:.1f}H{high:.1f}" stroke="{colour}"/>')
            parts.append(f"<g><title>{escape(name)}</title>{''.join(shapes)}</g>")
    return Picture(title, width, height, parts, left=LEFT)


def line_chart(title: str, x_label: str, y_label: str, lines: Sequence[Line], *, levels: Sequence[Level] = ()) -> str:
    """A chart of one or more lines, each with at least one point, and of levels, as SVG text.

    Args:
      title: title of the chart.
      x_label: label of the x axis.
      y_label: label of the y axis.
      lines: the lines to draw.
      levels: the horizontal lines.
    """
    return plot_lines(title, x_label, y_label, lines, Frame(levels=levels)).document()


def legend(lines: Sequence[Line], names: Sequence[str] | None = None) -> list[tuple[Picture, str]]:
    """The look and name of each line.

    Args:
      lines: the lines of the chart.
      names: also of lines in other charts, so that the looks are the same in all of them.
    """
    marked = {name: next(line.markers for line in lines if line.name == name) for name in (line.name for line in lines)}
    joined = {line.name for line in lines if line.joined}
    entries = []
    names = list(marked) if names is None else names
    for index, name in enumerate(names):
        if name not in marked:
            continue
        colour, dash = look(index)
        stroke = f'<path d="M3 {TITLE_HEIGHT + 9}h38" stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"/>'
        parts = [stroke] if name in joined else []
        parts += [marker(index, 22, TITLE_HEIGHT + 9, colour)] if marked[name] else []
        entries.append((Picture("", 44, TITLE_HEIGHT + 18, parts), name))
    return entries
