"""The split of a data set over clients as one self-contained SVG.

One row per client: a cell for each category, topic or bin of lengths, darker with its share of the client's examples, then a
bar for the number of examples. The last row is the whole data set. The shades are five steps of one hue that differ only in
lightness, so that they work in print and for colour-blind readers; large cells show their counts, and all cells do so
in a tooltip. Without groups there are only bars.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from devft_jax.reporting.names import distinct, shortened
from devft_jax.reporting.svg import Picture, escape
from devft_jax.storage.split_record import ClientRecord, SplitRecord

# Limits of the picture: the first clients, and the most frequent groups with one column for all others.
MAX_CLIENTS, MAX_GROUPS = 100, 24

# Upper bounds of the shades, as shares of a client's examples.
STEPS = (0.02, 0.1, 0.25, 0.5, 1.0)

# Pixels for a count after the longest bar, and least pixels of the whole.
COUNT_WIDTH, MIN_WIDTH = 66, 620

CLIENT_LETTERS, GROUP_LETTERS = 22, 30

_KINDS = {"category": "by category", "topic": "by topic", "length": "by length in tokens"}

STYLE = """
  .s1 { fill: #d0e2f2 } .s2 { fill: #a0c9e4 } .s3 { fill: #62a3d0 } .s4 { fill: #2872b2 } .s5 { fill: #083b75 }
  svg .on4, svg .on5 { fill: #fff }
  @media screen and (prefers-color-scheme: dark) {
    .s1 { fill: #233f5c } .s2 { fill: #2a5b88 } .s3 { fill: #3c7cb5 } .s4 { fill: #7db8e3 } .s5 { fill: #dceefc }
    svg .on3 { fill: #fff } svg .on4, svg .on5 { fill: #111 }
  }
"""


@dataclass(frozen=True)
class _Table:
    """The content of the picture: columns, and for every row a name, a size and one count per column."""

    columns: list[str]
    rows: list[tuple[str, int, list[int]]]


def _table(split: SplitRecord) -> _Table:
    """All clients and, last, the whole data; rare groups are summed, examples without a group have their own column."""
    totals: Mapping[str, int] = split.groups
    by_frequency = sorted(totals, key=lambda name: -totals[name])
    kept = set(by_frequency if len(totals) <= MAX_GROUPS else by_frequency[: MAX_GROUPS - 1])
    shown = [name for name in totals if name in kept]
    others = len(totals) - len(shown)
    without = split.grouped_by is not None and sum(totals.values()) < split.examples

    def row(name: str, size: int, counts: Mapping[str, int]) -> tuple[str, int, list[int]]:
        cells = [counts.get(group, 0) for group in shown]
        if others:
            cells.append(sum(counts.values()) - sum(cells))
        if without:
            cells.append(size - sum(cells))
        return name, size, cells

    clients = split.clients[:MAX_CLIENTS]
    rows = [row(client.name, client.examples, client.groups) for client in clients]
    rows.append(row(f"all {len(split.clients):,}", split.examples, totals))
    return _Table([*shown, *[f"{others} others"] * bool(others), *["none"] * without], rows)


def _step(share: float) -> int:
    """The shade, from 1, for a share above 0."""
    return 1 + next(index for index, bound in enumerate(STEPS) if share <= bound)


def _numbers_fit(table: _Table, width: float, height: float) -> bool:
    """Whether every count fits in its cell."""
    longest = max((len(str(count)) for _, _, counts in table.rows for count in counts), default=0)
    return longest > 0 and height >= 16 and 6 * longest + 4 <= width


def _cells(table: _Table, tops: Sequence[float], left: float, width: float, height: float) -> list[str]:
    """The shaded cells of all rows, with their counts if these fit."""
    numbered = _numbers_fit(table, width, height)
    parts = []
    for (name, size, counts), y in zip(table.rows, tops, strict=True):
        parts.append(
            f'<rect class="empty" x="{left}" y="{y:.1f}" width="{width * len(counts):.1f}" height="{height - 1:.1f}"/>'
        )
        for index, count in enumerate(counts):
            if not count:
                continue
            x, step = left + index * width, _step(count / size)
            tip = escape(f"{name}, {table.columns[index]}: {count:,} ({count / size:.1%})")
            parts.append(
                f'<rect class="s{step}" x="{x:.1f}" y="{y:.1f}" width="{width - 1:.1f}" height="{height - 1:.1f}">'
                f"<title>{tip}</title></rect>"
            )
            if numbered:
                parts.append(
                    f'<text class="count on{step}" x="{x + (width - 1) / 2:.1f}" y="{y + height / 2 + 3:.1f}" '
                    f'text-anchor="middle" pointer-events="none">{count}</text>'
                )
    return parts


def _legend(left: float, y: float) -> list[str]:
    """The legend of the five shades and their shares."""
    parts = []
    lower = 0.0
    for index, bound in enumerate(STEPS):
        x = left + 84 * index
        parts.append(f'<rect class="s{index + 1}" x="{x}" y="{y - 11}" width="18" height="14"/>')
        words = f"to {bound:.0%}" if not lower else f"{lower * 100:.0f}-{bound:.0%}"
        parts.append(f'<text class="note" x="{x + 24}" y="{y}">{words}</text>')
        lower = bound
    return parts


def split_chart(split: SplitRecord) -> str:
    """The picture of a split as SVG text; see `split_picture`.

    Args:
      split: the split.
    """
    return split_picture(split).document()


def split_picture(split: SplitRecord) -> Picture:
    """The picture of a split.

    Args:
      split: the contents of `split.json` (`devft_jax.data.split_record`); at least one client.
    """
    table = _table(split)
    clients = split.clients
    shown, columns = len(table.rows) - 1, table.columns
    height = 22 if shown <= 25 else 16 if shown <= 50 else 11
    letters = "" if height >= 16 else ' class="small"'
    width = min(46.0, max(22.0, 560 / len(columns))) if columns else 0.0
    names = [*distinct([name for name, _, _ in table.rows[:-1]], CLIENT_LETTERS), table.rows[-1][0]]
    left = 24 + max(60, round((7.2 if height >= 16 else 5.2) * max(map(len, names))))
    titles = [shortened(name, GROUP_LETTERS) for name in columns]
    # Column names are rotated by 45 degrees and start at the middle of their column.
    header = 24 + max((round(4.7 * len(name)) for name in titles), default=0)
    top = 52 + header
    tops = [top + height * index for index in range(shown)] + [top + height * shown + 8]
    right = left + width * len(columns)
    bars = right + 14 if columns else left
    longest_bar = max(130.0, MIN_WIDTH - COUNT_WIDTH - bars)
    scale = longest_bar / max(client.examples for client in clients)

    caption = "examples of each client"
    if columns and split.grouped_by is not None:
        caption = f"shade: share of a client's examples {_KINDS[split.grouped_by]}"
        caption += "; number: examples" if _numbers_fit(table, width, height) else ""
    parts = [f'<text class="note" x="16" y="45">{caption}</text>']
    for index, name in enumerate(titles):
        x = left + (index + 0.5) * width
        parts.append(f'<text class="note" transform="translate({x + 3:.1f} {top - 7}) rotate(-45)">{escape(name)}</text>')
    parts.append(f'<text class="note" x="{bars}" y="{top - 7}">examples</text>')
    parts += _cells(table, tops, left, width, height)
    for index, (name, (_, size, _), y) in enumerate(zip(names, table.rows, tops, strict=True)):
        base = y + height / 2 + (4 if height >= 16 else 3)
        parts.append(f'<text{letters} x="{left - 8}" y="{base:.1f}" text-anchor="end">{escape(name)}</text>')
        end = float(bars)
        if index < shown:
            end += max(size * scale, 1)
            parts.append(f'<rect class="bar" x="{bars}" y="{y + 1:.1f}" width="{end - bars:.1f}" height="{height - 3}"/>')
            end += 6
        parts.append(f'<text{letters} x="{end:.1f}" y="{base:.1f}">{size:,}</text>')
    bottom = tops[-1] + height + 26
    if columns:
        parts += _legend(left, bottom)
        bottom += 22
    parts.append(f'<text class="note" x="16" y="{bottom:.0f}">{_note(clients, shown)}</text>')
    title = f"{split.partition} split of {split.examples:,} examples over {len(clients):,} clients"
    if len(clients) == 1:
        title = f"{split.examples:,} examples of one client"
    full_width = max(bars + longest_bar + COUNT_WIDTH, right + header + 8, MIN_WIDTH)
    return Picture(title, round(full_width), round(bottom + 16), parts, style=STYLE)


def _note(clients: Sequence[ClientRecord], shown: int) -> str:
    """The range of client sizes, and which clients are drawn if not all are."""
    sizes = [client.examples for client in clients]
    note = f"examples per client: {min(sizes):,} to {max(sizes):,}, median {median(sizes):,.0f}"
    return note if shown == len(clients) else f"{note}; the first {shown} of {len(clients):,} clients are drawn"
