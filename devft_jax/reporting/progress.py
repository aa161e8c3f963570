"""Progress of a run as plain lines, one per round, for terminals and log files."""

import contextlib
import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TextIO

from devft_jax.reporting.layers import layer_runs, shown_weight
from devft_jax.reporting.waiting import Step, Watch, readable_seconds
from devft_jax.runtime.screen import draw, is_terminal, show
from devft_jax.storage.records import RoundRecord, StageRecord

PATIENCE = 1.5
"""Seconds after which a step other than a round is reported in a log file."""
AT_A_TERMINAL = 0.4
"""Seconds after which it is shown at a terminal, in a line that is rewritten."""


def readable_bytes(count: float) -> str:
    """A number of bytes in a suitable unit (powers of 1000)."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.2f} {unit}"
        count /= 1000
    return f"{count:.2f} TB"


class Progress:
    """Writes a run's progress to `stream`; `quiet` keeps only warnings.

    An unreadable output must not end a run: once the stream cannot be written, for example because the reader of a pipe has
    closed it, nothing more is written.

    Attributes:
      lost: why the stream could not be written; None while it can.
    """

    def __init__(self, stream: TextIO | None = None, *, quiet: bool = False):
        self.stream = stream or sys.stderr
        self.quiet = quiet
        self.lost: str | None = None
        terminal = is_terminal(self.stream)
        self._watch = Watch(self.say, self._draw if terminal else None, first=AT_A_TERMINAL if terminal else PATIENCE)

    def _write(self, text: str) -> None:
        self._put(text, show)

    def _draw(self, text: str) -> None:
        """Show a line that the next output replaces, cut at the terminal's width."""
        if not self.quiet:
            self._put(text[: _columns(self.stream) - 1], draw)

    def _put(self, text: str, put: Callable[..., None]) -> None:
        if self.lost is not None or self.stream is None:
            return
        try:
            try:
                put(text, stream=self.stream)
            except UnicodeEncodeError:
                put(text.encode("ascii", "backslashreplace").decode(), stream=self.stream)
        except (OSError, ValueError) as error:
            self.lost = getattr(error, "strerror", None) or str(error)

    def say(self, text: str) -> None:
        """Print one line, or several."""
        if not self.quiet:
            self._write(text)

    def doing(self, what: str) -> contextlib.AbstractContextManager[Step]:
        """Report a step that takes a while inside the block, in which no round ends.

        Args:
          what: what is done, such as "reading the model".

        Returns:
          A context whose value is the step; its `count` notes how far it is.
        """
        return self._watch.doing(what)

    def warn(self, text: str) -> None:
        """Print a line that `quiet` does not hide."""
        self._write(f"warning: {text}")

    def stage(self, stage: int, stages: int, record: StageRecord, before: float | None) -> None:
        """Report the beginning of a stage: which layers were fused, and how the held-out loss changed.

        Args:
          stage: from 0.
          stages: number of stages of the run.
          record: the stage's record.
          before: held-out loss of the full model; None if unknown.
        """
        groups, layers, start = record.groups, len(record.assign), record.loss_start
        name = f"stage {stage + 1}/{stages}"
        if record.runs_base:
            some = "" if record.trained is None else f", of which {shown_layers(record.trained)} learn"
            self.say(f"{name}  all {layers} layers{some}" + ("" if start is None else f";  held-out loss {start:.4f}"))
            return
        head = f"{name}  {len(groups)} layer{'s' if len(groups) > 1 else ''} <- {layers}:"
        self.say(fill([head, *shown_groups(groups, record.assign)], _columns(self.stream), indent=4))
        said = []
        if record.trained is not None:
            said.append(f"only the submodel's layers {shown_layers(record.trained)} learn")
        weights = shown_weights(groups, record.anchor_coefficients or [])
        if weights:
            said.append(weights)
        if start is not None and before is not None:
            said.append(f"held-out loss {before:.4f} with all {layers} layers -> {start:.4f} in the submodel")
        if said:
            self.say("  " + ";  ".join(said))

    def round(self, row: RoundRecord, rounds: int, stages: int, seconds_left: float) -> None:
        """Report a finished round."""
        held_out = f"  held-out {row.held_out_loss:.4f}" if row.held_out_loss is not None else ""
        dropped = f"  dropped {row.dropped}" if row.dropped else ""
        self.say(
            f"  round {row.round:>{len(str(rounds))}}/{rounds}  stage {row.stage + 1}/{stages}"
            f"  loss {row.loss:.4f}{held_out}  {row.tokens_per_second:,.0f} tokens/s"
            f"  up {readable_bytes(row.bytes_up)}{dropped}  left {readable_seconds(seconds_left)}"
        )

    def stage_end(self, record: StageRecord) -> None:
        """Report the end of a stage: the loss of its submodel, and of the full model after transfer."""
        end, full = record.loss_end, record.loss_full_after_transfer
        if end is None:
            return
        if record.runs_base:
            self.say(f"  end of stage: held-out loss {end:.4f}")
            return
        self.say(
            f"  end of stage: held-out loss {end:.4f} in the submodel -> {full:.4f} with all "
            f"{len(record.assign)} layers after transfer"
        )


