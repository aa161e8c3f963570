"""Compares methods by many runs: `devft compare`.

    arms x seeds -> runs, each an ordinary run in a process of its own -> tables over seeds, and conclusions

All arms of a seed have the same clients, cohorts and order of examples (`devft_jax.comparing.runs` checks this). Several
processes share the runs (`devft_jax.comparing.team`); process 0 scores them and writes the files.

The comparison's folder: `runs/` with the runs, and the configuration file and the output of each; comparison.csv, .json, .md
and .html; runs.csv; `scores/` with the final models' scores on benchmark tasks.
"""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from devft_jax.benchmarking.options import BenchmarkOptions
from devft_jax.comparing.budgets import Configured
from devft_jax.comparing.formats import arm_rows, run_rows, to_csv, to_markdown
from devft_jax.comparing.formats import to_plain as comparison_to_plain
from devft_jax.comparing.lanes import Lane, find_lanes
from devft_jax.comparing.measures import FINAL_LOSS, mean_of
from devft_jax.comparing.options import CompareOptions
from devft_jax.comparing.page import comparison_html
from devft_jax.comparing.request import Request, check_request
from devft_jax.comparing.results import ArmResult, Budget, Comparison, Outcome, judged_alike
from devft_jax.comparing.runs import Job, Runs, check_splits, run_name, without_task_scores
from devft_jax.comparing.scoring import check_scoring, score_runs
from devft_jax.comparing.team import Team
from devft_jax.config.files import to_plain
from devft_jax.config.methods import algorithm_of
from devft_jax.config.run_config import RunConfig
from devft_jax.errors import InputError
from devft_jax.reporting import Progress
from devft_jax.reporting.judged import judged_answers
from devft_jax.runtime.processes import Processes
from devft_jax.runtime.stopping import Stopped, StopRequest
from devft_jax.runtime.watching import watching
from devft_jax.storage.ownership import COMPARISON
from devft_jax.storage.run_folder import RunFolder

Entry = tuple[str, str]
"""An arm under a budget: the kind of budget and the arm's name."""

Tuning = dict[float, float | None]
"""Held-out loss by learning rate; None for a rate whose run failed."""


@dataclass(frozen=True)
class Compared:
    """A finished or stopped comparison.

    Attributes:
      comparison: the results; None if it was stopped, and in a process other than the first.
      folder: the comparison's folder.
      stopped_by: number of the signal that stopped it.
      failed: whether a run failed, or could not be scored on tasks.
    """

    comparison: Comparison | None
    folder: Path
    stopped_by: int | None = None
    failed: bool = False


def compare(
    common: RunConfig,
    options: CompareOptions,
    benchmarks: BenchmarkOptions | None = None,
    *,
    progress: Progress | None = None,
    command: str = "",
) -> Compared:
    """Compare methods over seeds: make the missing runs, write the comparison's files, and return it.

    Args:
      common: the options that all arms share; its algorithm, growth, seed and folder are not used.
      options: the options of the comparison itself.
      benchmarks: tasks that final models are scored on; its `compare`, `out` and `apply_chat_template` are not used. None
        for no tasks.
      progress: the progress output.
      command: the command to show with the results.

    Returns:
      The comparison, or the signal that stopped it.

    Raises:
      InputError: the request is invalid; nothing has been run at that point.
    """
    processes, progress = Processes.joined(), progress or Progress()
    with watching(processes):
        check_alike(processes, common, options, benchmarks)
        request = check_request(common, options)
        scoring = None if benchmarks is None else check_scoring(benchmarks, request.common, request.budgets[0].arms)
        lanes = find_lanes(options.at_once, common.devices, processes)
        stop = StopRequest()
        stop.doing = "the round that the run is in"
        team = Team(stop, processes)
        with RunFolder(options.out, COMPARISON, processes) as folder, stop.listening(), team:
            comparison = None
            try:
                comparison = _compared(request, folder.path, progress, team, lanes, command)
                if comparison is not None and scoring is not None:
                    # First without scores, which may take long and are stopped more easily.
                    write_files(comparison, folder)
                    stop.doing = "the requests that are computed"
                    scores = score_runs(comparison, scoring, folder.path, progress, stop)
                    comparison = dataclasses.replace(comparison, scores=scores)
                if comparison is not None:
                    write_files(comparison, folder)
                [failed, *_] = team.part(comparison is not None and has_failed(comparison))
            except Stopped:
                progress.say("stopped; what is finished is saved, and the same command resumes the comparison.")
                team.part(False)
                return Compared(None, folder.path, stop.signal)
    if processes.first:
        return Compared(comparison, folder.path, failed=failed)
    return Compared(None, folder.path, stop.signal, failed)


