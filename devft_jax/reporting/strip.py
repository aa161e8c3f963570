"""Which layer went to which group at each stage: layers drawn as streams from one stage down to the next.

Every layer of the model is a sliver of its own colour, from dark (the first layer) to light (the last). At each stage the
slivers of a group are side by side in one box; between stages they run from box to box. If groups are runs of neighbouring
layers the streams run straight down, and a few wide boxes split into many narrow ones.
"""

from collections.abc import Sequence

from devft_jax.reporting.heat import every, ramp
from devft_jax.reporting.layers import is_negative, layer_runs, shown_weight
from devft_jax.reporting.story import Stage
from devft_jax.reporting.svg import TITLE_HEIGHT, Picture, escape

# Approximately Cividis: colour-blind people see the same order, and all colours are visible on white and black.
_STOPS = ("#00326e", "#7c7b78", "#fdd835")
# Space at the left for `128 layers, 128 absent`.
LEFT, ROOM, ROW, GAP = 152, 818, 30, 36
# Slivers at least this wide show the number of their layer.
NUMBERED = 19

STYLE = """
  svg .on-dark { fill: #fff } svg .on-light { fill: #111 }
  svg .halo { paint-order: stroke; stroke: #fff; stroke-width: 4px; stroke-linejoin: round }
  @media screen and (prefers-color-scheme: dark) {
    svg .on-dark { fill: #fff } svg .on-light { fill: #111 } svg .halo { stroke: #181818 }
  }
"""


def group_name(layers: Sequence[int]) -> str:
    """Layers as runs: 0-3, 7.

    Args:
      layers: in ascending order.
    """
    return ", ".join(layer_runs(layers, "\u2013"))


def _columns(stage: Stage) -> dict[int, int]:
    """The position of each layer: group after group, then the layers that are absent from the stage."""
    assign = stage.record.assign
    order = sorted(range(len(assign)), key=lambda layer: (assign[layer] < 0, assign[layer], layer))
    return {layer: place for place, layer in enumerate(order)}


def _streams(upper: dict[int, int], lower: dict[int, int], top: float, width: float, colours: Sequence[str]) -> list[str]:
    """The slivers between two rows; those that cross others are drawn last, on top."""
    parts = []
    for layer in sorted(upper, key=lambda layer: abs(upper[layer] - lower[layer])):
        start, end = LEFT + upper[layer] * width, LEFT + lower[layer] * width
        bend = top + GAP / 2
        parts.append(
            f'<path fill="{colours[layer]}" fill-opacity="{0.28 if start == end else 0.6}" '
            f'd="M{start:.1f} {top}C{start:.1f} {bend} {end:.1f} {bend} {end:.1f} {top + GAP}h{width:.1f}'
            f'C{end + width:.1f} {bend} {start + width:.1f} {bend} {start + width:.1f} {top}z"/>'
        )
    return parts


def _box(stage: Stage, group: int, layers: list[int], columns: dict[int, int], top: float, width: float) -> list[str]:
    """A group's outline, its content in a tooltip, and below it its anchor's weight if that is negative."""
    x, wide = LEFT + columns[layers[0]] * width, len(layers) * width
    coefficients = stage.record.anchor_coefficients
    weight = None if coefficients is None else coefficients[group]
    tip = f"stage {stage.number}, group {group + 1}: layer {group_name(layers)}"
    tip += "" if weight is None or len(layers) == 1 else f", anchor weight {shown_weight(weight)}"
    parts = [
        f'<rect class="outline" fill-opacity="0" pointer-events="all" x="{x + 0.7:.1f}" y="{top}" width="{wide - 1.4:.1f}" '
        f'height="{ROW}" rx="3"><title>{escape(tip)}</title></rect>'
    ]
    label = f"{len(layers)} layers in one"
    negative = is_negative(weight)
    if weight is not None and negative:
        label += f" \u25bc anchor weight \u2212{-weight:.2f}"
    if len(layers) > 1 and 6.4 * len(label) > wide:
        label = f"{len(layers)} in 1" + (" \u25bc" if negative else "")
    if len(layers) > 1 and 6.4 * len(label) <= wide:
        kind = "note halo alert" if "\u25bc" in label else "note halo strong"
        parts.append(
            f'<text class="{kind}" x="{x + wide / 2:.1f}" y="{top + ROW + 14}" text-anchor="middle">{escape(label)}</text>'
        )
    return parts


def layer_strip(title: str, stages: Sequence[Stage]) -> Picture:
    """The streams of all layers through these stages, one row per stage.

    Args:
      title: title of the picture.
      stages: the stages of the run, in order.
    """
    size = len(stages[0].record.assign)
    width = ROOM / size
    colours = [ramp(_STOPS, layer / max(1, size - 1)) for layer in range(size)]
    top = TITLE_HEIGHT + (6 if width >= NUMBERED else 26)
    parts = []
    step = every(size, width)
    for layer, place in _columns(stages[0]).items():
        if width < NUMBERED and layer % step == 0:
            x = LEFT + (place + 0.5) * width
            parts.append(f'<text class="note" x="{x:.1f}" y="{top - 8}" text-anchor="middle">{layer}</text>')
    tops = [top + index * (ROW + GAP) for index in range(len(stages))]
    places = [_columns(stage) for stage in stages]
    for upper, lower, y in zip(places, places[1:], tops, strict=False):
        parts += _streams(upper, lower, y + ROW, width, colours)
    for stage, columns, y in zip(stages, places, tops, strict=True):
        absent = [layer for layer, group in enumerate(stage.record.assign) if group < 0]
        for layer, place in columns.items():
            x, faded = LEFT + place * width, ' fill-opacity="0.25"' if layer in absent else ""
            parts.append(f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{ROW}" fill="{colours[layer]}"{faded}/>')
            if width >= NUMBERED:
                kind = "count on-dark" if layer < 0.55 * size and not faded else "count" if faded else "count on-light"
                place_of = f'x="{x + width / 2:.1f}" y="{y + 19}" text-anchor="middle"'
                parts.append(f'<text class="{kind}" {place_of}>{layer}</text>')
        for group, layers in enumerate(stage.groups):
            if layers:
                parts += _box(stage, group, layers, columns, y, width)
        parts.append(f'<text class="strong" x="{LEFT - 12}" y="{y + 13}" text-anchor="end">stage {stage.number}</text>')
        names = f"{stage.layers} layers" + (f", {len(absent)} absent" if absent else "")
        parts.append(f'<text class="note soft" x="{LEFT - 12}" y="{y + 27}" text-anchor="end">{names}</text>')
    return Picture(title, LEFT + ROOM + 14, round(tops[-1] + ROW + 22), parts, style=STYLE)
