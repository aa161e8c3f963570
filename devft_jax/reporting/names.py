"""Shortens names that do not fit, so that they still differ."""

from collections.abc import Sequence


def shortened(name: str, width: int) -> str:
    """A name that fits; a longer one loses its middle.

    Args:
      name: any name.
      width: number of characters that fit.
    """
    if len(name) <= width:
        return name
    tail = (width - 1) // 2
    return f"{name[: width - 1 - tail]}\u2026{name[-tail:]}" if tail else name[: width - 1] + "\u2026"


def distinct(names: Sequence[str], width: int) -> list[str]:
    """Names that fit: if one is too long, all lose their common beginning or end, then their middles.

    Args:
      names: all names shown together.
      width: number of characters that fit.
    """
    if all(len(name) <= width for name in names):
        return list(names)
    start = _common(names)
    end = _common([name[start:][::-1] for name in names])
    # A number whose first digits all names share is kept whole.
    while start and names[0][start - 1].isdigit():
        start -= 1
    while end and names[0][-end].isdigit():
        end -= 1
    kept = [name[start : len(name) - end] for name in names]
    if len(names) == 1 or not all(kept) or start < 3:
        kept, start = [name[: len(name) - end] or name for name in names] if len(names) > 1 else list(names), 0
    return [shortened(("\u2026" if start else "") + name, width) for name in kept]


def _common(names: Sequence[str]) -> int:
    """The number of characters with which all names begin."""
    shortest = min(map(len, names))
    return next((index for index in range(shortest) if len({name[index] for name in names}) > 1), shortest)
