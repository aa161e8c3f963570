"""Scores the final models of a comparison on benchmark tasks, each by `devft evaluate` in a process of its own.

The scores of a run are in `scores/RUN-DIGEST.json` of the comparison's folder, a file of `devft evaluate`; the digest stands
for the tasks, their settings and their items. What is there is read, not computed again. The first run is evaluated together
with its untuned base.
"""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from devft_jax.benchmarking.options import BenchmarkOptions, validate_benchmark
from devft_jax.comparing.budgets import Configured
from devft_jax.comparing.options import BENCHMARK_OPTIONS
from devft_jax.comparing.processes import last_words, supervise
from devft_jax.comparing.results import Comparison, TaskScores
from devft_jax.config.methods import algorithm_of
from devft_jax.config.run_config import RunConfig
from devft_jax.errors import InputError
from devft_jax.harness.results import Results
from devft_jax.harness.tasks import TaskOptions, open_tasks, tasks_digest
from devft_jax.reporting import Progress
from devft_jax.reporting.waiting import readable_seconds
from devft_jax.runtime.stopping import StopRequest


@dataclass(frozen=True)
class Scoring:
    """What the final models are scored on; checked.

    Attributes:
      options: tasks and how they are run.
      template: wording of the microtasks; None for the default.
      digest: stands for the tasks, their settings and their items.
      left_out: why an arm is not scored, by its name.
    """

    options: BenchmarkOptions
    template: str | None
    digest: str
    left_out: Mapping[str, str]


def check_scoring(options: BenchmarkOptions, common: RunConfig, arms: Sequence[Configured]) -> Scoring | None:
    """Open the tasks, so that whatever is wrong with them is known before the first run.

    Args:
      options: tasks and how they are run.
      common: the options that all arms share.
      arms: the arms.

    Returns:
      What is to be scored; None without tasks.

    Raises:
      InputError: an unknown task, one whose data is not there, a missing extra, or no arm that can be scored.
    """
    if not options.tasks:
        given = [name for name in BENCHMARK_OPTIONS[1:] if getattr(options, name) is not None]
        if given:
            raise InputError(f"{given[0]} has no effect without tasks; give some, such as --tasks quick, or leave it out.")
        return None
    validate_benchmark(options)
    left_out = {each.arm.name: why for each in arms if (why := _why_left_out(each.config)) is not None}
    if len(left_out) == len(arms):
        name, why = next(iter(left_out.items()))
        raise InputError(f"tasks has no arm to score: {name} {why}; add another arm, or leave tasks out.")
    template = None if common.template == "auto" else common.template
    opened = open_tasks(options.tasks, benchmark_files=options.benchmark_files, template=template or "alpaca")
    asked = TaskOptions(limit=options.limit, num_fewshot=options.num_fewshot, seed=options.seed)
    return Scoring(options, template, tasks_digest(options.tasks, opened, asked), left_out)


def _why_left_out(config: RunConfig) -> str | None:
    """Why an arm has no model that can be scored; None if it has one."""
    algorithm = algorithm_of(config)
    if not algorithm.has_global_model:
        return "has no global model and is not scored on tasks (`devft evaluate` scores one client's model with --client)"
    if not algorithm.low_rank:
        return "has no low-rank adapter, the only kind that can be scored on tasks"
    return None


def score_runs(comparison: Comparison, scoring: Scoring, folder: Path, progress: Progress, stop: StopRequest) -> TaskScores:
    """Score the finished runs that have no scores yet, and read all scores.

    Args:
      comparison: gives the runs.
      scoring: what they are scored on.
      folder: the comparison's folder.
      progress: the progress output.
      stop: whether the comparison was asked to stop.

    Returns:
      The scores; a run that could not be scored is among the errors.

    Raises:
      Stopped: the comparison was asked to stop.
    """
    labels = {
        listed.run.folder: f"{listed.arm.name}, seed {listed.run.seed}"
        for listed in comparison.runs
        if listed.run.finished and listed.arm.name not in scoring.left_out
    }
    files = {run: folder / "scores" / f"{Path(run).name}-{scoring.digest}.json" for run in labels}
    known = {run: found for run, file in files.items() if (found := _read(file)) is not None}
    errors: dict[str, str] = {}
    missing = [run for run in labels if run not in known]
    if known:
        progress.say(f"models scored before: {len(known)} of {len(labels)}")
    if labels and not missing and _base(known) is None:
        missing = [next(iter(labels))]
    for run in missing:
        stop.check()
        with_base = _base(known) is None
        said = " and the untuned base" if with_base else ""
        progress.say(f"scoring model {list(labels).index(run) + 1} of {len(labels)}: {labels[run]}{said}")
        began = time.monotonic()
        made = _evaluate(run, files[run], scoring, progress, stop, with_base=with_base)
        if isinstance(made, str):
            errors[run] = made
        else:
            known[run] = made
        outcome = f"failed: {made}" if isinstance(made, str) else "finished"
        progress.say(f"  {outcome}; took {readable_seconds(time.monotonic() - began)}")
    asked = {name: getattr(scoring.options, name) for name in BENCHMARK_OPTIONS}
    return TaskScores(_base(known), {run: known[run][-1] for run in labels if run in known}, errors, scoring.left_out, asked)


def _base(known: Mapping[str, Sequence[Results]]) -> Results | None:
    """The scores of the untuned base, which one of the runs was evaluated together with."""
    return next((found[0] for found in known.values() if len(found) > 1), None)


def _read(file: Path) -> list[Results] | None:
    """The scores in a file, the run's last and before them its base's if they are there; None if there is no such file."""
    try:
        models = json.loads(file.read_text(encoding="utf-8"))["models"]
        return [Results.from_plain(model) for model in models] or None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _evaluate(
    run: str, file: Path, scoring: Scoring, progress: Progress, stop: StopRequest, *, with_base: bool
) -> list[Results] | str:
    """The scores of a run, computed in another process, or why there are none."""
    file.parent.mkdir(parents=True, exist_ok=True)
    # Under its own name only once it is complete: after the base alone there is a file, too.
    partial, log = file.with_suffix(".partial"), file.with_suffix(".log")
    # As JSON, in which a comma does not separate values.
    words = ["evaluate", json.dumps([run]), "--out", str(partial)]
    for name in BENCHMARK_OPTIONS:
        value = getattr(scoring.options, name)
        if value is not None:
            shown = json.dumps(list(value)) if isinstance(value, tuple) else str(value)
            words += [f"--{name.replace('_', '-')}", shown]
    words += [] if scoring.template is None else ["--template", scoring.template]
    words += ["--compare"] if with_base else []
    code = supervise(
        [sys.executable, "-m", "devft_jax.commands.child", *words],
        log,
        progress,
        stop,
        shown="  ",
        saves="the requests under way are kept",
    )
    stop.check()
    found = _read(partial) if code == 0 else None
    if found:
        partial.replace(file)
    return found or f"{last_words(log, code)} (see {log})"