def check_alike(
    processes: Processes, common: RunConfig, options: CompareOptions, benchmarks: BenchmarkOptions | None
) -> None:
    """Check that all processes were given the same command; called by all.

    Args:
      processes: those that share the runs.
      common: the options that all arms share.
      options: the options of the comparison itself.
      benchmarks: the tasks.

    Raises:
      InputError: an option differs.
    """
    asked = [to_plain(common), dataclasses.asdict(options), {} if benchmarks is None else dataclasses.asdict(benchmarks)]
    # A host with more devices may make more runs at once.
    values = {name: repr(value) for some in asked for name, value in some.items() if name != "at_once"}
    different = processes.differing(values)
    if different is not None:
        name, index, other, first = different
        raise InputError(
            f"{name} is {other} in {processes.name(index)} and {first} in process 0; start the same command in all of them."
        )


def has_failed(comparison: Comparison) -> bool:
    """Whether a run failed, or could not be scored on tasks.

    Args:
      comparison: the comparison.
    """
    runs = [outcome for budget in comparison.budgets for arm in budget.arms for outcome in arm.outcomes]
    scores = comparison.scores
    return not all(run.finished for run in runs) or bool(scores is not None and scores.errors)


def _compared(
    request: Request, out: Path, progress: Progress, team: Team, lanes: Sequence[Lane], command: str
) -> Comparison | None:
    """Make the runs that are missing; the comparison in process 0."""
    options = request.options
    entries = {(terms.kind, each.arm.name): each for terms in request.budgets for each in terms.arms}
    rounds = len(request.seeds) * sum({run_name(each.config): each.rounds for each in entries.values()}.values())
    later = rounds // team.processes.count if options.learning_rates else 0
    runs = Runs(out, progress, team.stop, later, own_grid=request.own_grid, lanes=lanes, team=team)
    tuning = _tuned(entries, options, runs, team)
    runs.later = 0
    results = _results(request, entries, tuning, runs, team)
    if results is None:
        return None
    budgets = [
        Budget(terms.kind, terms.text, [results[terms.kind, each.arm.name] for each in terms.arms], terms.left_out)
        for terms in request.budgets
    ]
    target = options.target_loss
    if target is None:
        standard = mean_of(budgets[0].arm(request.reference), FINAL_LOSS)
        target = None if standard is None else standard.mean
    return Comparison(
        budgets=budgets,
        reference=request.reference,
        seeds=request.seeds,
        target=target,
        target_given=options.target_loss is not None,
        tuning_seeds=options.tuning_seeds if options.learning_rates else (),
        rates=options.learning_rates or (),
        common=request.common,
        command=command,
    )


def _tuned(entries: Mapping[Entry, Configured], options: CompareOptions, runs: Runs, team: Team) -> dict[Entry, Tuning]:
    """Mean held-out loss over the tuning seeds by rate, for every arm under each budget; empty if nothing is tuned."""
    jobs = {
        (entry, rate, seed): runs.job(
            without_task_scores(dataclasses.replace(each.config, seed=seed, learning_rate=(rate,))),
            f"{each.arm.name} at learning rate {rate:g}",
        )
        for seed in options.tuning_seeds
        for entry, each in entries.items()
        for rate in options.learning_rates or ()
    }
    if not jobs:
        return {}
    outcomes = runs.make(list(jobs.values()), "tuning run")
    found = _losses(entries, options, jobs, outcomes) if team.processes.first else {}
    [chosen, *_] = team.of_all([list(losses.items()) for losses in found.values()])
    return {entry: dict(losses) for entry, losses in zip(entries, chosen, strict=True)}


