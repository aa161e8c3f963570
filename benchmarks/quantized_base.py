"""A frozen base in floats, 8 bits and 4 bits: loading, memory, time per round and loss, each in its own process.

    python benchmarks/quantized_base.py                         # the bundled model
    python benchmarks/quantized_base.py --shape 1b              # TinyLLaMA's shape, random bfloat16 weights: 2.2 GB on disk
    python benchmarks/quantized_base.py --model FOLDER --data FILE --test-data FILE

Every kind of storage has one full-depth run. The kind of `--stages-of` also has one run of a single fused stage for each of
the four ways to fuse it: from quantised or original weights, quantised again or kept as floats. `--repeat` repeats the runs
in turn; times are medians over runs of each run's fastest round, with the range. Memory is anonymous memory above its value
before the step: "load" while the model is read, "run" while it is trained, including compilation. "base" is the size of the
weights. Losses are of held-out examples if the data has them. Linux only.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

KINDS = ("none", "int8", "int4", "nf4")
# TinyLLaMA 1.1B.
WIDTH, FEED_FORWARD, LAYERS, HEADS, KV_HEADS, VOCABULARY = 2048, 5632, 22, 32, 4, 32_000


def write_random_model(folder: Path) -> None:
    """A checkpoint of TinyLLaMA's shape with random weights and the bundled model's tokenizer."""
    import shutil

    import ml_dtypes
    import numpy as np

    from devft_jax.models.architecture import PROJECTIONS, ModelConfig
    from devft_jax.models.base import Base, Block
    from devft_jax.models.huggingface.writing import save_pretrained
    from devft_jax.training.submodels import bundled_model

    config = ModelConfig(
        vocabulary=VOCABULARY,
        width=WIDTH,
        feed_forward=FEED_FORWARD,
        layers=LAYERS,
        heads=HEADS,
        kv_heads=KV_HEADS,
        head_size=WIDTH // HEADS,
        max_length=2048,
    )
    draw = np.random.default_rng(0)

    def normal(*shape: int) -> Any:
        out = np.empty(shape, ml_dtypes.bfloat16)
        for part in out:
            part[...] = 0.02 * draw.standard_normal(part.shape, np.float32)
        return out

    def ones(*shape: int) -> Any:
        return np.ones(shape, ml_dtypes.bfloat16)

    projections = {name: normal(LAYERS, *config.projection_shape(name)) for name in PROJECTIONS}
    blocks = Block(**projections, norm_attention=ones(LAYERS, WIDTH), norm_mlp=ones(LAYERS, WIDTH))
    base = Base(embed=normal(VOCABULARY, WIDTH), blocks=blocks, norm=ones(WIDTH), head=normal(WIDTH, VOCABULARY))
    save_pretrained(folder, config, base, dtype="bfloat16")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(bundled_model() / name, folder)


def measure(options: dict[str, Any]) -> dict[str, Any]:
    """Time, memory and losses of loading and of one run, in this process."""
    from anonymous_memory import peak_memory

    from devft_jax.commands.jax_setup import configure_jax
    from devft_jax.config.files import config_from_mapping
    from devft_jax.models.huggingface.reading import load_pretrained
    from devft_jax.reporting import Progress
    from devft_jax.training.run import train
    from devft_jax.training.submodels import bundled_model

    configure_jax()
    config = config_from_mapping(options)
    path = bundled_model() if config.model == "bundled" else config.model
    with peak_memory() as load:
        began = time.perf_counter()
        model = load_pretrained(path, quantization=config.quantization, dtype="float32")
        load_seconds = time.perf_counter() - began
        del model
    with peak_memory() as run_memory:
        run = train(config, progress=Progress(quiet=True))
    summary = run.summary
    assert summary is not None
    return {
        "load_seconds": load_seconds,
        "load_bytes": load[0],
        "run_bytes": run_memory[0],
        "round_seconds": min(row.seconds for row in run.history),
        "build_seconds": summary.seconds.build,
        "base_bytes": summary.base_bytes,
        "scratch_bytes": summary.scratch_bytes,
        "base_loss": summary.base_loss,
        "final_loss": summary.final_loss,
        "submodel_bytes": summary.stages[0].submodel_bytes,
    }


def run_apart(options: dict[str, Any]) -> dict[str, Any]:
    """`measure` in a new process."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, __file__, "--measure", json.dumps({**options, "out": f"{out}/run"})]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def table(results: dict[str, list[dict[str, Any]]]) -> str:
    """The medians as a Markdown table."""
    lines = [
        "| run | base | load | load peak | run peak | scratch | stage built | stage layers | round | held-out loss |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, runs in results.items():

        def median(key: str, runs: Sequence[dict[str, Any]] = runs) -> float:
            return statistics.median(run[key] for run in runs)

        rounds = [run["round_seconds"] for run in runs]
        losses = f"{runs[0]['base_loss']:.4f} -> {runs[0]['final_loss']:.4f}" if runs[0]["base_loss"] is not None else ""
        sizes = [f"{median(key) / 1e6:,.1f} MB" for key in ("base_bytes", "load_bytes", "run_bytes", "scratch_bytes")]
        cells = [
            name,
            sizes[0],
            f"{median('load_seconds'):.2f} s",
            *sizes[1:],
            f"{median('build_seconds'):.2f} s",
            f"{median('submodel_bytes') / 1e6:,.1f} MB",
            f"{statistics.median(rounds):.3f} s ({min(rounds):.3f}-{max(rounds):.3f})",
            losses,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Run every kind and every way of fusing, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--shape", choices=("bundled", "1b"), default="bundled")
    parser.add_argument("--model", help="a model folder instead of --shape")
    parser.add_argument("--data", default="microtasks:train:400")
    parser.add_argument("--test-data", help="held-out data")
    parser.add_argument("--growth", choices=("end-to-end", "devft"), default="end-to-end", help="of the full-depth runs")
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--stages-of", default="nf4", help="the kind whose four ways of fusing are measured, or none")
    parser.add_argument("--stage-layers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--local-steps", type=int, default=2)
    parser.add_argument("--clients", type=int, default=2, help="clients of a round, trained at once")
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--max-length", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(json.loads(arguments.measure))))
        return
    with tempfile.TemporaryDirectory() as folder:
        model = arguments.model or "bundled"
        if arguments.shape == "1b" and arguments.model is None:
            model = folder
            write_random_model(Path(folder))
        common = {
            "model": model,
            "data": arguments.data,
            "test_data": arguments.test_data,
            "template": "alpaca_short",
            "clients_per_round": arguments.clients,
            "clients_per_step": arguments.clients,
            "devices": 1,
            "local_steps": arguments.local_steps,
            "batch_size": arguments.batch_size,
            "max_length": arguments.max_length,
            "learning_rate": [arguments.learning_rate],
            "rounds": arguments.rounds,
            "rank": 16,
            "alpha": 32.0,
            "dropout": 0.0,
        }
        runs = {
            f"{kind}": {**common, "growth": arguments.growth, "quantization": kind} for kind in arguments.kinds.split(",")
        }
        if arguments.stages_of != "none":
            one_stage = {**common, "growth": "devft", "capacities": [arguments.stage_layers]}
            runs[f"{arguments.stage_layers} layers, none"] = {**one_stage, "quantization": "none"}
            for source in ("packed", "original"):
                for precision in ("packed", "float"):
                    name = f"{arguments.stage_layers} layers, {arguments.stages_of}, from {source}, {precision}"
                    storage = {"quantization": arguments.stages_of, "fuse_from": source, "fused_precision": precision}
                    runs[name] = {**one_stage, **storage}
        results: dict[str, list[dict[str, Any]]] = {name: [] for name in runs}
        for _ in range(arguments.repeat):
            for name, options in runs.items():
                results[name].append(run_apart(options))
    print(table(results))


if __name__ == "__main__":
    main()
