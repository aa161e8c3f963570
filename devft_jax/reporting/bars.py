"""Bar charts of a cost per stage, relative to the deepest stage, with the raw figures."""

from collections.abc import Sequence
from dataclasses import dataclass

from devft_jax.reporting.svg import TITLE_HEIGHT, Picture, escape
from devft_jax.reporting.units import Units, readable, readable_ratio


@dataclass(frozen=True)
class Bar:
    """The cost of one stage.

    Attributes:
      name: name of the stage.
      value: its cost.
    """

    name: str
    value: float


def ratio_bars(title: str, bars: Sequence[Bar], whole: float, units: Units) -> Picture:
    """One row per stage: a bar as long as its cost, the figure, and its ratio to `whole`, which is drawn as a line.

    Args:
      title: title of the picture.
      bars: one per row.
      whole: the cost to compare with.
      units: units of the costs.
    """
    left, room, step = 96, 150, 28
    top = TITLE_HEIGHT + 6
    longest = max([whole, *(bar.value for bar in bars)]) or 1.0
    parts = []
    for index, bar in enumerate(bars):
        y, length = top + index * step, max(1.5, room * bar.value / longest)
        parts.append(f'<text x="{left - 8}" y="{y + 15}" text-anchor="end">{escape(bar.name)}</text>')
        parts.append(f'<rect fill="#0072B2" x="{left}" y="{y + 3}" width="{length:.1f}" height="17"/>')
        ratio = readable_ratio(bar.value, whole)
        words = readable(bar.value, units) + (f", {ratio}" if ratio and ratio != "the same" else "")
        parts.append(f'<text class="note" x="{left + room + 10}" y="{y + 15}">{escape(words)}</text>')
    x, bottom = left + room * whole / longest, top + step * len(bars)
    parts.append(f'<path class="aside" stroke-dasharray="3 3" d="M{x:.1f} {top - 2}V{bottom}"/>')
    return Picture(title, 430, round(bottom + 4), parts)
