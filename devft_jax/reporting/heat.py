"""Heat maps: the similarity of layers, the size of each layer's adapter over rounds, and who took part when.

A value is one of nine shades of one hue that differ only in lightness. The cells of one shade are one path, which keeps a
matrix of thousands of cells small.
"""

import math
from collections.abc import Mapping, Sequence

from devft_jax.reporting.svg import COLOURS, TITLE_HEIGHT, Picture, escape

STEPS = 9
# For light and dark mode, the shades of the lowest, the middle and the highest value.
_STOPS = {"light": ("#e3eef8", "#5a9fd0", "#08306b"), "dark": ("#1b2c3d", "#3f82bb", "#e2f0fd")}

Cells = Mapping[tuple[int, int], float]


def mixed(first: str, second: str, share: float) -> str:
    """A mixture of two colours, #rrggbb.

    first: #rrggbb.
    second: #rrggbb.
    share: share of the second, 0 to 1.
    """
    parts = [(int(first[at : at + 2], 16), int(second[at : at + 2], 16)) for at in (1, 3, 5)]
    return "#" + "".join(f"{round(low + (high - low) * share):02x}" for low, high in parts)


def ramp(stops: tuple[str, str, str], position: float) -> str:
    """The colour at a position from 0 to 1 along three stops.

    Args:
      stops: colours at 0, 0.5 and 1.
      position: 0 to 1.
    """
    return mixed(stops[0], stops[1], 2 * position) if position < 0.5 else mixed(stops[1], stops[2], 2 * position - 1)


def _rules(stops: tuple[str, str, str]) -> str:
    return " ".join(f".h{step} {{ fill: {ramp(stops, step / (STEPS - 1))} }}" for step in range(STEPS))


STYLE = f"""
  {_rules(_STOPS["light"])}
  @media screen and (prefers-color-scheme: dark) {{ {_rules(_STOPS["dark"])} }}
"""


def step_of(value: float, low: float, high: float) -> int:
    """The shade of a value in [low, high], 0 to STEPS - 1.

    Args:
      value: the value.
      low: value of the first shade.
      high: value of the last shade.
    """
    return 0 if high <= low else min(STEPS - 1, max(0, math.floor((value - low) / (high - low) * STEPS)))


def cells_of(values: Cells, low: float, high: float, left: float, top: float, width: float, height: float) -> list[str]:
    """The paths of cells by (row, column); neighbours of one shade in a row are drawn together.

    Args:
      values: by (row, column).
      low: value of the first shade.
      high: value of the last shade.
      left: x of the first column, in pixels.
      top: y of the first row, in pixels.
      width: width of a cell, in pixels.
      height: height of a cell, in pixels.
    """
    runs: list[list[str]] = [[] for _ in range(STEPS)]
    start: tuple[int, int] | None = None
    ordered = sorted(values)
    for index, (row, column) in enumerate(ordered):
        step = step_of(values[row, column], low, high)
        start = start or (row, column)
        following = ordered[index + 1] if index + 1 < len(ordered) else None
        if following == (row, column + 1) and step_of(values[following], low, high) == step:
            continue
        x, end = left + start[1] * width, left + (column + 1) * width
        runs[step].append(f"M{x:.4g} {top + row * height:.4g}H{end:.4g}v{height:.4g}H{x:.4g}z")
        start = None
    return [f'<path class="h{step}" d="{"".join(paths)}"/>' for step, paths in enumerate(runs) if paths]


