"""Federated rounds of this project and of other programs, compared on identical work.

    python benchmarks/rounds.py --out results --rival torch=/path/to/torch-env/bin/python \\
        --rival jax=/path/to/jax-env/bin/python --dolly 'dolly/local_training_*.json.gz'

Every program runs in its own process, which stays alive. The programs run their rounds one after the other, so that they
never compete, and the order rotates from repetition to repetition. First each runs one round from the same adapters, and its
aggregated adapters are compared with those of the PyTorch and PEFT loop: a program that differs by more than the work's
tolerance is not timed. README.md in this folder says how to create the environments of the other programs, and what is left
out without them. Written to --out: results.json (raw seconds, versions, machine), results.md (tables) and two charts of
scaling.
"""

import argparse
import json
import math
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from processes import Process, ProgramError, idle_share, machine
from tables import depth_table, gate_table, ratio_table, round_table, scaling_charts, scaling_table, stage_table
from works import WORKS, WorkShape, write_work

from devft_jax.errors import InputError

PROGRAMS = Path(__file__).parent / "programs"

# Name in the tables: script, environment and flags. The first is compared with each of the others.
OWN = "devft_jax"
REFERENCE = "torch + PEFT loop, 1 thread"
ROUNDS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    OWN: ("devft.py", "own", ()),
    REFERENCE: ("peft_loop.py", "torch", ("--threads", "1")),
    "torch + PEFT loop, 2 threads": ("peft_loop.py", "torch", ("--threads", "2")),
    "pfl-research, 1 thread": ("pfl_simulation.py", "torch", ("--threads", "1")),
    "Flower simulation, 1 thread per core": ("flower_simulation.py", "flower", ()),
    "DrJAX": ("drjax_round.py", "jax", ()),
    "jax.vmap": ("vmap_round.py", "own", ()),
    "jax.lax.map, 1 client at a time": ("vmap_round.py", "own", ("--at-once", "1")),
}
SCALED = (OWN, "DrJAX", "jax.vmap")
COHORTS = (1, 4, 16, 64, 256, 1024, 4096)
DEPTHS = (2, 4, 8, 16)
# Largest share of the machine that other processes may use without a warning about wall seconds.
BUSY = 0.1
PARTS = ("rounds", "scaling", "depth", "stages")


class Bench:
    """State that the parts share: options, interpreters, the folder of works, and what was left out."""

    def __init__(self, options: argparse.Namespace, folder: Path):
        self.interpreters = {"own": sys.executable, **dict(options.rival)}
        self.options, self.folder = options, folder
        self.left_out: list[str] = []

    def shape(self, name: str) -> WorkShape:
        """A work of `WORKS`; Dolly's with the number of clients of the options."""
        return replace(WORKS[name], clients=self.options.dolly_clients) if name == "dolly" else WORKS[name]

    def say(self, text: str) -> None:
        """Print a line of progress."""
        print(text, file=sys.stderr, flush=True)

    def leave_out(self, text: str) -> None:
        """Record, for the results, what is not measured and why."""
        self.say(f"left out: {text}")
        self.left_out.append(text)

    def work(self, shape: WorkShape) -> Path:
        """The work's folder, which is written on first use."""
        folder = self.folder / f"{shape.name}-{shape.clients}"
        if not folder.exists():
            folder.mkdir()
            write_work(folder, shape, dolly=self.options.dolly, model=self.options.model)
        return folder

    def start(self, name: str, work: Path, *more: str) -> Process:
        """Start a program of `ROUNDS` on a work."""
        script, environment, flags = ROUNDS[name]
        command = [self.interpreters[environment], str(PROGRAMS / script), "--work", str(work), *flags, *more]
        return Process(name, command, self.folder)

    def available(self, names: tuple[str, ...]) -> list[str]:
        """The names whose environment has an interpreter; the others are recorded as left out."""
        found = []
        for name in names:
            environment = ROUNDS[name][1]
            if environment in self.interpreters:
                found.append(name)
            else:
                self.leave_out(f"{name}: no interpreter; set --rival {environment}=PYTHON.")
        return found


