"""Scores of the full model on benchmark tasks during a run: of the untuned base, every few rounds, and at the end.

The tasks are opened and the requests are answered by the code of `devft evaluate` (`devft_jax.harness`): the full model is
the frozen base as it is stored, with the global adapter beside it as if the current stage ended. Finished requests are kept
in the package's cache. A stop request ends a scoring between two passes; the resumed run then finishes it first.
"""

import math
import time

import jax

from devft_jax.config.execution import ExecutionOptions, resolve_compute
from devft_jax.config.run_config import RunConfig
from devft_jax.data.answer_ends import ends_of_data, ends_of_template
from devft_jax.errors import InputError
from devft_jax.federated.algorithm import Clients
from devft_jax.harness.evaluated import evaluated
from devft_jax.harness.results import Results, TaskScore, paired_difference
from devft_jax.harness.tasks import OpenTasks, TaskOptions, open_tasks
from devft_jax.models.adapter import Adapter
from devft_jax.models.huggingface.end_tokens import end_token_ids
from devft_jax.models.huggingface.model import Model
from devft_jax.reporting.table import table
from devft_jax.reporting.units import with_error
from devft_jax.reporting.waiting import readable_seconds
from devft_jax.storage.records import RoundRecord
from devft_jax.storage.result_records import ScoreRecord
from devft_jax.training.callbacks import Callback, Running
from devft_jax.training.parts import Parts


class _Stopping(Exception):  # noqa: N818
    """A stop was requested while a model was scored; what is finished is kept."""


def task_scores_of(config: RunConfig) -> "TaskScores | None":
    """The callback that scores a run on the tasks of its configuration; None if it names none.

    Args:
      config: the run's configuration.

    Raises:
      InputError: lm-eval is not installed, a task is unknown, or its data cannot be had.
    """
    if config.evaluate_tasks is None:
        return None
    template = "alpaca" if config.template == "auto" else config.template
    return TaskScores(open_tasks(config.evaluate_tasks, benchmark_files=config.benchmark_files, template=template))


def check_scored(parts: Parts) -> None:
    """Check that a run has a full model that can be scored on tasks; nothing is compiled.

    Args:
      parts: the run's parts.

    Raises:
      InputError: it has none.
    """
    algorithm, shards = parts.algorithm, parts.config.model_shards
    if not algorithm.has_global_model:
        raise InputError(
            f"evaluate_tasks scores the one model that all clients share, but with {algorithm.name} every client has its "
            "own; leave it out, and score clients afterwards with `devft evaluate RUN --client NAME`."
        )
    if shards > 1:
        raise InputError(
            f"evaluate_tasks needs the whole base on every device, but model_shards {shards} divides it; leave one of "
            "them out."
        )
    if not parts.model.has_tokenizer:
        raise InputError("evaluate_tasks needs a tokenizer, and the given model has none; give it one, or leave it out.")
    adapter = jax.eval_shape(lambda: algorithm.view(parts.init_server(Clients(len(parts.data.clients)))))
    if adapter.hyper is not None:
        raise InputError(
            f"evaluate_tasks cannot score an adapter that a hypernetwork makes, as {algorithm.name} does; leave it out."
        )


class TaskScores(Callback):
    """Scores the full model on benchmark tasks, and adds the scores to the records.

    Args:
      opened: the tasks.
    """

    def __init__(self, opened: OpenTasks) -> None:
        self._opened = opened
        self._base: Results | None = None
        self._model: Model | None = None

    def on_begin(self, run: Running) -> None:
        """Score the untuned base, and the last round of a resumed run if a stop ended its scoring.

        For a resumed run the base's requests are kept; its items are needed for differences.
        """
        self._base, scores = self._scored(run, "the untuned base", None)
        run.state.totals.base_scores = scores
        row = run.history[-1] if run.history else None
        if row is not None and row.scores is None and self._due(run):
            row.scores = self._full(run)
            run.folder.metrics.cut(row.round - 1)
            run.folder.metrics.append(row)

    def on_round(self, run: Running, row: RoundRecord) -> None:
        """Score the full model every `evaluate_tasks_every` rounds."""
        if self._due(run):
            try:
                row.scores = self._full(run)
            except _Stopping:
                run.progress.say("  the scoring goes on when the run is resumed")

    def on_trained(self, run: Running) -> None:
        """Score the final model."""
        _, run.state.totals.final_scores = self._scored(run, "the final model", run.adapter())

    def _due(self, run: Running) -> bool:
        every = run.config.evaluate_tasks_every
        return bool(every and run.round % every == 0)

    def _full(self, run: Running) -> list[ScoreRecord]:
        return self._scored(run, f"the full model after round {run.round}", run.adapter())[1]

    def _scored(self, run: Running, name: str, adapter: Adapter | None) -> tuple[Results, list[ScoreRecord]]:
        """The scores of the base with an adapter, or without one."""

        def check() -> None:
            if run.round and run.stopping:
                raise _Stopping

        parts, began = run.trainer.parts, time.perf_counter()
        # Kept, because its tokenizer is read on first use.
        self._model = self._model or parts.model.with_base(parts.base)
        # A stop that was requested before this needs no passes to be noticed.
        check()
        with parts.progress.doing(f"scoring {name} on tasks"):
            found = evaluated(
                name,
                self._model,
                adapter,
                self._opened,
                TaskOptions(),
                eos_ids=_eos_ids(parts),
                # As `devft evaluate` runs it.
                compute=resolve_compute(ExecutionOptions(dtype=parts.config.dtype)),
                devices=parts.devices,
                progress=parts.progress,
                check=check,
            )
        scores = score_records(found.results, self._base if adapter is not None else None)
        took = readable_seconds(time.perf_counter() - began)
        kept = f", {found.kept:,} of {found.kept + found.computed:,} requests finished before" if found.kept else ""
        parts.progress.say("\n".join([f"  scores of {name} ({took}{kept})", *_lines(scores)]))
        return found.results, scores


def score_records(results: Results, base: Results | None = None) -> list[ScoreRecord]:
    """Results as they are recorded, without the tasks inside a group that has a score of its own.

    Args:
      results: of a model.
      base: of the untuned base, with which it is compared; None for the base itself.
    """
    return [_record(score, results, base) for score in results.outermost]


def _record(score: TaskScore, results: Results, base: Results | None) -> ScoreRecord:
    change = None if base is None else paired_difference(base, results, score.task, score.metric, score.filter)
    return ScoreRecord(
        task=score.task,
        metric=score.metric,
        filter=score.filter,
        value=score.value,
        standard_error=_finite(score.standard_error),
        items=score.items,
        shots=score.shots,
        change=None if change is None else change.mean,
        change_error=None if change is None else _finite(change.standard_error),
    )


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _lines(scores: list[ScoreRecord]) -> list[str]:
    rows = []
    for score in scores:
        change = "" if score.change is None else with_error(score.change, score.change_error, sign=True)
        rows.append([" ".join(score.name), with_error(score.value, score.standard_error), change])
    return [f"    {line}" for line in table(rows)] if rows else []


def _eos_ids(parts: Parts) -> tuple[int, ...]:
    """Tokens that end an answer, as for a finished run."""
    model, data = parts.model, parts.data
    own = () if model.folder is None else end_token_ids(model.folder, model.tokenizer)
    return tuple(dict.fromkeys([*own, *ends_of_template(data.template, model.tokenizer), *ends_of_data(data, model)]))
