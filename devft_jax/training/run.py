"""A run: the trainer's rounds, written to a folder; it can be stopped at any point and resumed.

`train(config)` is what `devft run` calls. Everything that it computes is in the trainer's `State`, which is written as a
checkpoint every few rounds. A stopped run resumes from its last checkpoint and ends with the same adapter, bit for bit on
the same devices, chunk size and versions.

    opening     whether the folder is this run's or empty; where to resume    devft_jax.training.opening
    loop        stages, rounds and callbacks                                  devft_jax.training.loop
    finishing   adapter, summary and report                                   devft_jax.training.finishing
"""

import contextlib
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from devft_jax.config.effects import check_effects
from devft_jax.config.files import to_plain
from devft_jax.config.identity import anchored, identity_hash
from devft_jax.config.run_config import RunConfig
from devft_jax.config.validation import validate
from devft_jax.data import FederatedData, describe
from devft_jax.developmental import Growth
from devft_jax.errors import InputError
from devft_jax.federated.algorithm import Algorithm
from devft_jax.models.adapter import Adapter
from devft_jax.models.huggingface.model import Model
from devft_jax.models.huggingface.peft.reading import import_peft
from devft_jax.reporting import Progress
from devft_jax.reporting.units import counted
from devft_jax.runtime.devices import usual_arithmetic
from devft_jax.runtime.processes import Processes
from devft_jax.runtime.stopping import Stopped, StopRequest
from devft_jax.runtime.watching import watching
from devft_jax.storage.ownership import RUN
from devft_jax.storage.records import RoundRecord, RunRecord
from devft_jax.storage.run_folder import RunFolder
from devft_jax.training.callbacks import Callback, Running
from devft_jax.training.early_stopping import EarlyStopping
from devft_jax.training.finishing import (
    BEST_ADAPTER,
    finish,
    holds_something,
    is_whole,
    report,
    say_base,
    say_summary,
    write_adapter,
    write_best,
    write_split,
)
from devft_jax.training.given import check_kind, kind_of
from devft_jax.training.loop import run_rounds
from devft_jax.training.opening import describe_object, finished_summary, open_run, refuse_lost_checkpoints
from devft_jax.training.parts import build_parts
from devft_jax.training.standard import Checkpoints, Evaluation, Metrics, ProgressLines, Report
from devft_jax.training.task_scores import check_scored, task_scores_of
from devft_jax.training.together import Silent, check_equal_data, check_equal_start, check_supported, signal_for_all
from devft_jax.training.trackers import trackers_of
from devft_jax.training.trainer import Trainer


@dataclass(frozen=True)
class Run:
    """A finished or stopped run.

    Attributes:
      config: the resolved configuration.
      folder: the run's folder.
      adapter: the global model's adapter at full depth; None if every client has its own model (`devft export` writes it).
      summary: the contents of `summary.json`; None while unfinished.
      stopped_by: number of the signal that stopped the run before its last round; None if it finished.
      history: the records of the rounds, as in `metrics.jsonl`.
    """

    config: RunConfig
    folder: Path
    adapter: Adapter | None
    summary: RunRecord | None
    stopped_by: int | None = None
    history: list[RoundRecord] = field(default_factory=list)

    @property
    def finished(self) -> bool:
        """Whether all rounds are done."""
        return self.stopped_by is None


def default_folder(config: RunConfig) -> Path:
    """runs/<growth>-<algorithm>-<hash of the configuration>."""
    return Path("runs") / f"{config.growth}-{config.algorithm}-{identity_hash(config)}".replace(":", ".")


@usual_arithmetic()
def train(
    config: RunConfig,
    *,
    model: Model | None = None,
    data: FederatedData | None = None,
    algorithm: Algorithm | None = None,
    growth: Growth | None = None,
    progress: Progress | None = None,
    callbacks: Sequence[Callback] = (),
) -> Run:
    """Run a federated fine-tuning, or resume the run in its folder.

    Args:
      config: what to run; `config.out` is the folder, by default one named after the configuration.
      model: replaces the model that the configuration names.
      data: replaces its data.
      algorithm: replaces its algorithm.
      growth: replaces its growth.
      progress: the progress output; standard error by default.
      callbacks: called during the run; see `devft_jax.training.callbacks`.

    Returns:
      The run; `finished` is False if Ctrl-C or SIGTERM stopped it after a round; the same call then resumes it from a
        checkpoint.

    Raises:
      InputError: the request is invalid.
      RunError: the run could not continue; its checkpoints are kept.
    """
    _check_arguments(config, model, data, callbacks)
    processes, shown = Processes.joined(), progress or Progress()
    progress = shown if processes.first else Silent()
    agree = partial(signal_for_all, processes) if processes.several else None
    stop = StopRequest(shown.say, may_exit=True, agree=agree)
    given = {"model": model, "data": data, "algorithm": algorithm, "growth": growth}
    try:
        with stop.listening(), watching(processes):
            return _trained(config, processes, stop, progress, callbacks, given)
    except Stopped:
        progress.say("stopped before a round was trained; the same command starts the run again.")
        return Run(config, Path(config.out or default_folder(config)).absolute(), None, None, stop.signal)


def _check_arguments(config: object, model: object, data: object, callbacks: object) -> None:
    """Raise `InputError` for an argument of `train` that is an object of another class."""
    check_kind("config", config, RunConfig, "pass RunConfig(...) or preset(...)")
    if model is not None:
        check_kind("model", model, Model, "pass an opened model, or name one in the configuration: RunConfig(model=...)")
    if data is not None:
        check_kind("data", data, FederatedData, "pass the data itself, or name it in the configuration: RunConfig(data=...)")
    if not isinstance(callbacks, Sequence):
        raise InputError(f"callbacks is not a list but {kind_of(callbacks)}; pass a list, also for a single callback.")
    for callback in callbacks:
        check_kind("an entry of callbacks", callback, Callback, "pass instances of classes that inherit from Callback")


