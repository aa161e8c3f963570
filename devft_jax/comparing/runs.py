"""The runs of a comparison: each an ordinary run in a process of its own, made if it is missing, otherwise read.

Some can be made at the same time, on the lanes of this process (`devft_jax.comparing.lanes`), and each process of a team
makes its share.

Each run has a folder of its own inside the comparison's, named after what is computed and when it is evaluated. A finished
run is read, not run again; a stopped one is resumed; comparisons in the same folder share their runs. A run that fails is
reported and left out, and the others are compared.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import queue
import sys
import time
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from devft_jax.comparing.arms import END_TO_END, total_rounds
from devft_jax.comparing.lanes import WHOLE, Lane
from devft_jax.comparing.processes import Ending, last_words, supervise
from devft_jax.comparing.results import Outcome, Point
from devft_jax.comparing.team import Team
from devft_jax.config.files import to_plain
from devft_jax.config.identity import anchored, identity
from devft_jax.config.methods import algorithm_of
from devft_jax.config.run_config import RunConfig
from devft_jax.errors import InputError
from devft_jax.evaluation.benchmarks import TaskScoreOptions
from devft_jax.files import write_atomically
from devft_jax.reporting import Progress
from devft_jax.reporting.report_file import read_story
from devft_jax.reporting.scores import scored_models
from devft_jax.reporting.story import Story, simulated_seconds
from devft_jax.reporting.waiting import readable_seconds
from devft_jax.runtime.stopping import Stopped, StopRequest
from devft_jax.storage.run_folder import RunFolder

SHOWN_WITHIN = 60.0
"""Seconds within which a file of another host must appear in a shared folder."""


@dataclass(frozen=True)
class Job:
    """A run that is needed.

    Attributes:
      name: name of its folder.
      config: its configuration, with that folder.
      label: its name in messages.
      before: the same run evaluated only at the ends of stages; it is used in place of this one if it is finished.
    """

    name: str
    config: RunConfig
    label: str
    before: "Job | None" = None


def run_name(config: RunConfig) -> str:
    """The folder of a run: algorithm, growth, seed, and eight digits of what is computed and when it is evaluated.

    Args:
      config: configuration of the run.
    """
    judged = {name: getattr(config, name) for name in ("rounds", "evaluate_every", "evaluate_full")}
    if config.evaluate_tasks is not None:
        judged |= {name: to_plain(anchored(config))[name] for name in ("evaluate_tasks", "evaluate_tasks_every")}
    text = json.dumps({**identity(config), **judged}, sort_keys=True)
    name = f"{config.algorithm}-{config.growth}-s{config.seed}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    # For an importable name.
    return name.replace(":", ".")


def without_task_scores(config: RunConfig) -> RunConfig:
    """A configuration of the same run, which is not scored on benchmark tasks.

    Args:
      config: configuration of the run.
    """
    return dataclasses.replace(config, **dataclasses.asdict(TaskScoreOptions()))


@dataclass(frozen=True)
class _Numbered:
    """A run to make, and its name in lines: its kind, number and label."""

    job: Job
    name: str


_Made = tuple[_Numbered, Outcome, float]
"""A run that was made, its outcome, and the seconds that it took."""


@dataclass(frozen=True)
class _Spent:
    """A run that was made: its growth, its rounds, and the seconds that it took."""

    growth: str
    rounds: int
    seconds: float


class Runs:
    """Makes runs, each in a process of its own, or reads those that are finished.

    Args:
      folder: the comparison's folder.
      progress: the progress output.
      stop: whether the comparison was asked to stop.
      later: rounds of runs that will be requested afterwards, for the estimate of the time left.
      own_grid: whether the comparison itself chose the rounds at which arms are evaluated; runs that were made earlier
        without it are then used too.
      lanes: where runs are made at the same time; by default one after the other, on all devices.
      team: the processes that share the runs; by default this one alone.

    Attributes:
      later: as above; may be changed between two calls of `make`.
    """

    def __init__(
        self,
        folder: Path,
        progress: Progress,
        stop: StopRequest,
        later: int,
        *,
        own_grid: bool = False,
        lanes: Sequence[Lane] = (WHOLE,),
        team: Team | None = None,
    ):
        self.later = later
        self._folder, self._progress, self._stop = folder / "runs", progress, stop
        self._own_grid = own_grid
        self._executed = False
        self._spent: list[_Spent] = []
        self._lanes, self._team, self._ending = lanes, team or Team(stop), Ending()
        self._named = len(lanes) > 1 or self._team.processes.several

    def job(self, config: RunConfig, label: str) -> Job:
        """The run of a configuration, in its folder here; a growing model is also evaluated within its stages.

        Args:
          config: configuration without the run's folder.
          label: name of the arm in messages.
        """
        if not self._own_grid:
            return self._job(config, label)
        at_ends = self._job(dataclasses.replace(config, evaluate_every=0), label)
        # The models of all clients would be evaluated each time.
        if not algorithm_of(config).has_global_model:
            return at_ends
        return dataclasses.replace(self._job(config, label), before=at_ends)

    def _job(self, config: RunConfig, label: str) -> Job:
        watched = bool(config.growth != END_TO_END and config.evaluate_every)
        config = dataclasses.replace(anchored(config), evaluate_full=watched)
        if not algorithm_of(config).has_global_model:
            # There is no model that could be scored.
            config = without_task_scores(config)
        name = run_name(config)
        return Job(name, dataclasses.replace(config, out=str(self._folder / name)), f"{label}, seed {config.seed}")

    def make(self, jobs: Sequence[Job], what: str) -> dict[str, Outcome]:
        """Make the missing runs and read all of them.

        Args:
          jobs: the runs; one that is given twice is made once.
          what: the kind of run for messages, such as "tuning run".

        Returns:
          The outcome of every job by its name; nothing in a process other than the first.

        Raises:
          InputError: the first run is refused, and the others probably would be too; or the processes do not have the same
            runs.
          Stopped: the comparison was asked to stop.
        """
        wanted = {job.name: job for job in jobs}
        processes = self._team.processes
        known = {name: read_outcome(job) for name, job in wanted.items()} if processes.first else {}
        found = {name: outcome for name, outcome in known.items() if outcome is not None}
        if found:
            self._progress.say(f"{what}s finished before: {len(found)} of {len(wanted)}")
        missing = self._missing(list(wanted), found)
        before = len(wanted) - len(missing)
        numbered = [
            _Numbered(wanted[name], f"{what} {number} of {len(wanted)}: {wanted[name].label}")
            for number, name in enumerate(missing, before + 1)
        ]
        made = self._made(self._team.share(numbered))
        if not processes.several:
            return found | made
        errors = self._team.of_all({name: outcome.error for name, outcome in made.items()})
        if not processes.first:
            return {}
        for some in errors[1:]:
            found |= {name: self._of_another(wanted[name], error) for name, error in some.items()}
        return found | made

    def _missing(self, names: Sequence[str], found: Mapping[str, Outcome]) -> list[str]:
        """The runs that are not finished, as process 0 sees the folder."""
        digest = hashlib.sha256(json.dumps(names).encode()).hexdigest()
        said = self._team.of_all([digest, [name for name in names if name not in found]])
        for index, (other, _) in enumerate(said):
            if other != said[0][0]:
                raise InputError(
                    f"the runs of {self._team.processes.name(index)} are not those of process 0; start the same command in "
                    "the same folder in all processes, with model and data under the same paths."
                )
        missing: list[str] = said[0][1]
        return missing

    def _of_another(self, job: Job, error: str | None) -> Outcome:
        """The outcome of a run that another process has made."""
        if error is not None:
            return Outcome(job.config.seed, str(job.config.out), error=error)
        # Network file systems show new files after a while.
        until = time.monotonic() + SHOWN_WITHIN
        while (outcome := read_outcome(job)) is None:
            if time.monotonic() > until:
                error = f"another process has finished it, but its folder {job.config.out} does not show it."
                return Outcome(job.config.seed, str(job.config.out), error=error)
            self._stop.check()
            time.sleep(0.5)
        return outcome

    def _made(self, jobs: Sequence[_Numbered]) -> dict[str, Outcome]:
        """Make runs, as many at the same time as there are lanes."""
        found: dict[str, Outcome] = {}
        with contextlib.closing(self._in_turn(jobs) if len(self._lanes) == 1 else self._at_once(jobs)) as made:
            for each, outcome, seconds in made:
                found[each.job.name] = outcome
                self._spent.append(_Spent(each.job.config.growth, total_rounds(each.job.config), seconds))
                left = self._seconds_left([other.job for other in jobs if other.job.name not in found])
                said = f"{_in_words(outcome)}; took {readable_seconds(seconds)}{left}"
                self._progress.say(f"{each.name}: {said}" if self._named else f"  {said}")
        return found

    def _in_turn(self, jobs: Sequence[_Numbered]) -> Generator[_Made]:
        """Each run with its outcome and its seconds."""
        for each in jobs:
            yield self._timed(each, self._lanes[0])

    def _at_once(self, jobs: Sequence[_Numbered]) -> Generator[_Made]:
        """Each run with its outcome and its seconds, in the order in which they end; if one raises, the others are stopped
        after they have saved their rounds."""
        free: queue.SimpleQueue[Lane] = queue.SimpleQueue()
        for lane in self._lanes:
            free.put(lane)

        def one(each: _Numbered) -> _Made:
            lane = free.get()
            try:
                return self._timed(each, lane)
            finally:
                free.put(lane)

        with ThreadPoolExecutor(len(self._lanes)) as pool:
            pending: set[Future[_Made]] = {pool.submit(one, each) for each in jobs}
            try:
                while pending:
                    done, pending = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
                    for future in done:
                        yield future.result()
            except BaseException as error:
                for future in pending:
                    future.cancel()
                self._ending.gently.set()
                try:
                    if isinstance(error, KeyboardInterrupt) and not isinstance(error, Stopped):
                        self._ending.at_once.set()
                    wait(pending)
                except KeyboardInterrupt:
                    self._ending.at_once.set()
                raise

    def _timed(self, each: _Numbered, lane: Lane) -> _Made:
        self._stop.check()
        self._progress.say(each.name)
        began = time.monotonic()
        outcome = self._run(each, lane)
        return each, outcome, time.monotonic() - began

    def _seconds_left(self, jobs: Sequence[Job]) -> str:
        """The time left as text: each later round is assumed to take as long as the average round of its growth, or of
        any."""
        if not jobs and not self.later:
            return ""

        def rate(growth: str | None) -> float:
            same = [each for each in self._spent if growth in (None, each.growth)]
            return sum(each.seconds for each in same) / sum(each.rounds for each in same) if same else rate(None)

        seconds = sum(total_rounds(job.config) * rate(job.config.growth) for job in jobs) + self.later * rate(None)
        return f", about {readable_seconds(seconds / len(self._lanes))} left"

    def _run(self, each: _Numbered, lane: Lane) -> Outcome:
        job = each.job
        self._folder.mkdir(parents=True, exist_ok=True)
        asked, log = self._folder / f"{job.name}.json", self._folder / f"{job.name}.log"
        write_atomically(asked, json.dumps(to_plain(job.config), indent=1) + "\n")
        words = [sys.executable, "-m", "devft_jax.commands.child", "run", "--config", str(asked)]
        code = self._supervise(words, log, lane, each.name if self._named else "")
        self._stop.check()
        outcome = read_outcome(job)
        if outcome is None:
            sentence = last_words(log, code)
            if code == 2 and not self._executed:
                # Nothing is lost yet, and the same error would probably end all runs.
                raise InputError(f"{job.label}: {sentence}")
            outcome = Outcome(job.config.seed, str(job.config.out), error=f"{sentence} (see {log})")
        self._executed = True
        return outcome

    def _supervise(self, command: Sequence[str], log: Path, lane: Lane = WHOLE, name: str = "") -> int:
        """The exit code of a run's process."""
        return supervise(
            command,
            log,
            self._progress,
            self._stop,
            name=name,
            environment=lane.environment,
            cores=lane.cores,
            ending=self._ending,
        )


