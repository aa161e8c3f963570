"""Many runs beside each other: `devft compare`.

    arms x seeds -> runs, each an ordinary run in a process of its own -> tables over seeds, and what can be said of them

All arms of a seed have the same clients, cohorts and order of examples. A run lies in a folder of its own under the
comparison's, named after what is computed and when it is judged: one that is finished is read, not run again, one that was
stopped goes on, and comparisons in the same folder share their runs. A run that fails is told of and left out; the rest is
compared all the same.

The folder: `runs/` with the runs, the configuration file of each and what it printed; comparison.csv, .json, .md and .html;
runs.csv.
"""

import csv
import dataclasses
import hashlib
import io
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from devft_jax.comparing import tables as told
from devft_jax.comparing.arms import (
    END_TO_END,
    Configured,
    configure,
    leanest,
    parse_arm,
    read_arms,
    total_rounds,
    within_bytes,
)
from devft_jax.comparing.page import comparison_html
from devft_jax.comparing.tables import ArmResult, Budget, Comparison, Outcome, Point
from devft_jax.config.effects import check_arms_effects, check_effects, given_options
from devft_jax.config.files import to_plain
from devft_jax.config.identity import anchored, identity
from devft_jax.config.methods import algorithm_of
from devft_jax.config.run_config import RunConfig
from devft_jax.config.validation import validate
from devft_jax.data import check_data_found
from devft_jax.errors import InputError
from devft_jax.files import as_cell, write_atomically
from devft_jax.options import path
from devft_jax.reporting import Progress
from devft_jax.reporting.progress import readable_seconds
from devft_jax.reporting.report_file import read_story
from devft_jax.reporting.story import Story
from devft_jax.reporting.units import BYTES, readable
from devft_jax.runtime.stopping import StopRequest
from devft_jax.storage import COMPARISON, RunFolder

BUDGETS = ("rounds", "bytes")

TOLD_EVERY = 30.0
"""Seconds between the lines that say how far a run is."""


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """What is compared, and on what terms."""

    arms: tuple[str, ...] | None = None
    """The methods: ALGORITHM (the full model) or ALGORITHM+GROWTH, each with options of its own as :option=value (values
    of a list joined by /). Two controls: fedit@bytes=ARM has the rank at which it sends what another arm sends, and
    fedit@flops=ARM as many rounds as compute what it computes. Example:
    fedit,fedit+devft,fedit+devft:beta=0.2:capacities=4/16,fedit@bytes=fedit+devft."""
    arms_file: str | None = path(None)
    """A YAML file of arms by title instead, such as `FedIT: {algorithm: fedit}` and `DevFT: {algorithm: fedit, growth:
    devft, beta: 0.2}`; `bytes_of: TITLE` and `flops_of: TITLE` make controls."""
    seeds: tuple[int, ...] | None = None
    """Seeds of the runs, such as 0,1,2; each is that of the split, the cohorts, the data order and the initialisation. By
    default the configuration's one seed, from which nothing is known of chance."""
    reference: str | None = None
    """The arm that differences are to; by default the first."""
    budget: tuple[str, ...] = ("rounds",)
    """What arms have in common: rounds, or bytes (of all messages up; an arm whose full length sends less has its full
    length), or rounds,bytes for a table of each."""
    budget_of: str | None = None
    """The arm whose bytes are the budget; by default the one that sends least, of those that send anything, without the
    controls."""
    target_loss: float | None = None
    """Held-out loss, in nats per token, whose cost is told; by default the mean of the reference's final losses."""
    learning_rates: tuple[float, ...] | None = None
    """Rates of which every arm gets the best by held-out loss in one run on the tuning seed each; by default arms have
    the rates that they are given."""
    evaluations: int = 8
    """Held-out measurements of the full model along a run, about as many, at the same rounds in every arm; evaluate_every,
    where it is given, says them instead. 0 judges at the ends of stages alone, which lie at other rounds in each arm. Where
    every client has a model of its own, all of which would be judged, it is at the ends alone, too."""
    tuning_seed: int = 1000
    """Seed of the search for a rate, none of the seeds."""
    out: str = path("runs/compare")
    """The comparison's folder: absent, empty or a comparison's, which shares its runs."""


