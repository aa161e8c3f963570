"""`devft evaluate`: scores of models on benchmarks."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from devft_jax.benchmarking.options import BenchmarkOptions
from devft_jax.commands.flags import Section, flags_of, parse
from devft_jax.commands.jax_setup import require_devices
from devft_jax.inference.options import ModelOptions, SelectionOptions
from devft_jax.options import operand
from devft_jax.runtime.screen import show
from devft_jax.runtime.stopping import Stopped, StopRequest

ABOUT = (
    "Evaluate models on the tasks of lm-evaluation-harness, scored in this process. What an earlier evaluation of the same "
    "model has finished is not computed again, so the same command resumes a stopped evaluation."
)


@dataclass(frozen=True, kw_only=True)
class WhatOptions:
    """The models."""

    what: tuple[str, ...] = operand(path=True)
    """Runs' folders, models' folders, PEFT adapters' folders (with the base that they name), Hugging Face names, or bundled
    for the small model that comes with this package; several are compared on the same items."""


def parse_evaluate(
    arguments: Sequence[str],
) -> tuple[tuple[str, ...], BenchmarkOptions, ModelOptions, SelectionOptions]:
    """Parse a command line.

    Args:
      arguments: the words after `devft evaluate`.

    Returns:
      The sources, the tasks, how models are loaded, and which of a source's models; only types are checked.

    Raises:
      InputError: the words cannot be parsed.
    """
    groups: dict[str, Any] = {
        "models": WhatOptions,
        "benchmarks": BenchmarkOptions,
        "loading": ModelOptions,
        "selection": SelectionOptions,
    }
    sections = [Section(title, flags_of(options)) for title, options in groups.items()]
    values = parse("devft evaluate", ABOUT, sections, arguments)
    given = [
        groups[section.title](**{flag.name: values[flag.name] for flag in section.flags if flag.name in values})
        for section in sections
    ]
    return given[0].what, given[1], given[2], given[3]


def command(arguments: Sequence[str]) -> int:
    """Run `devft evaluate` and return its exit code: 128 + signal number where it was stopped.

    Args:
      arguments: the words after `devft evaluate`.
    """
    what, asked, loading, selection = parse_evaluate(arguments)
    from devft_jax.benchmarking.evaluate import as_text, evaluate
    from devft_jax.reporting.progress import Progress

    require_devices()
    progress = Progress(sys.stderr)
    with StopRequest(progress.say, may_exit=True).listening() as stop:
        try:
            evaluated = evaluate(what, asked, loading, selection, progress=progress)
        except Stopped:
            progress.say("stopped; the same command resumes from there.")
            return 128 + (stop.signal or 2)
    show(as_text(evaluated))
    return 0