def _in_words(outcome: Outcome) -> str:
    if outcome.error is not None:
        return f"failed: {outcome.error}"
    return "finished" if outcome.final_loss is None else f"held-out loss {outcome.final_loss:.4f}"


def read_outcome(job: Job) -> Outcome | None:
    """Read a finished run's folder.

    Args:
      job: the run.

    Returns:
      Its results, or why it has none; None if it is not finished.
    """
    path = Path(str(job.config.out))
    # A record next to the summary means that the run continues.
    if not (path / "summary.json").exists() or (path / "record.json").exists():
        return None if job.before is None else read_outcome(job.before)
    try:
        story = read_story(path)
    except InputError as error:
        return Outcome(job.config.seed, str(path), error=str(error))
    loss = story.record.final_loss
    if loss is not None and not math.isfinite(loss):
        return Outcome(job.config.seed, str(path), error=f"its final held-out loss is {loss}; it diverged.")
    return Outcome(job.config.seed, str(path), story.record, full_model_curve(story), scores=scored_models(story))


def full_model_curve(story: Story) -> list[Point]:
    """The full model's held-out losses during a run, and the costs up to then.

    Args:
      story: the run.
    """
    seconds = story.total(lambda row: row.seconds)
    sent = story.total(lambda row: row.bytes_up)
    work = story.total(lambda row: row.train_flops)
    points = [point for piece in story.full_model for point in piece if math.isfinite(point.loss)]
    clock = story.total(simulated_seconds)
    return [
        Point(at.round, seconds[at.round], sent[at.round], work[at.round], at.loss, simulated=clock[at.round])
        for at in points
    ]


def check_splits(outcomes: Sequence[Outcome]) -> None:
    """Check that all finished runs of a seed had the same clients with the same examples.

    For a participant that holds the examples of all clients only their sum can be compared.

    Args:
      outcomes: runs of any seeds.

    Raises:
      InputError: two runs of a seed had different data.
    """
    seen: dict[tuple[int, int], tuple[Any, str]] = {}
    for outcome in outcomes:
        split = RunFolder(outcome.folder).read_split() if outcome.finished else None
        if split is None:
            continue
        clients = [(client.name, client.examples, client.tokens) for client in split.clients]
        for count, found in ((0, (split.examples, split.tokens)), (len(clients), clients)):
            other, folder = seen.setdefault((outcome.seed, count), (found, outcome.folder))
            if other != found:
                raise InputError(
                    f"the runs in {folder} and {outcome.folder} have the same seed but different data: it has changed "
                    "between them; remove the older folder, or name another --out."
                )
