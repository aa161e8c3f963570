"""One model evaluated on open tasks, with its finished requests kept on disk."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from devft_jax.files import cache_folder
from devft_jax.harness.identity import model_identity
from devft_jax.harness.results import Results
from devft_jax.harness.store import RequestStore
from devft_jax.harness.tasks import OpenTasks, TaskOptions, run_tasks
from devft_jax.models.adapter import Adapter
from devft_jax.models.huggingface.model import Model
from devft_jax.models.llama import Compute
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


def evaluated(
    name: str,
    model: Model,
    adapter: Adapter | None,
    opened: OpenTasks,
    options: TaskOptions,
    *,
    eos_ids: Sequence[int],
    compute: Compute,
    keep_requests: bool = True,
    text_batch: int = 16,
    devices: Sequence[jax.Device] | None = None,
    progress: Progress | None = None,
    check: Callable[[], None] = lambda: None,
) -> Evaluated:
    """A model's scores on open tasks.

    Args:
      name: of the model.
      model: the base with its tokenizer.
      adapter: low-rank updates of it, or None.
      opened: the tasks.
      options: how they are run.
      eos_ids: tokens that end a text, besides the tokenizer's eos.
      compute: execution choices.
      keep_requests: whether finished requests are kept in the package's cache, and those kept there are used.
      text_batch: most texts generated at once.
      devices: that share the work; by default all local ones.
      progress: is told how far it is; None for nobody.
      check: called whenever requests were finished and kept; what it raises ends the evaluation.

    Raises:
      InputError: the model cannot be scored on these tasks.
      RunError: finished requests cannot be written.
    """
    from devft_jax.harness.language_model import LanguageModel

    identity = model_identity(model.config, model.base, adapter, compute)
    path = cache_folder() / "evaluations" / f"{identity}.jsonl"
    language_model = LanguageModel(
        model,
        adapter,
        eos_ids=eos_ids,
        compute=compute,
        devices=devices,
        store=_Checked(path, check) if keep_requests else None,
        progress=progress,
        batch=text_batch,
        seed=options.seed,
    )
    results = run_tasks(language_model, opened, options)
    return Evaluated(name, identity, results, language_model.computed, language_model.kept)


class _Checked(RequestStore):
    """A store that calls `check` after it has kept something."""

    def __init__(self, path: Path, check: Callable[[], None]) -> None:
        super().__init__(path)
        self._check = check

    def add(self, answers: Mapping[str, Any]) -> None:
        super().add(answers)
        self._check()