def interleaved(
    programs: dict[Any, Process], repetitions: int, say: Callable[[str], None]
) -> dict[Any, list[dict[str, float]]]:
    """Timed rounds of every program, one at a time; the order rotates by one from repetition to repetition."""
    rows: dict[Any, list[dict[str, float]]] = {name: [] for name in programs}
    names = list(programs)
    for repetition in range(repetitions):
        shift = repetition % len(names)
        for name in names[shift:] + names[:shift]:
            rows[name].append(programs[name].ask("round"))
        walls = ", ".join(f"{name} {rows[name][-1]['wall']:.3f}" for name in names)
        say(f"  repetition {repetition + 1} of {repetitions}, wall seconds: {walls}")
    return rows


def run_rounds(bench: Bench, shape: WorkShape) -> dict[str, Any]:
    """The gate and the timings of every program on one work."""
    work = bench.work(shape)
    names = bench.available(tuple(bench.options.programs))
    bench.say(f"{shape.name}: {', '.join(names)}")
    result: dict[str, Any] = {"tolerance": shape.tolerance, "programs": {}, "work": describe(work, shape)}
    running: dict[str, Process] = {}
    try:
        for name in names:
            try:
                running[name] = bench.start(name, work)
                first = running[name].ask("round")
                adapters, loss = running[name].adapters()
            except ProgramError as error:
                bench.leave_out(f"{name} on {shape.name}: {error}")
                running.pop(name, None)
                continue
            process = running[name]
            result["programs"][name] = {
                "start": process.start_seconds,
                "first": first["wall"],
                "loss": loss,
                "versions": process.versions,
                "adapters": adapters,
            }
        with np.load(work / "adapters.npz") as stored:
            apply_gate(bench, shape, result, running, dict(stored))
        rows = interleaved(running, bench.options.repeat, bench.say)
        for name, timed in rows.items():
            result["programs"][name]["rounds"] = timed
    finally:
        for process in running.values():
            process.stop()
    return result


def apply_gate(
    bench: Bench, shape: WorkShape, result: dict[str, Any], running: dict[str, Process], start: dict[str, np.ndarray]
) -> None:
    """Compare every program's adapters with the reference's, and stop programs that differ.

    The arrays are removed from the result. `start` are the initial adapters, which the round's update is relative to.
    """
    programs = result["programs"]
    if not programs:
        raise InputError(f"no program ran the work {shape.name}; the reasons are above.")
    reference = REFERENCE if REFERENCE in programs else next(iter(programs))
    result["reference"] = reference
    if reference != REFERENCE:
        bench.leave_out(f"the gate on {shape.name}: without the torch environment programs are compared with {reference}.")
    expected = programs[reference]["adapters"]
    update = norm(expected, start)
    for name, program in programs.items():
        found = program["adapters"]
        program["difference"] = max(float(np.abs(found[key] - expected[key]).max()) for key in expected)
        program["relative"] = norm(found, expected) / update
        program["passed"] = bool(program["difference"] <= shape.tolerance)
        bench.say(f"  {name}: largest difference {program['difference']:.1e}, mean loss {program['loss']:.6f}")
        if not program["passed"]:
            bench.leave_out(
                f"{name} on {shape.name}: its adapters differ by {program['difference']:.1e}, more than {shape.tolerance}."
            )
            running.pop(name).stop()
    for program in programs.values():
        del program["adapters"]


