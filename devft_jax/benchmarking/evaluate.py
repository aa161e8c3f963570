"""Evaluates models on benchmarks, one after the other, on the same items."""

import dataclasses
import json
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import jax

from devft_jax.benchmarking.options import BenchmarkOptions, validate_benchmark
from devft_jax.benchmarking.table import comparison, shown_scores
from devft_jax.errors import InputError, RunError
from devft_jax.files import checked_path
from devft_jax.files.writing import write_atomically
from devft_jax.harness.evaluated import Evaluated, evaluated
from devft_jax.harness.identity import model_identity
from devft_jax.harness.tasks import OpenTasks, TaskOptions, open_tasks
from devft_jax.inference.options import ModelOptions, SelectionOptions
from devft_jax.inference.respondent import Respondent, open_respondent
from devft_jax.models.huggingface.safetensors import one_line
from devft_jax.reporting.progress import Progress
from devft_jax.runtime.devices import versions
from devft_jax.runtime.processes import refuse_several


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
      The scores of each source, with `compare` before them those of the model without its adapter, once if several share it.

    Raises:
      InputError: an option, a task or a source that cannot be used; nothing has been computed for it.
      RunError: the scores cannot be written.
    """
    refuse_several("an evaluation on benchmarks")
    validate_benchmark(options)
    if not sources:
        raise InputError("no model is named; name a run's folder, an adapter's, a model's, or bundled.")
    if len(set(sources)) < len(sources):
        raise InputError(f"'{next(each for each in sources if sources.count(each) > 1)}' is named twice; name it once.")
    model = model or ModelOptions()
    # Before a model is loaded: what is wrong with a name is said at once.
    opened = open_tasks(options.tasks, benchmark_files=options.benchmark_files, template=model.template or "alpaca")
    found: list[Evaluated] = []
    for source in sources:
        respondent = open_respondent(source, model, selection, compare=options.compare)
        voices = {source: respondent}
        known = {each.identity for each in found}
        # An identity reads all weights, so it is asked for only where there is one to compare with.
        if options.compare and not (known and _identity(respondent.bare) in known):
            voices = {f"{source} without adapter": respondent.bare, source: respondent}
        for name, voice in voices.items():
            found.append(_evaluated(name, voice, opened, options, progress))
            if options.out is not None:
                _write(options, found)
    return found


def _identity(respondent: Respondent) -> str:
    return model_identity(respondent.model.config, respondent.model.base, respondent.adapter, respondent.compute)


def _evaluated(
    name: str, respondent: Respondent, opened: OpenTasks, options: BenchmarkOptions, progress: Progress | None
) -> Evaluated:
    """One model's scores on open tasks."""
    if progress is not None:
        progress.say(f"{name}: {len(opened.tasks)} task{'s' if len(opened.tasks) > 1 else ''}")
    asked = TaskOptions(
        limit=options.limit,
        num_fewshot=options.num_fewshot,
        apply_chat_template=options.apply_chat_template,
        seed=options.seed,
    )
    return evaluated(
        name,
        respondent.model,
        respondent.adapter,
        opened,
        asked,
        eos_ids=respondent.eos_ids,
        compute=respondent.compute,
        keep_requests=options.keep_requests,
        text_batch=options.text_batch,
        progress=progress,
    )


def to_plain(options: BenchmarkOptions, models: Sequence[Evaluated]) -> dict[str, Any]:
    """The contents of a file of scores.

    Args:
      options: of the evaluation.
      models: the first is the one with which the others are compared.
    """
    differences = [
        {"model": other.name, "compared_with": models[0].name, "task": score.task, "metric": score.metric}
        | {"filter": score.filter}
        | dataclasses.asdict(difference)
        for other in models[1:]
        for score in other.results.scores
        if (difference := comparison(models[0].results, other.results, score)) is not None
    ]
    asked = {name: value for name, value in dataclasses.asdict(options).items() if name != "out"}
    return {
        "devft_evaluation": 1,
        "versions": versions(jax.devices()[0]) | {"lm-eval": metadata.version("lm-eval")},
        "options": asked,
        "models": [{"name": each.name, "identity": each.identity, **each.results.to_plain()} for each in models],
        "differences": differences,
    }


def _write(options: BenchmarkOptions, models: Sequence[Evaluated]) -> None:
    assert options.out is not None
    try:
        write_atomically(checked_path(options.out, "out"), json.dumps(to_plain(options, models), indent=None) + "\n")
    except OSError as error:
        raise RunError(f"out {options.out} cannot be written ({one_line(error)}); make room there and try again.") from error


def as_text(models: Sequence[Evaluated]) -> str:
    """The scores as a table for a terminal.

    Args:
      models: one or more.
    """
    return "\n".join(shown_scores({each.name: each.results for each in models}))