@dataclass(frozen=True)
class Compared:
    """A comparison that was made, or stopped.

    Attributes:
      comparison: None where it was stopped. folder: where everything lies. stopped_by: the signal that stopped it.
    """

    comparison: Comparison | None
    folder: Path
    stopped_by: int | None = None

    @property
    def failed(self) -> bool:
        """Whether a run failed."""
        budgets = self.comparison.budgets if self.comparison else ()
        return any(not outcome.finished for budget in budgets for arm in budget.arms for outcome in arm.outcomes)


@dataclass(frozen=True)
class Job:
    """A run to be made: its folder's name, its configuration with that folder, and what people call it.

    `before` is the same run judged at the ends of stages alone, which serves as well where it is finished.
    """

    name: str
    config: RunConfig
    label: str
    before: "Job | None" = None


class _Stopped(Exception):  # noqa: N818
    """The comparison is to stop, by this signal."""

    def __init__(self, number: int):
        self.number = number


def run_name(config: RunConfig) -> str:
    """The folder of a run: algorithm, growth, seed, and eight digits of what is computed and when it is judged."""
    judged = {name: getattr(config, name) for name in ("rounds", "evaluate_every", "evaluate_full")}
    text = json.dumps({**identity(config), **judged}, sort_keys=True)
    name = f"{config.algorithm}-{config.growth}-s{config.seed}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    return name.replace(":", ".")


# ---- what is asked ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Terms:
    """A budget as it was asked for: the arms with the rounds that it leaves them; see `Budget`."""

    kind: str
    text: str
    arms: Sequence[Configured]
    left_out: Sequence[str] = ()


@dataclass(frozen=True)
class _Request:
    """A checked request: the arms under every budget, the seeds and the reference."""

    common: RunConfig
    options: CompareOptions
    budgets: Sequence["_Terms"]
    seeds: tuple[int, ...]
    reference: str
    own_grid: bool
    """Whether the rounds at which arms are judged are the comparison's own choice."""


