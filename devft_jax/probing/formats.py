"""The results of a probe as text, JSON, CSV and a figure.

probe.json    everything (`to_plain`)
probe.csv     a row for each submodel (`flat`)
probe.svg     alignment against operations, and loss against depth, a line for each plan (`figure`)
"""

import json
from pathlib import Path
from typing import Any

from devft_jax.comparing.formats import to_csv
from devft_jax.config.files import to_plain as config_to_plain
from devft_jax.errors import InputError, RunError
from devft_jax.files import checked_path, write_atomically
from devft_jax.models.huggingface.safetensors import one_line
from devft_jax.planning.text import readable_count
from devft_jax.probing.results import Measured, Probe, flat
from devft_jax.reporting.chart import Frame, Level, Line, look, marker, plot_lines
from devft_jax.reporting.progress import readable_bytes
from devft_jax.reporting.svg import Picture, escape
from devft_jax.reporting.table import table
from devft_jax.reporting.ticks import spread_out
from devft_jax.reporting.units import counted
from devft_jax.reporting.waiting import readable_seconds

PANEL = 480
"""Width of each of the figure's two charts."""
ROW = 22
"""Height of a row of the figure's legend."""


def to_text(probe: Probe) -> str:
    """The results as text, in lines of at most 140 characters unless a plan's name is long.

    Args:
      probe: the results.
    """
    return "\n".join([*_heading(probe), "", *_table(probe), "", *_notes(probe)])


def _heading(probe: Probe) -> list[str]:
    config = probe.config
    data = config.data if isinstance(config.data, str) else ", ".join(config.data)
    return [
        f"model   {config.model}: {counted(probe.full.layers, 'layer')}, {readable_count(probe.parameters)} parameters"
        + ("" if config.quantization == "none" else f", {config.quantization}"),
        f"data    {data}: {counted(probe.examples, 'example')}, {probe.tokens:,} tokens of answers",
        f"step    {config.algorithm}, rank {config.rank} on {','.join(config.targets)}: {config.batch_size} examples of "
        f"{probe.length} tokens",
        f"time    {readable_seconds(probe.seconds)}",
    ]


def _table(probe: Probe) -> list[str]:
    names = ("plan", "layers", "loss", "alignment", "kept", "FLOPs", "round", "stage", "memory*", "per FLOP", "per byte")
    full = _cells(probe.full)
    return table([names, full, *(_cells(row) for row in probe.rows)])


def _cells(row: Measured) -> tuple[str, ...]:
    cost, per_byte = row.cost, row.gain_per_byte
    return (
        row.plan,
        f"{row.layers}" if row.depth == row.layers else f"{row.layers} of {row.depth}",
        f"{row.loss:.3f}",
        f"{row.alignment:.3f}",
        f"{row.alignment_kept:.3f}",
        readable_count(cost.flops),
        readable_bytes(cost.bytes_round),
        readable_bytes(cost.bytes_stage),
        readable_bytes(cost.memory),
        f"{row.gain_per_flop:.2f}",
        "" if per_byte is None else f"{per_byte:.2f}",
    )


def _notes(probe: Probe) -> list[str]:
    lines = [
        "loss: nats per token of the answers, untrained; alignment: cosine with the full model's LoRA gradient,",
        "transferred as the growth does; kept: transferred to the first layer of each group alone; FLOPs: of a local step;",
        "round: a client's messages, both ways; stage: frozen layers that a client receives once; memory*: of a client's",
        "device, by formula; per FLOP, per byte: alignment / share of the full model's FLOPs or messages. Above 1, a step",
        "of the submodel lowers the full model's loss at less cost than one of the full model, by the untuned gradient.",
    ]
    distilled = [row for row in probe.rows if row.cost.server_flops]
    if distilled:
        costs = readable_count(max(row.cost.server_flops for row in distilled), "FLOPs")
        lines.append(f"Fused layers were distilled on public text, which costs the server up to {costs} a stage.")
    stored = [row for row in probe.rows if row.cost.prefix_flops]
    if stored:
        most = max(row.cost.prefix_flops / row.cost.flops for row in stored)
        lines.append(
            f"Layers below all adapters take up to {most:.0%} of the FLOPs; a run may store their outputs (--prefix-cache)."
        )
    return lines


