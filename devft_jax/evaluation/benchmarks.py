"""Options for scoring a run's full model on benchmark tasks while it trains (`devft_jax.training.task_scores`)."""

import re
from dataclasses import dataclass
from pathlib import Path

from devft_jax.files import whole_path
from devft_jax.options import Need, execution

SCORED = Need(lambda config: config.evaluate_tasks is not None, "has no effect without tasks", "give --evaluate-tasks")


@dataclass(frozen=True, kw_only=True)
class TaskScoreOptions:
    """On which benchmark tasks the full model is scored, and when; see `devft evaluate` (extra eval)."""

    evaluate_tasks: tuple[str, ...] | None = execution(None, each_once=True)
    """Benchmark tasks on which the untuned base and the final full model are scored, as in `devft evaluate`: names of
    lm-evaluation-harness, YAML files, or paper, quick and microtasks; NAME:N takes N items, NAME@K puts K worked examples
    before a question."""
    evaluate_tasks_every: int = execution(
        0, at_least=0, remedy="0 scores only the untuned base and the final model", needs=[SCORED]
    )
    """Rounds between scorings of the full model, as if the stage ended there; 0 scores only the untuned base and the final
    model."""
    benchmark_files: str | None = execution(None, path=True, needs=[SCORED])
    """Folder with the benchmarks' original files, which then need no network."""


def whole_choice(text: str) -> str:
    """A chosen task with the absolute path of its file, so that it is valid in every working folder; a name unchanged.

    Args:
      text: of the choice, such as my.yaml:20.
    """
    found = re.fullmatch(r"(.+?)((?::\d+)?(?:@\d+)?)", text)
    if found is None or not Path(found[1]).is_file():
        return text
    return f"{whole_path(Path(found[1]))}{found[2]}"