def norm(mine: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> float:
    """Norm of the difference of two sets of adapters."""
    return math.sqrt(sum(float(np.sum((mine[key] - theirs[key]).astype(np.float64) ** 2)) for key in theirs))


def describe(work: Path, shape: WorkShape) -> dict[str, Any]:
    """A work's size as the tables need it."""
    with np.load(work / "examples.npz") as stored:
        lengths, order = stored["lengths"], stored["order"]
        answers = lengths - np.maximum(stored["prompt_lengths"], 1)
    return {
        "clients": shape.clients,
        "steps": shape.steps,
        "batch": shape.batch,
        "tokens": int(lengths[order].sum()),
        "answer_tokens": int(answers[order].sum()),
        "longest": int(lengths.max()),
    }


def run_scaling(bench: Bench) -> dict[str, Any]:
    """Rounds of the tiny work for cohorts of all sizes, one program after the other, with the sizes interleaved."""
    cohorts = [size for size in COHORTS if size <= bench.options.largest_cohort]
    work = bench.work(replace(WORKS["tiny"], clients=max(cohorts)))
    result: dict[str, Any] = {}
    for name in bench.available(tuple(name for name in SCALED if name in bench.options.programs)):
        bench.say(f"scaling: {name}")
        running: dict[int, Process] = {}
        try:
            for size in cohorts:
                try:
                    running[size] = bench.start(name, work, "--clients", str(size))
                    running[size].ask("round")
                except ProgramError as error:
                    bench.leave_out(f"{name} with {size} clients: {error}")
                    running.pop(size, None)
            result[name] = interleaved(running, bench.options.repeat, bench.say)
        finally:
            for process in running.values():
                process.stop()
    return result


def run_depth(bench: Bench) -> dict[str, Any]:
    """Rounds of this project on the first 2, 4, 8 and 16 layers of the model of the Dolly work."""
    shape = bench.shape("dolly")
    work = bench.work(shape)
    bench.say("depth")
    running: dict[int, Process] = {}
    try:
        for depth in DEPTHS:
            running[depth] = bench.start(OWN, work, "--layers", str(depth))
            running[depth].ask("round")
        rounds = interleaved(running, bench.options.repeat, bench.say)
    finally:
        for process in running.values():
            process.stop()
    return {"rounds": rounds, "work": describe(work, shape), "head_layers": head_layers(work, rounds)}


def head_layers(work: Path, rounds: dict[int, list[dict[str, float]]]) -> float:
    """Operations of the head on the tokens that the loss covers, in units of one layer's operations as the engine counts
    them."""
    config = json.loads((work / "model" / "config.json").read_text())
    with np.load(work / "examples.npz") as stored:
        order = stored["order"]
        answers = int((stored["lengths"] - np.maximum(stored["prompt_lengths"], 1))[order].sum())
    shallow, deep = min(rounds), max(rounds)
    layer = (rounds[deep][0]["flops"] - rounds[shallow][0]["flops"]) / (deep - shallow)
    # Forward and the gradient of its input, a multiply-add counted as two.
    return 4 * config["hidden_size"] * config["vocab_size"] * answers / layer


def run_stages(bench: Bench) -> dict[str, Any]:
    """Time of this project's stage changes, with a float and with a quantised base."""
    work = bench.work(bench.shape("dolly"))
    result = {}
    for quantization in ("none", "nf4"):
        bench.say(f"stages, quantization {quantization}")
        command = [sys.executable, str(PROGRAMS / "devft_stages.py"), "--work", str(work)]
        command += ["--quantization", quantization, "--repeat", str(bench.options.repeat)]
        process = Process(f"stages-{quantization}", command, bench.folder)
        try:
            result[quantization] = process.ask("stages")["stages"]
        finally:
            process.stop()
    return result


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for results.json, results.md and the charts")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to measure; by default all")
    parser.add_argument(
        "--works",
        nargs="+",
        choices=tuple(WORKS),
        default=["tiny", "small", "dolly"],
        help="works of the part rounds; by default tiny, small and dolly. pretrained needs --model; micro only shows that "
        "the programs agree",
    )
    parser.add_argument(
        "--programs",
        nargs="+",
        choices=tuple(ROUNDS),
        default=list(ROUNDS),
        metavar="NAME",
        help=f"by default all: {'; '.join(ROUNDS)}",
    )
    parser.add_argument(
        "--rival",
        action="append",
        type=_interpreter,
        default=[],
        metavar="ENVIRONMENT=PYTHON",
        help="interpreter of an environment (torch, flower, jax) of the rivals; may be given several times",
    )
    parser.add_argument(
        "--dolly",
        default=os.environ.get("DOLLY_DATA"),
        metavar="DATA",
        help="Dolly's text, named as `devft run --data` takes it (files: one client each); by default "
        "the environment variable DOLLY_DATA. Without it the work dolly and the parts depth and stages are left out",
    )
    parser.add_argument(
        "--model", metavar="FOLDER", help="the model of the work pretrained, in Hugging Face's layout, such as SmolLM2-135M"
    )
    parser.add_argument(
        "--repeat", type=int, default=9, help="timed rounds of every program; fewer than 6 give no intervals (default: 9)"
    )
    parser.add_argument(
        "--dolly-clients",
        type=int,
        default=WORKS["dolly"].clients,
        help="number of Dolly's clients, for a shorter round (default: 8)",
    )
    parser.add_argument(
        "--largest-cohort", type=int, default=COHORTS[-1], help="largest cohort of the part scaling (default: 4096)"
    )
    return parser.parse_args(arguments)


