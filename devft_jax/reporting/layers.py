"""Text for groups of layers and the weights of their anchors."""

from collections.abc import Sequence


def layer_runs(layers: Sequence[int], dash: str) -> list[str]:
    """Ascending layers as runs of consecutive numbers, each one layer or the first and last with a dash between: 0, 3-9.

    Args:
      layers: in ascending order.
      dash: text between the first and the last of a run.
    """
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return [str(run[0]) if len(run) == 1 else f"{run[0]}{dash}{run[-1]}" for run in runs]


def shown_weight(weight: float) -> str:
    """An anchor's weight with two decimals, without the minus sign of a rounded zero.

    Args:
      weight: weight of an anchor.
    """
    return f"{weight:z.2f}"


def is_negative(weight: float | None) -> bool:
    """Whether an anchor's weight is below zero in the decimals shown; 1 - 0.1 x 10, for example, is negative only by
    rounding.

    Args:
      weight: weight of an anchor; None for a group without one.
    """
    return weight is not None and shown_weight(weight).startswith("-")