def _losses(
    entries: Mapping[Entry, Configured],
    options: CompareOptions,
    jobs: Mapping[tuple[Entry, float, int], Job],
    outcomes: Mapping[str, Outcome],
) -> dict[Entry, Tuning]:
    """The mean held-out losses of the tuning runs."""
    check_splits(list(outcomes.values()))
    if all(outcome.finished and outcome.final_loss is None for outcome in outcomes.values()):
        raise InputError("learning_rates needs held-out data to choose by; give --test-data or --test-fraction.")
    found: dict[Entry, Tuning] = {}
    for entry in entries:
        for rate in options.learning_rates or ():
            losses = [outcomes[jobs[entry, rate, seed].name].final_loss for seed in options.tuning_seeds]
            known = [loss for loss in losses if loss is not None]
            # A rate that fails on one seed is not chosen.
            found.setdefault(entry, {})[rate] = statistics.fmean(known) if len(known) == len(losses) else None
    return found


def _best_rate(losses: Tuning | None) -> float | None:
    """The rate with the lowest loss; None if there is none."""
    known = {rate: loss for rate, loss in (losses or {}).items() if loss is not None}
    return min(known, key=lambda rate: known[rate]) if known else None


def _results(
    request: Request, entries: Mapping[Entry, Configured], tuning: Mapping[Entry, Tuning], runs: Runs, team: Team
) -> dict[Entry, ArmResult] | None:
    """The runs of every arm under each budget, seed by seed, so that a stopped comparison has complete seeds; None in a
    process other than the first, which does not read them."""
    jobs: dict[tuple[Entry, int], Job] = {}
    for seed in request.seeds:
        for entry, each in entries.items():
            best = _best_rate(tuning.get(entry))
            if request.options.learning_rates and best is None:
                continue
            rates = each.config.learning_rate if best is None else (best,)
            config = dataclasses.replace(each.config, seed=seed, learning_rate=rates)
            jobs[entry, seed] = runs.job(config, each.arm.name)
    outcomes = runs.make(list(jobs.values()), "run")
    if not team.processes.first:
        return None
    check_splits(list(outcomes.values()))
    every = request.common.evaluate_every
    outcomes = {name: judged_alike(outcome, every) for name, outcome in outcomes.items()}
    results = {}
    for entry, each in entries.items():
        mine = {seed: jobs.get((entry, seed)) for seed in request.seeds}
        found = [
            Outcome(seed, "", error="no learning rate of the search gave a finished run.")
            if job is None
            else outcomes[job.name]
            for seed, job in mine.items()
        ]
        config = next((job.config for job in mine.values() if job is not None), each.config)
        results[entry] = _result(request.common, each, config, found, tuning.get(entry))
    return results


def _result(
    common: RunConfig, each: Configured, config: RunConfig, outcomes: Sequence[Outcome], tuning: Tuning | None
) -> ArmResult:
    plain, shared = to_plain(config), to_plain(common)
    changes = {name: plain[name] for name in each.arm.overrides if plain[name] != shared[name]}
    return ArmResult(each.arm.name, config, changes, each.note, outcomes, algorithm_of(config).pools, tuning)


def write_files(comparison: Comparison, folder: RunFolder) -> None:
    """Write comparison.csv, .json, .md and .html and runs.csv.

    Args:
      comparison: the comparison.
      folder: its folder.
    """
    folder.write_text("comparison.csv", to_csv(arm_rows(comparison)))
    folder.write_text("runs.csv", to_csv(run_rows(comparison)))
    folder.write_json("comparison.json", comparison_to_plain(comparison))
    folder.write_text("comparison.md", to_markdown(comparison))
    folder.write_text("comparison.html", comparison_html(comparison, judged_answers(folder.path)))
