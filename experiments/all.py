"""Run the experiments: `python -m experiments.all --scale demo`.

Every experiment's results are written to experiments/results/SCALE/NAME.json, with a picture beside it, and the tables and
verdicts of experiments/README.md are written anew from all results. Runs are kept in runs/experiments/SCALE: the same
command resumes a stopped study, and a run that two experiments share is made once.
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from devft_jax.benchmarking.options import BenchmarkOptions
from devft_jax.errors import InputError
from devft_jax.files import write_atomically
from devft_jax.reporting import Progress
from experiments.paper import figure1, figure5, figure6, figure7, table1, table2, table3, table4, table5, table6
from experiments.pictures import picture
from experiments.questions import (
    alignment,
    anchor,
    beta,
    clients,
    dolly,
    fleet,
    gsm8k,
    heterogeneity,
    last_stage,
    levers,
    rates,
    recipe,
    scores,
    similarity,
    stages,
    transfer,
)
from experiments.readme import README, regenerated, results_of
from experiments.scales import DEMO, PAPER, Scale, real, with_options
from experiments.study import (
    RESULTS,
    Experiment,
    only_on_the_cpu,
    run_experiment,
    write_results,
)

PAPERS = (table1, table2, table3, table4, table5, table6, figure1, figure5, figure6, figure7)
QUESTIONS = (
    last_stage,
    rates,
    stages,
    beta,
    transfer,
    anchor,
    similarity,
    alignment,
    heterogeneity,
    clients,
    fleet,
    recipe,
    levers,
    gsm8k,
    dolly,
    scores,
)
EXPERIMENTS: tuple[Experiment, ...] = tuple(module.EXPERIMENT for module in (*PAPERS, *QUESTIONS))
"""All experiments, in the order in which they are shown."""
BY_NAME = {experiment.name: experiment for experiment in EXPERIMENTS}


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    made = argparse.ArgumentParser(prog="python -m experiments.all", description=__doc__.splitlines()[0])
    made.add_argument(
        "--scale", choices=("demo", "real", "paper"), default="demo", help="model, data and length of the runs"
    )
    made.add_argument(
        "--only", nargs="+", metavar="NAME", choices=list(BY_NAME), help=f"experiments, in this order: {', '.join(BY_NAME)}"
    )
    made.add_argument("--seeds", type=int, nargs="+", metavar="SEED", help="seeds in place of the scale's own")
    made.add_argument("--model", default="models/smollm2-135m", help="real: the folder that experiments.real_model makes")
    made.add_argument("--data", help="real: GSM8K's training examples, a file or Hugging Face name (openai/gsm8k/main)")
    made.add_argument("--test-data", help="real: GSM8K's test examples")
    made.add_argument("--categories", default="databricks/databricks-dolly-15k", help="real: Dolly, a file, folder or name")
    made.add_argument("--code", default="sahil2801/CodeAlpaca-20k", help="real: CodeAlpaca, a file or name")
    made.add_argument("--run", action="store_true", help="paper: train the models, which --scale paper otherwise only plans")
    made.add_argument("--tasks", nargs="+", metavar="TASK", help="benchmark tasks for the final models of table1 and scores")
    made.add_argument("--benchmark-files", help="folder with the benchmarks' original files")
    made.add_argument(
        "--set", nargs="+", default=[], metavar="OPTION=VALUE", help="options of all runs; also give --results then"
    )
    made.add_argument("--runs", type=Path, default=Path("runs/experiments"), help="folder of the runs")
    made.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    made.add_argument("--readme", action="store_true", help="only write pictures and README.md anew from the results")
    return made


def scale_of(options: argparse.Namespace) -> Scale:
    """The scale that the command's options name.

    Args:
      options: the parsed options.

    Raises:
      InputError: an option has the wrong form.
    """
    if options.scale == "real":
        data = options.data or "openai/gsm8k/main:train"
        test_data = options.test_data or ("openai/gsm8k/main:test" if options.data is None else None)
        scale = real(options.model, data, test_data, options.categories, options.code)
    else:
        scale = DEMO if options.scale == "demo" else dataclasses.replace(PAPER, trains=options.run)
    if options.seeds:
        scale = dataclasses.replace(scale, seeds=tuple(options.seeds))
    changes = {}
    for word in options.set:
        name, equals, value = word.partition("=")
        if not equals:
            raise InputError(f"--set '{word}' is not an option with its value; write it as rounds=8.")
        changes[name.replace("-", "_")] = int(value) if value.isdigit() else value
    return with_options(scale, **changes) if changes else scale


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the experiments and return the exit code.

    Args:
      arguments: the words after the command; by default those of the process.
    """
    options = parser().parse_args(arguments)
    progress = Progress()
    if options.set and options.results == RESULTS:
        progress.say("--set changes what is run, so its results must not replace the study's; name another --results.")
        return 2
    only_on_the_cpu()
    failed = 0
    if not options.readme:
        scale = scale_of(options)
        for experiment in [BY_NAME[name] for name in options.only] if options.only else EXPERIMENTS:
            if not experiment.bases(scale):
                continue
            progress.say(f"\n== {experiment.title} ({experiment.name}) ==")
            try:
                results = run_experiment(
                    experiment, scale, options.runs / scale.name, tasks=_tasks(options), progress=progress
                )
            except InputError as error:
                progress.say(f"{experiment.name} was not run: {error}")
                failed += 1
                continue
            progress.say(f"{write_results(results, options.results)}")
            show(options.results)
    show(options.results)
    return 1 if failed else 0


def show(folder: Path) -> None:
    """Draw the pictures of all results, and write the README anew if they are those of the study.

    Args:
      folder: folder of the results.
    """
    for experiment in EXPERIMENTS:
        for scale, results in results_of(experiment, folder).items():
            drawn = picture(experiment, results)
            if drawn is not None:
                write_atomically(folder / scale / f"{experiment.name}.svg", drawn)
    if folder == RESULTS:
        write_atomically(README, regenerated(README.read_text(encoding="utf-8"), EXPERIMENTS))


def _tasks(options: argparse.Namespace) -> BenchmarkOptions | None:
    if not options.tasks:
        return None
    return BenchmarkOptions(tasks=tuple(options.tasks), benchmark_files=options.benchmark_files)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
