"""Progress of a run as plain lines, one a round, readable in a terminal and in a log file alike."""

import sys
from typing import Any, TextIO


def readable_bytes(count: float) -> str:
    """A number of bytes in the unit that suits it (powers of 1000)."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.2f} {unit}"
        count /= 1000
    return f"{count:.2f} TB"


def readable_seconds(seconds: float) -> str:
    """A duration as 42s, 3m05s or 2h07m."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02d}s"
    return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"


class Progress:
    """Writes a run's progress to `stream`; `quiet` keeps only warnings."""

    def __init__(self, stream: TextIO | None = None, *, quiet: bool = False):
        self.stream = stream or sys.stderr
        self.quiet = quiet

    def say(self, text: str) -> None:
        """A line, or several."""
        if not self.quiet:
            print(text, file=self.stream, flush=True)

    def warn(self, text: str) -> None:
        """A line that is never left out."""
        print(f"warning: {text}", file=self.stream, flush=True)

    def stage(self, stage: int, stages: int, record: dict[str, Any]) -> None:
        """A stage begins: its depth and which layers were fused."""
        start = record.get("loss_start")
        judged = "" if start is None else f", held-out loss {start:.4f}"
        self.say(f"stage {stage + 1}/{stages}: {record['layers']} layers{judged}")
        if record["groups"] is not None:
            self.say("  groups " + " ".join(_group(group) for group in record["groups"]))

    def round(self, row: dict[str, Any], rounds: int, stages: int, seconds_left: float) -> None:
        """A round has ended."""
        held_out = f"  held-out {row['held_out_loss']:.4f}" if "held_out_loss" in row else ""
        dropped = f"  dropped {row['dropped']}" if row["dropped"] else ""
        self.say(
            f"  round {row['round']:>{len(str(rounds))}}/{rounds}  stage {row['stage'] + 1}/{stages}"
            f"  loss {row['loss']:.4f}{held_out}  {row['tokens_per_second']:,.0f} tokens/s"
            f"  up {readable_bytes(row['bytes_up'])}{dropped}  left {readable_seconds(seconds_left)}"
        )

    def stage_end(self, record: dict[str, Any]) -> None:
        """A stage has ended: how its submodel did, and the full model after transfer."""
        if record.get("loss_end") is None:
            return
        self.say(
            f"  end of stage: submodel {record['loss_end']:.4f}, "
            f"full model after transfer {record['loss_full_after_transfer']:.4f}"
        )


def _group(layers: list[int]) -> str:
    """A group of layers, runs written as a range: {0-3,7}."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    texts = [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
    return "{" + ",".join(texts) + "}"
