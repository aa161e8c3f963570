"""How groups of layers are named: by their runs of neighbours."""

from collections.abc import Sequence


def layer_runs(layers: Sequence[int], dash: str) -> list[str]:
    """Ascending layers as runs of neighbours, each one layer or its first and last with a dash between: 0, 3-9."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return [str(run[0]) if len(run) == 1 else f"{run[0]}{dash}{run[-1]}" for run in runs]