def to_plain(probe: Probe) -> dict[str, Any]:
    """The results as JSON-ready values.

    Args:
      probe: the results.
    """
    return {
        "devft_probe": 1,
        "config": config_to_plain(probe.config),
        "parameters": probe.parameters,
        "examples": probe.examples,
        "tokens": probe.tokens,
        "length": probe.length,
        "full": flat(probe.full),
        "submodels": [{**flat(row), "assign": list(row.assign)} for row in probe.rows],
        "gradient_shares": list(probe.gradient_shares),
        "influence": None if probe.influence is None else list(probe.influence),
        "seconds": probe.seconds,
        "versions": probe.versions,
    }


def figure(probe: Probe) -> Picture:
    """Two charts side by side with one legend: alignment against operations, and loss against depth.

    Args:
      probe: the results.
    """
    plans = list(probe.plans)
    even = Line("as the full model", [(0.0, 0.0), (1.0, 1.0)], markers=False)
    gains = [Line(plan, [(row.flops_share, row.alignment) for row in probe.of(plan)]) for plan in plans]
    losses = [Line(plan, [(float(row.layers), row.loss) for row in probe.of(plan)]) for plan in plans]
    names = [*plans, even.name]
    left = plot_lines(
        "Alignment with the full model's gradient",
        "FLOPs of a step, full model 1",
        "alignment",
        [*gains, even],
        Frame(width=PANEL, named=False, low=0.0),
        names=names,
    )
    values = [probe.full.loss, *(row.loss for row in probe.rows)]
    right = plot_lines(
        "Untrained loss",
        "layers with an adapter",
        "nats per token of the answers",
        losses,
        Frame(
            width=PANEL,
            named=False,
            whole=True,
            logarithm=spread_out(values),
            levels=[Level(f"full model {probe.full.loss:.2f}", probe.full.loss)],
        ),
        names=names,
    )
    body = [*left.body, f'<g transform="translate({PANEL} 0)">', *_titled(right), "</g>", *_legend(names, left.height)]
    height = left.height + ROW * -(-len(names) // 2) + 14
    return Picture(left.title, 2 * PANEL, height, body, left=left.left)


def _titled(picture: Picture) -> list[str]:
    return [f'<text class="title" x="{picture.left}" y="26">{escape(picture.title)}</text>', *picture.body]


def _legend(names: list[str], top: int) -> list[str]:
    """The look and name of every line, in two columns."""
    parts = []
    rows = -(-len(names) // 2)
    for index, name in enumerate(names):
        x, y = 64 + PANEL * (index // rows), top + ROW * (index % rows)
        colour, dash = look(index)
        parts.append(f'<path d="M{x} {y}h38" stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"/>')
        parts += [] if index == len(names) - 1 else [marker(index, x + 19, y, colour)]
        parts.append(f'<text x="{x + 48}" y="{y + 4}">{escape(name)}</text>')
    return parts


def write_files(probe: Probe, out: str) -> Path:
    """Write probe.json, probe.csv and probe.svg.

    Args:
      probe: the results.
      out: their folder, which is created.

    Returns:
      The folder.

    Raises:
      InputError: it is a file.
      RunError: the files cannot be written.
    """
    folder = check_out(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "probe.json", json.dumps(to_plain(probe), indent=1) + "\n")
        write_atomically(folder / "probe.csv", to_csv([flat(row) for row in (probe.full, *probe.rows)]))
        write_atomically(folder / "probe.svg", figure(probe).document())
    except OSError as error:
        raise RunError(f"out {out} cannot be written ({one_line(error)}); make room there and try again.") from error
    return folder


def check_out(out: str) -> Path:
    """The folder for the files; raises `InputError` if it is a file.

    Args:
      out: the folder's path.
    """
    folder = checked_path(out, "out")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"out {out} is a file; name a folder.")
    return folder