def scale(low: float, high: float, left: float, y: float, label: str, form: str = "{:.3g}") -> list[str]:
    """A legend of the shades, with the values at both ends.

    Args:
      low: value of the first shade.
      high: value of the last shade.
      left: x of the first shade, in pixels.
      y: y of the shades, in pixels.
      label: what the values are.
      form: format of the values.
    """
    parts = [f'<rect class="h{step}" x="{left + 22 * step}" y="{y}" width="22" height="12"/>' for step in range(STEPS)]
    for share, value, anchor in ((0, low, "start"), (0.5, (low + high) / 2, "middle"), (1, high, "end")):
        x, text = left + 22 * STEPS * share, form.format(value)
        parts.append(f'<text class="note" x="{x:.0f}" y="{y + 25}" text-anchor="{anchor}">{text}</text>')
    parts.append(f'<text class="note soft" x="{left + 22 * STEPS + 10}" y="{y + 10}">{escape(label)}</text>')
    return parts


def every(count: int, room: float) -> int:
    """The step at which entries can be numbered, such as every fifth, if each of `count` entries has `room` pixels.

    Args:
      count: number of entries.
      room: pixels per entry.
    """
    return next((step for step in (1, 2, 5, 10, 20, 50, 100, 200, 500) if step * room >= 20), max(1, count))


def similarity_range(matrix: Sequence[Sequence[float]]) -> tuple[float, float]:
    """The smallest and the largest value off the diagonal.

    Args:
      matrix: [L, L].
    """
    values = [value for row, line in enumerate(matrix) for column, value in enumerate(line) if row != column]
    return (min(values), max(values)) if values else (0.0, 1.0)


def group_order(assign: Sequence[int]) -> list[int]:
    """The layers, group after group, then those that are in no group.

    Args:
      assign: [L], the group of every layer, -1 for none.
    """
    return sorted(range(len(assign)), key=lambda layer: (assign[layer] < 0, assign[layer], layer))