def _checked(common: RunConfig, options: CompareOptions) -> _Request:
    """Everything that can be known to be wrong before the first run is an `InputError` here."""
    if (options.arms is None) == (options.arms_file is None):
        raise InputError("arms are given by --arms or by --arms-file; give one of them, such as --arms fedit,fedit+devft.")
    arms = [parse_arm(text) for text in options.arms or ()] if options.arms_file is None else read_arms(options.arms_file)
    seeds = options.seeds if options.seeds is not None else (common.seed,)
    if not seeds or len(set(seeds)) < len(seeds):
        raise InputError(f"seeds {','.join(map(str, seeds)) or '(none)'} must be one or more, each once, such as 0,1,2.")
    unknown = [kind for kind in options.budget if kind not in BUDGETS]
    if unknown or not options.budget or len(set(options.budget)) < len(options.budget):
        raise InputError(f"budget '{','.join(options.budget)}' is unknown; choose from rounds, bytes and rounds,bytes.")
    names = [arm.name for arm in arms]
    for option, name in (("reference", options.reference), ("budget_of", options.budget_of)):
        if name is not None and name not in names:
            raise InputError(f"{option} '{name}' is not among the arms; choose from {', '.join(names)}.")
    if options.budget_of is not None and "bytes" not in options.budget:
        raise InputError(
            "budget_of names whose bytes are the budget, and the budget is rounds; give --budget bytes besides."
        )
    if options.target_loss is not None and not 0 < options.target_loss < math.inf:
        raise InputError(
            f"target_loss {options.target_loss} is no held-out loss; give a positive number of nats per token, such as 2.5."
        )
    if options.evaluations < 0:
        raise InputError(f"evaluations {options.evaluations} is negative; use 0 to judge at the ends of stages alone.")
    for seed in seeds:
        validate(dataclasses.replace(common, seed=seed))
    if options.learning_rates is not None and "learning_rate" in given_options(common):
        raise InputError(
            "learning_rate has no effect beside learning_rates, which searches one for every arm; leave one of them out."
        )
    _check_rates(options, seeds, [arm.name for arm in arms if "learning_rate" in arm.overrides])
    check_data_found(common)
    asked = common
    # Arms have their stages; the common rounds are what the configuration's own growth would take.
    common = dataclasses.replace(common, rounds=total_rounds(common))
    own_grid = bool(options.evaluations and not common.evaluate_every)
    if own_grid:
        common = dataclasses.replace(common, evaluate_every=-(-common.rounds // options.evaluations))
    arms_of = configure(arms, common)
    check_effects(asked.with_given(asked.given & {"rounds"}))
    check_arms_effects(asked, {each.arm.name: (each.config, each.arm.overrides) for each in arms_of})
    reference = options.reference or names[0]
    budgets = []
    for kind in options.budget:
        if kind == "rounds":
            others = [each.arm.name for each in arms_of if total_rounds(each.config) != common.rounds]
            but = f", but for {', '.join(others)}" if others else ""
            budgets.append(_Terms(kind, f"Equal rounds: {common.rounds}{but}", arms_of))
            continue
        of = options.budget_of or leanest(arms_of)
        found = within_bytes(arms_of, of)
        if reference not in [each.arm.name for each in found.arms]:
            raise InputError(
                f"the reference does not fit: {' '.join(found.left_out)} Name another --reference or --budget-of."
            )
        sent = readable(found.budget, BYTES)
        text = f"Equal bytes: {sent} sent up by all clients, as {of} does; at most {common.rounds} rounds"
        budgets.append(_Terms(kind, text, found.arms, found.left_out))
    return _Request(common, options, budgets, tuple(seeds), reference, own_grid)


def _check_rates(options: CompareOptions, seeds: Sequence[int], fixed: Sequence[str]) -> None:
    rates = options.learning_rates
    if rates is None:
        return
    if not rates or len(set(rates)) < len(rates) or any(not 0 < rate < float("inf") for rate in rates):
        raise InputError(f"learning_rates {','.join(map(str, rates)) or '(none)'} must be positive rates, each once.")
    if not 0 <= options.tuning_seed < 2**32:
        raise InputError(f"tuning_seed {options.tuning_seed} is outside [0, 2^32); name another.")
    if options.tuning_seed in seeds:
        raise InputError(
            f"tuning_seed {options.tuning_seed} is among the seeds, and rates chosen on it would favour what was chosen; "
            "name another."
        )
    if fixed:
        raise InputError(
            f"the arm '{fixed[0]}' has a learning_rate of its own and learning_rates searches one for every arm; leave one "
            "of them out."
        )


# ---- runs ------------------------------------------------------------------------------------------------------------


class _Runs:
    """Makes runs one after the other, each in a process of its own, or reads those that are finished.

    Args:
      folder: of the comparison. later: rounds of runs that will be asked for afterwards, for the time that is left.
      own_grid: whether when arms are judged is the comparison's own choice: then runs made before, without it, serve, too.
    """

    def __init__(self, folder: Path, progress: Progress, stop: StopRequest, later: int, *, own_grid: bool = False):
        self.folder, self.progress, self.stop, self.later = folder / "runs", progress, stop, later
        self.own_grid = own_grid
        self.executed = False
        self.spent: list[tuple[str, int, float]] = []

    def job(self, config: RunConfig, label: str) -> Job:
        """The run of a configuration, in its folder here; a growing model is judged within its stages, too."""
        if not self.own_grid:
            return self._job(config, label)
        at_ends = self._job(dataclasses.replace(config, evaluate_every=0), label)
        # The models of all clients would be judged each time.
        if not algorithm_of(config).has_global_model:
            return at_ends
        return dataclasses.replace(self._job(config, label), before=at_ends)

    def _job(self, config: RunConfig, label: str) -> Job:
        watched = bool(config.growth != END_TO_END and config.evaluate_every)
        config = dataclasses.replace(anchored(config), evaluate_full=watched)
        name = run_name(config)
        return Job(name, dataclasses.replace(config, out=str(self.folder / name)), f"{label}, seed {config.seed}")

    def make(self, jobs: Sequence[Job], what: str) -> dict[str, Outcome]:
        """The outcome of every job, by name; a job that is asked for twice is done once."""
        wanted = {job.name: job for job in jobs}
        known = {name: read_outcome(job) for name, job in wanted.items()}
        found = {name: outcome for name, outcome in known.items() if outcome is not None}
        if found:
            self.progress.say(f"{what}s finished before: {len(found)} of {len(wanted)}")
        missing = [job for name, job in wanted.items() if name not in found]
        for index, job in enumerate(missing):
            if self.stop.signal is not None:
                raise _Stopped(self.stop.signal)
            number = len(found) + 1
            self.progress.say(f"{what} {number} of {len(wanted)}: {job.label}")
            began = time.monotonic()
            found[job.name] = self._run(job)
            self.spent.append((job.config.growth, total_rounds(job.config), time.monotonic() - began))
            left = self._seconds_left(missing[index + 1 :])
            self.progress.say(f"  {_said(found[job.name])}; took {readable_seconds(self.spent[-1][2])}{left}")
        return found

    def _seconds_left(self, jobs: Sequence[Job]) -> str:
        """As text: each round to come takes what rounds of its growth took on average, or of any."""
        if not jobs and not self.later:
            return ""

        def rate(growth: str | None) -> float:
            same = [(rounds, seconds) for name, rounds, seconds in self.spent if growth in (None, name)]
            return sum(seconds for _, seconds in same) / sum(rounds for rounds, _ in same) if same else rate(None)

        seconds = sum(total_rounds(job.config) * rate(job.config.growth) for job in jobs) + self.later * rate(None)
        return f", about {readable_seconds(seconds)} left"

    def _run(self, job: Job) -> Outcome:
        self.folder.mkdir(parents=True, exist_ok=True)
        asked, log = self.folder / f"{job.name}.json", self.folder / f"{job.name}.log"
        write_atomically(asked, json.dumps(to_plain(job.config), indent=1) + "\n")
        code = self._supervise([sys.executable, "-m", "devft_jax", "run", "--config", str(asked)], log)
        if self.stop.signal is not None:
            raise _Stopped(self.stop.signal)
        outcome = read_outcome(job)
        if outcome is None:
            sentence = _last_words(log, code)
            if code == 2 and not self.executed:
                # Nothing was lost yet, and what is wrong is likely wrong for all.
                raise InputError(f"{job.label}: {sentence}")
            outcome = Outcome(job.config.seed, str(job.config.out), error=f"{sentence} (see {log})")
        self.executed = True
        return outcome

    def _supervise(self, command: Sequence[str], log: Path) -> int:
        """The exit code of a process whose output goes to a file; a stop is passed on to it, and it ends its round."""
        sources = str(Path(__file__).resolve().parents[2])
        paths = [sources, *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        # An older one is removed, not written over: it could be a link.
        log.unlink(missing_ok=True)
        with open(log, "x", encoding="utf-8") as lines:
            # A session of its own: Ctrl-C at the terminal reaches it through us, once.
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=lines,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        passed_on, told_at = False, time.monotonic()
        try:
            while True:
                try:
                    return process.wait(timeout=0.2)
                except subprocess.TimeoutExpired:
                    pass
                if self.stop.signal is not None and not passed_on:
                    self.progress.say("  stopping when the run has saved its round; Ctrl-C again stops at once")
                    process.send_signal(signal.SIGINT)
                    passed_on = True
                if time.monotonic() - told_at > TOLD_EVERY:
                    told_at = time.monotonic()
                    rounds = [line for line in _lines(log) if line.startswith("  round ")]
                    self.progress.say(rounds[-1] if rounds else "  ...")
        finally:
            if process.poll() is None:
                process.terminate()
                process.send_signal(signal.SIGINT)
                process.wait()


def _lines(log: Path) -> list[str]:
    return log.read_text(encoding="utf-8", errors="replace").splitlines()


def _last_words(log: Path, code: int) -> str:
    """Why a run ended, in a sentence."""
    if code < 0:
        name = signal.Signals(-code).name
        return f"its process was ended by {name}{', perhaps for lack of memory' if name == 'SIGKILL' else ''}."
    lines = [line for line in _lines(log) if line.strip()]
    sentences = [line.removeprefix("devft: ") for line in lines if line.startswith("devft: ")]
    if code > 128 and not sentences:
        return "it was stopped."
    return (sentences or lines or [f"it ended with code {code}."])[-1]


def _said(outcome: Outcome) -> str:
    if outcome.error is not None:
        return f"failed: {outcome.error}"
    loss = outcome.summary.get("final_loss")
    return "finished" if loss is None else f"held-out loss {loss:.4f}"


def read_outcome(job: Job) -> Outcome | None:
    """What a finished run's folder tells; None where it is not finished."""
    path = Path(str(job.config.out))
    # A record beside the summary is that of a run that goes on.
    if not (path / "summary.json").exists() or (path / "record.json").exists():
        return None if job.before is None else read_outcome(job.before)
    try:
        story = read_story(path)
    except InputError as error:
        return Outcome(job.config.seed, str(path), error=str(error))
    loss = story.record.final_loss
    if loss is not None and not math.isfinite(loss):
        return Outcome(job.config.seed, str(path), error=f"its final held-out loss is {loss}; it diverged.")
    return Outcome(job.config.seed, str(path), story.record.to_plain(), full_model_curve(story))


def full_model_curve(story: Story) -> list[Point]:
    """The full model's held-out losses along a run, and what had been spent by then."""
    seconds = story.total(lambda row: row.seconds)
    sent = story.total(lambda row: row.bytes_up)
    work = story.total(lambda row: row.train_flops)
    points = [point for piece in story.full_model for point in piece if math.isfinite(point.loss)]
    return [Point(at.round, seconds[at.round], sent[at.round], work[at.round], at.loss) for at in points]


def check_splits(outcomes: Sequence[Outcome]) -> None:
    """Raise `InputError` unless all finished runs of a seed had the same clients with the same examples.

    A participant that holds the examples of all clients has no clients to compare, only their sum.
    """
    seen: dict[tuple[int, int], tuple[Any, str]] = {}
    for outcome in outcomes:
        split = RunFolder(outcome.folder).read_json("split.json") if outcome.finished else None
        if split is None:
            continue
        clients = [(client["name"], client["examples"], client["tokens"]) for client in split["clients"]]
        for count, found in ((0, (split["examples"], split["tokens"])), (len(clients), clients)):
            other, folder = seen.setdefault((outcome.seed, count), (found, outcome.folder))
            if other != found:
                raise InputError(
                    f"the runs in {folder} and {outcome.folder} have the same seed and other data: it has changed between "
                    "them; remove the older folder, or name another --out."
                )


# ---- the comparison --------------------------------------------------------------------------------------------------


def compare(common: RunConfig, options: CompareOptions, *, progress: Progress | None = None, command: str = "") -> Compared:
    """Compare methods over seeds: make the runs that are missing, write the comparison's files, and return it.

    Args:
      common: the options that all arms share; its algorithm, growth, seed and folder are not used.
      options: the arms and the terms. progress: where progress is told. command: that is shown with the results.

    Raises:
      InputError: the request cannot work; nothing has been run by then.
    """
    progress = progress or Progress()
    request = _checked(common, options)
    stop = StopRequest()
    stop.doing = "the round that the run is in"
    with RunFolder(options.out, COMPARISON) as folder, stop.listening():
        try:
            comparison = _compared(request, folder.path, progress, stop, command)
        except _Stopped as stopped:
            progress.say("stopped; what was run is saved, and the same command goes on from there.")
            return Compared(None, folder.path, stopped.number)
        write_files(comparison, folder)
    return Compared(comparison, folder.path)


def _compared(request: _Request, out: Path, progress: Progress, stop: StopRequest, command: str) -> Comparison:
    options = request.options
    entries = [(terms.kind, each) for terms in request.budgets for each in terms.arms]
    rounds = len(request.seeds) * sum({run_name(each.config): total_rounds(each.config) for _, each in entries}.values())
    runs = _Runs(out, progress, stop, later=rounds if options.learning_rates else 0, own_grid=request.own_grid)
    tuning = _tuned(entries, options, runs)
    runs.later = 0
    jobs: dict[tuple[str, str, int], Job] = {}
    for seed in request.seeds:
        for kind, each in entries:
            best = _best_rate(tuning.get((kind, each.arm.name)))
            if options.learning_rates and best is None:
                continue
            rates = each.config.learning_rate if best is None else (best,)
            jobs[kind, each.arm.name, seed] = runs.job(
                dataclasses.replace(each.config, seed=seed, learning_rate=rates), each.arm.name
            )
    outcomes = runs.make(list(jobs.values()), "run")
    check_splits(list(outcomes.values()))
    every = request.common.evaluate_every
    outcomes = {name: told.judged_alike(outcome, every) for name, outcome in outcomes.items()}
    budgets = []
    for terms in request.budgets:
        kind, results = terms.kind, []
        for each in terms.arms:
            mine = {seed: jobs.get((kind, each.arm.name, seed)) for seed in request.seeds}
            found = [
                Outcome(seed, "", error="no learning rate of the search came to an end.")
                if job is None
                else outcomes[job.name]
                for seed, job in mine.items()
            ]
            config = next((job.config for job in mine.values() if job is not None), each.config)
            results.append(_result(request.common, each, config, found, tuning.get((kind, each.arm.name))))
        budgets.append(Budget(kind, terms.text, results, terms.left_out))
    target = options.target_loss
    if target is None:
        standard = told.mean_of(budgets[0].arm(request.reference), told.FINAL_LOSS)
        target = None if standard is None else standard.mean
    return Comparison(
        budgets=budgets,
        reference=request.reference,
        seeds=request.seeds,
        target=target,
        target_given=options.target_loss is not None,
        tuning_seed=options.tuning_seed if options.learning_rates else None,
        rates=options.learning_rates or (),
        common=to_plain(request.common),
        command=command,
    )


def _tuned(
    entries: Sequence[tuple[str, Configured]], options: CompareOptions, runs: _Runs
) -> dict[tuple[str, str], dict[float, float | None]]:
    """Held-out loss on the tuning seed by rate, for every budget and arm; empty where nothing is tuned."""
    jobs = {
        (kind, each.arm.name, rate): runs.job(
            dataclasses.replace(each.config, seed=options.tuning_seed, learning_rate=(rate,)),
            f"{each.arm.name} at learning rate {rate:g}",
        )
        for kind, each in entries
        for rate in options.learning_rates or ()
    }
    if not jobs:
        return {}
    outcomes = runs.make(list(jobs.values()), "tuning run")
    check_splits(list(outcomes.values()))
    if all(outcome.finished and outcome.summary["final_loss"] is None for outcome in outcomes.values()):
        raise InputError("learning_rates needs held-out data to choose by; give --test-data or --test-fraction.")
    found: dict[tuple[str, str], dict[float, float | None]] = {}
    for (kind, name, rate), job in jobs.items():
        found.setdefault((kind, name), {})[rate] = outcomes[job.name].summary.get("final_loss")
    return found


def _best_rate(losses: Mapping[float, float | None] | None) -> float | None:
    """The rate of the lowest loss; None where there is none."""
    known = {rate: loss for rate, loss in (losses or {}).items() if loss is not None}
    return min(known, key=lambda rate: known[rate]) if known else None


def _result(
    common: RunConfig,
    each: Configured,
    config: RunConfig,
    outcomes: Sequence[Outcome],
    tuning: Mapping[float, float | None] | None,
) -> ArmResult:
    plain = to_plain(config)
    changes = {name: plain[name] for name in each.arm.overrides if plain[name] != to_plain(common)[name]}
    shown = {name: value for name, value in plain.items() if name not in ("seed", "out")}
    pools = algorithm_of(config).pools
    return ArmResult(each.arm.name, shown, changes, each.note, outcomes, pools, tuning)


def write_files(comparison: Comparison, folder: RunFolder) -> None:
    """comparison.csv, .json, .md and .html and runs.csv."""
    folder.write_text("comparison.csv", _csv(told.arm_rows(comparison)))
    folder.write_text("runs.csv", _csv(told.run_rows(comparison)))
    folder.write_json("comparison.json", told.to_plain(comparison))
    folder.write_text("comparison.md", told.to_markdown(comparison))
    folder.write_text("comparison.html", comparison_html(comparison))


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: as_cell(value) for name, value in row.items()} for row in rows)
    return text.getvalue()
