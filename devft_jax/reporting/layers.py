"""How groups of layers and the weights of their anchors are shown."""

from collections.abc import Sequence


def layer_runs(layers: Sequence[int], dash: str) -> list[str]:
    """Ascending layers as runs of neighbours, each one layer or its first and last with a dash between: 0, 3-9.

    Args:
      layers: ascending.
      dash: between the first and the last of a run.
    """
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return [str(run[0]) if len(run) == 1 else f"{run[0]}{dash}{run[-1]}" for run in runs]


def shown_weight(weight: float) -> str:
    """An anchor's weight to two digits, without the sign that rounding leaves to a zero.

    Args:
      weight: an anchor's.
    """
    return f"{weight:z.2f}"


def is_negative(weight: float | None) -> bool:
    """Whether an anchor's weight is below zero by the digits that are shown: 1 - 0.1 x 10 is not, but for rounding.

    Args:
      weight: an anchor's; None for a group without one.
    """
    return weight is not None and shown_weight(weight).startswith("-")
