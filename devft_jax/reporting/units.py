"""Quantities in a suitable unit: for a single figure as text, and for an axis as a factor."""

SECONDS = ((1.0, "s"), (60.0, "min"), (3600.0, "h"))
BYTES = ((1.0, "B"), (1e3, "kB"), (1e6, "MB"), (1e9, "GB"), (1e12, "TB"))
FLOPS = tuple(
    (10.0 ** (3 * power), f"{prefix}FLOPs") for power, prefix in enumerate(("", "k", "M", "G", "T", "P", "E", "Z"))
)
ENERGY = ((1e-6, "mWh"), (1e-3, "Wh"), (1.0, "kWh"), (1e3, "MWh"))
"""Units for kilowatt hours."""

Units = tuple[tuple[float, str], ...]


def unit_for(largest: float, units: Units) -> tuple[float, str]:
    """The largest unit that is not larger than `largest`, as (size, name).

    Args:
      largest: the figure, or the end of an axis.
      units: in ascending order.
    """
    return next((unit for unit in reversed(units) if largest >= unit[0]), units[0])


def readable(value: float, units: Units) -> str:
    """A figure with three significant digits and its unit; seconds up to a minute and a half stay seconds.

    Args:
      value: the figure.
      units: in ascending order.
    """
    size, name = (1.0, "s") if units is SECONDS and value < 90 else unit_for(value, units)
    scaled = value / size
    digits = 0 if scaled >= 99.95 or name == "B" else 1 if scaled >= 9.995 else 2
    return f"{scaled:,.{digits}f} {name}"


def counted(number: int, noun: str) -> str:
    """A number with its noun: `1 round`, `2 rounds`.

    Args:
      number: how many.
      noun: in the singular.
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def readable_ratio(part: float, whole: float) -> str:
    """How much smaller or larger a part is: 8.2x less, 1.3x more, or the same.

    Args:
      part: a figure.
      whole: the figure to compare with.
    """
    if not part or not whole:
        return ""
    times = whole / part
    if 0.995 < times < 1.005:
        return "the same"
    return f"{times:.3g}\u00d7 less" if times > 1 else f"{1 / times:.3g}\u00d7 more"


def with_error(value: float, error: float | None, *, sign: bool = False) -> str:
    """A value with its standard error, such as 0.412 ± 0.011.

    Args:
      value: the value.
      error: its standard error; None for none.
      sign: whether a plus is written before a positive value.
    """
    shown = f"{value:+.4f}" if sign else f"{value:.4f}"
    return shown if error is None else f"{shown} \u00b1 {error:.4f}"
