"""The demo: DevFT beside end-to-end FedIT on the bundled model and data, at equal rounds and at equal bytes.

    python experiments/demo.py --out runs/demo

Three runs see the same clients, cohorts and examples. A run that is stopped goes on when the command is given again.
"""

import argparse
import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from devft_jax.cli import configure_jax
from devft_jax.config import RunConfig, preset
from devft_jax.data import FederatedData, build_federated_data
from devft_jax.developmental import planned_depths
from devft_jax.models.pretrained import Model, load_pretrained
from devft_jax.reporting.chart import Line, line_chart
from devft_jax.reporting.progress import Progress, readable_bytes, readable_seconds
from devft_jax.run import Run, train
from devft_jax.trainer import bundled_model, make_growth, plan_stages


def equal_byte_rounds(config: RunConfig, num_layers: int) -> int:
    """Rounds in which the full model sends what the growing one sends: sum of rounds times depth, over the full depth."""
    depths = planned_depths(make_growth(config, num_layers), num_layers) or ()
    sent = sum(rounds * depth for rounds, depth in zip(plan_stages(config, len(depths)), depths, strict=True))
    return max(1, round(sent / num_layers))


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns aligned, the first to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def result_row(name: str, run: Run) -> list[str]:
    """One method's line of the table."""
    summary = run.summary
    seconds = summary["seconds"]
    return [
        name,
        str(summary["rounds"]),
        f"{summary['final_loss']:.3f}",
        f"{summary['accuracy']:.1%}",
        readable_bytes(summary["bytes_up"]),
        readable_bytes(summary["bytes_stage"]),
        f"{summary['train_flops'] / 1e12:.2f} T",
        readable_seconds(seconds["train"]),
        readable_seconds(seconds["compile"]),
    ]


def stage_rows(run: Run) -> list[list[str]]:
    """What each stage of a growing run did to held-out loss."""
    rows = [["layers", "groups", "loss at start", "at end", "full model after transfer"]]
    for stage in run.summary["stages"]:
        sizes = ",".join(map(str, stage["group_sizes"]))
        rows.append(
            [
                str(stage["layers"]),
                sizes if stage["layers"] < 16 else "each layer",
                f"{stage['loss_start']:.3f}",
                f"{stage['loss_end']:.3f}",
                f"{stage['loss_full_after_transfer']:.3f}",
            ]
        )
    return rows


def loss_by_megabytes(run: Run) -> list[tuple[float, float]]:
    """Held-out loss of the full model against megabytes sent up, from the untuned base on."""
    points = [(0.0, run.summary["base_loss"])]
    border = 0
    ends = {}
    for stage in run.summary["stages"]:
        border += stage["rounds"]
        ends[border] = stage["loss_full_after_transfer"]
    growing = len(run.summary["stages"]) > 1
    megabytes = 0.0
    for line in (run.folder / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        megabytes += row["bytes_up"] / 1e6
        # Within a growing run's stage what is evaluated is the submodel, not the model that the picture is about.
        loss = ends.get(row["round"], None if growing else row.get("held_out_loss"))
        if loss is not None:
            points.append((megabytes, loss))
    return points


def run_method(config: RunConfig, out: Path, model: Model, data: FederatedData) -> Run:
    """One of the three runs; ends the demo when it is asked to stop."""
    run = train(dataclasses.replace(config, out=str(out)), model=model, data=data)
    if not run.finished:
        raise SystemExit(130)
    return run


def main() -> None:
    """Run the three methods and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder of the three runs")
    options = parser.parse_args()
    began = time.perf_counter()
    configure_jax()
    progress = Progress()
    config = preset("demo")
    model = load_pretrained(bundled_model())
    data = build_federated_data(config, model.tokenizer, seed=config.seed)
    fedit = dataclasses.replace(config, growth="end-to-end")
    fewer = dataclasses.replace(fedit, rounds=equal_byte_rounds(config, model.config.layers))
    methods = {
        "DevFT": (config, "devft"),
        "FedIT, equal rounds": (fedit, "fedit"),
        "FedIT, equal bytes": (fewer, "fedit-equal-bytes"),
    }
    runs: dict[str, Run] = {}
    for name, (chosen, folder) in methods.items():
        progress.say(f"\n== {name} ==")
        runs[name] = run_method(chosen, options.out / folder, model, data)
    base: dict[str, Any] = runs["DevFT"].summary
    rows = [
        ["", "rounds", "held-out loss", "exact match", "sent up", "stages down", "FLOPs", "training", "compiling"],
        ["untuned base", "", f"{base['base_loss']:.3f}", f"{base['base_accuracy']:.1%}", *[""] * 5],
        *[result_row(name, run) for name, run in runs.items()],
    ]
    print(f"\n{base['held_out_examples']} held-out items, {base['clients']} clients, one seed\n")
    print(table(rows))
    print("\nDevFT, stage by stage (held-out loss)\n")
    print(table(stage_rows(runs["DevFT"])))
    chart = line_chart(
        "Held-out loss of the full model, demo",
        "sent up by all clients (MB)",
        "nats per token",
        [Line(name, loss_by_megabytes(run)) for name, run in runs.items()],
    )
    (options.out / "demo.svg").write_text(chart)
    summaries = {name: run.summary for name, run in runs.items()}
    (options.out / "demo.json").write_text(json.dumps(summaries, indent=1) + "\n")
    print(f"\n{readable_seconds(time.perf_counter() - began)} in all; picture and details in {options.out}")


if __name__ == "__main__":
    main()
