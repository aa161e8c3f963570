"""Evaluates models on benchmarks, one after the other, on the same items."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from devft_jax.benchmarking.options import BenchmarkOptions, validate_benchmark
from devft_jax.benchmarking.table import comparison, shown_scores
from devft_jax.errors import InputError, RunError
from devft_jax.files import cache_folder, checked_path
from devft_jax.files.writing import write_atomically
from devft_jax.harness.identity import model_identity
from devft_jax.harness.results import Results
from devft_jax.harness.store import RequestStore
from devft_jax.harness.tasks import OpenTasks, TaskOptions, open_tasks, run_tasks
from devft_jax.inference.respondent import ModelOptions, Respondent, open_respondent
from devft_jax.inference.selected import SelectionOptions
from devft_jax.models.huggingface.safetensors import one_line
from devft_jax.reporting.progress import Progress


@dataclass(frozen=True)
class Evaluated:
    """One model's scores.

    Attributes:
      name: of the model, as it was given.
      identity: by which its finished requests are kept.
      results: its scores.
      computed: requests that were computed.
      kept: requests that were answered from an earlier evaluation.
    """

    name: str
    identity: str
    results: Results
    computed: int
    kept: int


def evaluate(
    sources: Sequence[str],
    options: BenchmarkOptions,
    model: ModelOptions | None = None,
    selection: SelectionOptions | None = None,
    *,
    progress: Progress | None = None,
) -> list[Evaluated]:
    """Evaluate models on the same tasks.

    Args:
      sources: of the models: folders of runs, adapters or models, Hugging Face names, or "bundled".
      options: tasks and how they are run.
      model: how the models are loaded.
      selection: which of a source's models, by default its newest.
      progress: the progress output; None for none.

    Returns:
      The scores of each source, with `compare` before them those of the model without its adapter.

    Raises:
      InputError: an option, a task or a source that cannot be used; nothing has been computed for it.
      RunError: the scores cannot be written.
    """
    validate_benchmark(options)
    if not sources:
        raise InputError("no model is named; name a run's folder, an adapter's, a model's, or bundled.")
    if len(set(sources)) < len(sources):
        raise InputError(f"'{next(each for each in sources if sources.count(each) > 1)}' is named twice; name it once.")
    model = model or ModelOptions()
    # Before a model is loaded: what is wrong with a name is said at once.
    opened = open_tasks(options.tasks, benchmark_files=options.benchmark_files, template=model.template or "alpaca")
    evaluated: list[Evaluated] = []
    for source in sources:
        respondent = open_respondent(source, model, selection, compare=options.compare)
        voices = {source: respondent}
        if options.compare:
            voices = {f"{source} without adapter": respondent.bare, source: respondent}
        for name, voice in voices.items():
            evaluated.append(_evaluated(name, voice, opened, options, progress))
            if options.out is not None:
                _write(options, evaluated)
    return evaluated


def _evaluated(
    name: str, respondent: Respondent, opened: OpenTasks, options: BenchmarkOptions, progress: Progress | None
) -> Evaluated:
    """One model's scores on open tasks."""
    from devft_jax.harness.language_model import LanguageModel

    model, adapter = respondent.model, respondent.adapter
    identity = model_identity(model.config, model.base, adapter, respondent.compute)
    store = RequestStore(cache_folder() / "evaluations" / f"{identity}.jsonl") if options.keep_requests else None
    if progress is not None:
        progress.say(f"{name}: {len(opened.tasks)} task{'s' if len(opened.tasks) > 1 else ''}")
    language_model = LanguageModel(
        model,
        adapter,
        eos_ids=respondent.eos_ids,
        compute=respondent.compute,
        store=store,
        progress=progress,
        batch=options.text_batch,
        seed=options.seed,
    )
    asked = TaskOptions(
        limit=options.limit,
        num_fewshot=options.num_fewshot,
        apply_chat_template=options.apply_chat_template,
        seed=options.seed,
    )
    results = run_tasks(language_model, opened, asked)
    return Evaluated(name, identity, results, language_model.computed, language_model.kept)


def to_plain(options: BenchmarkOptions, evaluated: Sequence[Evaluated]) -> dict[str, Any]:
    """The contents of a file of scores.

    Args:
      options: of the evaluation.
      evaluated: the models, the first of which the others are compared with.
    """
    versions = {name: metadata.version(name) for name in ("lm-eval", "devft-jax", "jax")}
    differences = [
        {"model": other.name, "compared_with": evaluated[0].name, "task": score.task, "metric": score.metric}
        | {"filter": score.filter}
        | dataclasses.asdict(difference)
        for other in evaluated[1:]
        for score in other.results.scores
        if (difference := comparison(evaluated[0].results, other.results, score)) is not None
    ]
    asked = {name: value for name, value in dataclasses.asdict(options).items() if name != "out"}
    return {
        "devft_evaluation": 1,
        "versions": versions,
        "options": asked,
        "models": [{"name": each.name, "identity": each.identity, "scores": each.results.to_plain()} for each in evaluated],
        "differences": differences,
    }


def _write(options: BenchmarkOptions, evaluated: Sequence[Evaluated]) -> None:
    assert options.out is not None
    try:
        write_atomically(checked_path(options.out, "out"), json.dumps(to_plain(options, evaluated), indent=None) + "\n")
    except OSError as error:
        raise RunError(f"out {options.out} cannot be written ({one_line(error)}); make room there and try again.") from error


def as_text(evaluated: Sequence[Evaluated]) -> str:
    """The scores as a table for a terminal.

    Args:
      evaluated: one model or more.
    """
    return "\n".join(shown_scores({each.name: each.results for each in evaluated}))