def _interpreter(text: str) -> tuple[str, str]:
    name, _, path = text.partition("=")
    if name not in {environment for _, environment, _ in ROUNDS.values()} - {"own"} or not Path(path).is_file():
        raise argparse.ArgumentTypeError(
            f"{text!r} is not an environment and its interpreter, such as torch=/env/bin/python"
        )
    return name, path


def main() -> None:
    """Measure what the options request; the results are written after every work and part, so that a late failure keeps
    them."""
    options = parse()
    for field in ("repeat", "dolly_clients"):
        if getattr(options, field) < 1:
            raise SystemExit(f"error: --{field.replace('_', '-')} must be 1 or more.")
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options, Path(folder))
        results: dict[str, Any] = {"machine": machine(), "busy_before": 1 - idle_share(2.0), "left_out": bench.left_out}
        if results["busy_before"] > BUSY:
            share = f"{results['busy_before']:.0%}"
            bench.say(f"warning: other processes take {share} of the machine; only ratios of CPU seconds are meaningful.")
        for part, name, measure in planned(bench):
            found = measure()
            if name is None:
                results[part] = found
            else:
                results.setdefault(part, {})[name] = found
            (options.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
            (options.out / "results.md").write_text(report(results, options.out))
    if results.keys() == {"machine", "busy_before", "left_out"}:
        raise SystemExit(f"error: nothing could be measured: {'; '.join(bench.left_out)}")
    print((options.out / "results.md").read_text())


def planned(bench: Bench) -> list[tuple[str, str | None, Callable[[], Any]]]:
    """The requested measurements that are possible: part, work if the part has several, and the function to call."""
    options = bench.options
    steps: list[tuple[str, str | None, Callable[[], Any]]] = []
    if "rounds" in options.parts:
        steps += [("rounds", name, partial(run_rounds, bench, bench.shape(name))) for name in options.works]
    for part, measure in (("scaling", run_scaling), ("depth", run_depth), ("stages", run_stages)):
        if part in options.parts:
            steps.append((part, None, partial(measure, bench)))
    possible = []
    for part, name, run in steps:
        lacking = []
        if options.dolly is None and (part in ("depth", "stages") or (name and WORKS[name].length is None)):
            lacking.append("Dolly's text; set --dolly")
        if options.model is None and name and WORKS[name].model is None and not WORKS[name].bundled:
            lacking.append("a model; set --model")
        for what in lacking:
            bench.leave_out(f"{f'the work {name}' if name else f'the part {part}'}: it needs {what}.")
        if not lacking:
            possible.append((part, name, run))
    return possible


def report(results: dict[str, Any], out: Path) -> str:
    """All tables as Markdown; the charts go to `out`."""
    parts = []
    for name, result in results.get("rounds", {}).items():
        parts += [f"### {name}", gate_table(result), round_table(result), ratio_table(result, OWN)]
    if results.get("scaling"):
        parts += ["### Cohorts of the tiny work", scaling_table(results["scaling"])]
        for file, chart in scaling_charts(results["scaling"]).items():
            (out / file).write_text(chart)
            parts.append(f"![{file}]({file})")
    if "depth" in results:
        parts += ["### Round time over depth", depth_table(results["depth"])]
    if "stages" in results:
        parts += ["### Changing stages", stage_table(results["stages"])]
    if results["left_out"]:
        parts.append("Left out:\n" + "\n".join(f"- {text}" for text in results["left_out"]))
    busy = results["busy_before"]
    parts.append(f"{results['machine']}; other processes took {busy:.0%} of it before the start.")
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    main()