def _columns(stream: TextIO) -> int:
    """Width of the terminal behind a stream; 120 for a log file."""
    try:
        return os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError, AttributeError):
        return 120


def fill(words: Sequence[str], width: int, *, indent: int) -> str:
    """Words wrapped into lines of at most `width` characters, with every line after the first indented."""
    lines = [words[0]]
    for word in words[1:]:
        # Two spaces separate the groups from the text before them.
        gap = "  " if lines[-1] is words[0] else " "
        if len(lines[-1]) + len(gap) + len(word) <= width:
            lines[-1] += gap + word
        else:
            lines.append(" " * indent + word)
    return "\n".join(lines)


def shown_layers(layers: Sequence[int]) -> str:
    """Ascending layers, with runs as ranges: 0 3-9 11-15."""
    return " ".join(layer_runs(layers, "-"))


def shown_groups(groups: Sequence[Sequence[int]], assign: Sequence[int]) -> list[str]:
    """Every group of layers in brackets, and the layers that are in no group.

    More than three groups in a row that are adjacent blocks of the same size are written as the first and the last of them:
    `[1]..[9]` are nine single layers, `[0-1]..[6-7]` four pairs.
    """
    rows: list[list[Sequence[int]]] = []
    for group in groups:
        before = rows[-1][-1] if rows else ()
        adjacent = group and len(group) == len(before) and group[0] == before[-1] + 1
        if adjacent and group[-1] - group[0] == before[-1] - before[0] == len(group) - 1:
            rows[-1].append(group)
        else:
            rows.append([group])
    shown = []
    for row in rows:
        names = [f"[{shown_layers(group)}]" for group in row]
        shown += [f"{names[0]}..{names[-1]}"] if len(row) > 3 else names
    absent = [layer for layer, group in enumerate(assign) if group < 0]
    return [*shown, *([f"absent: {shown_layers(absent)}"] if absent else [])]


def shown_weights(groups: Sequence[Sequence[int]], coefficients: Sequence[float | None]) -> str:
    """The anchors' weights in the groups of more than one layer, as `anchor's weight 0.70` or `... 0.90 x 3, -0.20`."""
    pairs = zip(groups, coefficients, strict=True)
    known = [coefficient for group, coefficient in pairs if len(group) > 1 and coefficient is not None]
    counts = Counter(map(shown_weight, known))
    if not counts:
        return ""
    shown = [weight if count == 1 else f"{weight} x {count}" for weight, count in counts.items()]
    return ("anchor's weight " if counts.total() == 1 else "anchors' weights ") + ", ".join(shown)