def _trained(
    config: RunConfig,
    processes: Processes,
    stop: StopRequest,
    progress: Progress,
    callbacks: Sequence[Callback],
    given: dict[str, Any],
) -> Run:
    """`train`; raises `Stopped` if a stop is requested before anything was trained."""
    validate(config)
    objects = {name: describe_object(item) for name, item in given.items() if item is not None}
    check_effects(config, objects)
    trackers, task_scores = trackers_of(config), task_scores_of(config)
    config = anchored(dataclasses.replace(config, out=config.out or str(default_folder(config))))
    check_equal_start(processes, config, objects)
    with RunFolder(str(config.out), RUN, processes) as folder, contextlib.ExitStack() as at_end:
        parts = build_parts(config, **given, progress=progress, scratch=folder.path, processes=processes)
        trainer = Trainer(parts)
        at_end.callback(parts.programs.close)
        check_supported(parts)
        check_equal_data(parts)
        if task_scores is not None:
            check_scored(trainer.parts)
        checkpoint = open_run(config, folder, objects)
        for empty in folder.checkpoints.empty_rounds():
            progress.warn(f"the checkpoint of round {empty} in {folder.path} is empty and is skipped.")
        summary = finished_summary(trainer, folder, checkpoint)
        if summary is not None:
            return _untouched(trainer, folder, checkpoint, summary)
        run = _opened(trainer, folder, stop, checkpoint, objects)
        page = Report()
        evaluations: list[Callback] = [Evaluation(), *([] if task_scores is None else [task_scores])]
        evaluations += [] if config.stop_after is None else [EarlyStopping()]
        # Of several processes, process 0 writes and reports.
        writing = [Metrics(), ProgressLines(), page, *trackers] if folder.writes else []
        called = [*evaluations, *writing, *callbacks, Checkpoints()]
        run_rounds(run, called)
        return _ended(run, called, page)


def _opened(
    trainer: Trainer, folder: RunFolder, stop: StopRequest, checkpoint: int | None, objects: dict[str, str]
) -> Running:
    """The run before its first round or after its checkpoint's round, with its folder prepared."""
    parts = trainer.parts
    if checkpoint is None:
        refuse_lost_checkpoints(folder)
    parts.progress.say(describe(parts.data))
    # Errors of a first state or a checkpoint are found before anything is written.
    state = trainer.begin() if checkpoint is None else trainer.resume(folder, checkpoint)
    folder.write_json("config.json", {**to_plain(parts.config), **({"objects": objects} if objects else {})})
    parts.processes.meet()
    history = folder.metrics.cut(checkpoint or 0) if folder.writes else []
    parts.processes.meet()
    history = history if folder.writes else folder.metrics.read()
    write_split(trainer, folder, anew=checkpoint is None)
    if checkpoint is None:
        say_base(parts.progress, state)
    else:
        parts.progress.say(f"resuming {folder.path} after round {checkpoint}")
    return Running(trainer, state, folder, stop, checkpoint, history)


def _ended(run: Running, callbacks: Sequence[Callback], page: Report) -> Run:
    """The return value of `train` for a run that has finished or was stopped, after everything is written."""
    stopped_by, summary = run.stop.signal, None
    if run.finished:
        run.stop.doing, stopped_by = "the run", None
        summary = finish(run.trainer, run.state, run.folder)
    elif not run.round:
        raise Stopped
    else:
        run.folder.write_unfinished(dataclasses.replace(run.record(), stopped_by=stopped_by))
    for callback in reversed(callbacks):
        callback.on_end(run)
    if summary is None:
        run.progress.say(
            f"stopped after round {run.round} of {run.rounds}; saved in {run.path}: the same command resumes it."
        )
    else:
        say_summary(run.progress, summary)
        shown = ", report.html shows it" if page.written else ""
        run.progress.say(f"finished {counted(summary.rounds, 'round')}; everything is in {run.path}{shown}")
    return Run(run.config, run.path, run.adapter(), summary, stopped_by, run.history)


def _untouched(trainer: Trainer, folder: RunFolder, checkpoint: int | None, summary: RunRecord) -> Run:
    """A finished run as it is; only files that are missing are written again."""
    parts, exported = trainer.parts, folder.path / "adapter"
    progress, adapter = parts.progress, None
    if checkpoint is not None:
        adapter = trainer.global_adapter(trainer.resume(folder, checkpoint))
        if adapter is not None and parts.algorithm.low_rank and not is_whole(exported):
            write_adapter(trainer, folder, adapter)
        if summary.best is not None and parts.processes.from_first(not is_whole(folder.path / BEST_ADAPTER)):
            write_best(trainer, folder, summary.best, adapter if summary.best.round == checkpoint else None)
    elif is_whole(exported):
        adapter = import_peft(exported, parts.model.config)
    history = folder.metrics.read()
    write_split(trainer, folder, anew=False)
    if folder.writes and not holds_something(folder.path / "report.html"):
        report(progress, folder)
    say_summary(progress, summary)
    progress.say(
        f"{folder.path} holds this run, finished after {counted(summary.rounds, 'round')}: nothing is left to do; "
        "use a larger --rounds to lengthen it, or another --out to start again"
    )
    return Run(parts.config, folder.path, adapter, summary, None, history)