def similarity_map(
    title: str, matrix: Sequence[Sequence[float]], assign: Sequence[int], bounds: tuple[float, float]
) -> Picture:
    """Cosine similarity of layers [L, L], with groups outlined; the diagonal, always 1, shows the group instead.

    Layers are in the order of their groups, so that each group is one square on the diagonal.

    Args:
      title: title of the picture.
      matrix: [L, L].
      assign: [L], the group of every layer, -1 for none.
      bounds: values of the first and of the last shade, for values off the diagonal.
    """
    size, (low, high) = len(matrix), bounds
    order = group_order(assign)
    cell = max(4.0, min(26.0, 380 / size))
    left, top = 44, TITLE_HEIGHT + 26
    values = {
        (row, column): matrix[order[row]][order[column]] for row in range(size) for column in range(size) if row != column
    }
    parts = cells_of(values, low, high, left, top, cell, cell)
    diagonal = "".join(
        f"M{left + i * cell:.4g} {top + i * cell:.4g}h{cell:.4g}v{cell:.4g}h{-cell:.4g}z" for i in range(size)
    )
    parts.append(f'<path class="empty" d="{diagonal}"/>')
    runs = _runs_of_groups([assign[layer] for layer in order])
    outlines = "".join(
        f"M{left + first * cell:.4g} {top + first * cell:.4g}h{side:.4g}v{side:.4g}h{-side:.4g}z"
        for first, side in ((first, count * cell) for group, first, count in runs if group >= 0)
    )
    parts.append(f'<path class="border" d="{outlines}"/>')
    # If layers are not in the model's order, every layer is named, or none if there is no space.
    step = every(size, cell) if order == list(range(size)) else 1 if cell >= 10 else size + 1
    kind = "count" if cell >= 15 or step > 1 else "small"
    for index, layer in enumerate(order):
        middle = index * cell + cell / 2
        x, y = left + middle, top + middle + 3.5
        if cell >= 10:
            name = "\u2013" if assign[layer] < 0 else str(assign[layer] + 1)
            parts.append(f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="middle">{name}</text>')
        if index % step == 0 and step <= size:
            parts.append(f'<text class="{kind} soft" x="{left - 6}" y="{y:.1f}" text-anchor="end">{layer}</text>')
            # Two-digit numbers side by side would overlap.
            if step * cell >= 15:
                parts.append(f'<text class="{kind} soft" x="{x:.1f}" y="{top - 5}" text-anchor="middle">{layer}</text>')
    edge = left + size * cell
    parts.append(f'<text class="note soft" x="{left}" y="{top - 18}">layer</text>')
    bottom = top + size * cell + 14
    parts += scale(low, high, left, bottom, "cosine similarity")
    return Picture(title, round(max(edge + 12, left + 22 * STEPS + 130)), round(bottom + 32), parts, style=STYLE)


def _runs_of_groups(groups: Sequence[int]) -> list[tuple[int, int, int]]:
    """(group, first place, places) of every run of one group; runs of layers in no group are -1."""
    runs: list[tuple[int, int, int]] = []
    for place, group in enumerate(groups):
        if runs and runs[-1][0] == group:
            runs[-1] = (group, runs[-1][1], runs[-1][2] + 1)
        else:
            runs.append((group, place, 1))
    return runs


def time_map(
    title: str,
    values: Cells,
    rows: Sequence[str],
    columns: int,
    bounds: tuple[float, float],
    *,
    rounds: int,
    borders: Sequence[int],
    label: str,
    row_label: str,
    form: str = "{:.3g}",
    apart: bool = False,
) -> Picture:
    """A map of values by (row, column) whose columns are equal ranges of rounds.

    Args:
      title: title of the picture.
      values: by (row, column).
      rows: names of the rows.
      columns: number of columns.
      bounds: values of the first and of the last shade.
      rounds: number of rounds that all columns together cover.
      borders: rounds that end a stage.
      label: what the values are.
      row_label: what the rows are.
      form: format of the values.
      apart: whether cells have one colour and are drawn separately; if not, a legend of the shades is drawn below.
    """
    left, top, wide = 74, TITLE_HEIGHT + 8, 880.0
    height = max(3.0, min(18.0, 460 / len(rows)))
    width = wide / columns
    if apart:
        gap = 2.0 if min(width, height) > 6 else 0.5
        size = f'width="{width - gap:.4g}" height="{height - gap:.4g}"'
        places = [(left + column * width + gap / 2, top + row * height + gap / 2) for row, column in values]
        parts = [f'<rect fill="{COLOURS[0]}" x="{x:.5g}" y="{y:.5g}" {size}/>' for x, y in places]
        parts += [f'<path class="grid" d="M{left} {top + row * height:.5g}h{wide}"/>' for row in range(len(rows) + 1)]
    else:
        parts = cells_of(values, *bounds, left, top, width, height)
    bottom = top + height * len(rows)
    step = every(len(rows), height * 1.4)
    for index, name in enumerate(rows):
        if index % step == 0:
            y = top + (index + 0.5) * height + 3.5
            parts.append(f'<text class="count soft" x="{left - 6}" y="{y:.1f}" text-anchor="end">{escape(name)}</text>')
    for border in borders:
        x = left + wide * border / rounds
        parts.append(f'<path class="border" d="M{x:.1f} {top}V{bottom:.1f}"/>')
    shown = every(rounds, wide / rounds)
    for number in [1, *range(shown, rounds + 1, shown)]:
        x = left + wide * (number - 0.5) / rounds
        parts.append(f'<text class="count soft" x="{x:.1f}" y="{bottom + 14:.1f}" text-anchor="middle">{number}</text>')
    middle = (top + bottom) / 2
    upright = f'transform="translate(16 {middle:.0f}) rotate(-90)" text-anchor="middle"'
    parts.append(f'<text class="note soft" {upright}>{escape(row_label)}</text>')
    parts.append(f'<text class="note soft" x="{left + wide / 2}" y="{bottom + 30:.0f}" text-anchor="middle">round</text>')
    if apart:
        return Picture(title, round(left + wide + 12), round(bottom + 38), parts)
    parts += scale(*bounds, left, bottom + 42, label, form)
    return Picture(title, round(left + wide + 12), round(bottom + 76), parts, style=STYLE)
