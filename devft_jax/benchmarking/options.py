"""The options of an evaluation on benchmarks."""

from dataclasses import dataclass

from devft_jax.errors import InputError
from devft_jax.files import checked_path
from devft_jax.options import check_options, execution, option, path


@dataclass(frozen=True, kw_only=True)
class BenchmarkOptions:
    """What is evaluated, and where the scores go."""

    tasks: tuple[str, ...] = ("quick",)
    """Tasks: names or groups of lm-evaluation-harness, YAML files, or paper, quick and microtasks; NAME:N takes the first N
    items, NAME@K puts K worked examples before a question."""
    benchmark_files: str | None = path(None)
    """Folder with the benchmarks' original files (MMLU, TruthfulQA, BBH, IFEval, ARC-easy, PIQA), which then need no
    network."""
    limit: int | None = option(None, at_least=1)
    """Maximum number of items of each task; by default all."""
    num_fewshot: int | None = option(None, at_least=0)
    """Worked examples before a question; by default each task's own number."""
    apply_chat_template: bool = False
    """Format prompts as conversations with the tokenizer's chat template."""
    compare: bool = False
    """Also evaluate every model without its adapter."""
    seed: int = option(1234, at_least=0)
    """Seed for choosing worked examples and for sampling texts."""
    out: str | None = path(None)
    """JSON file for the scores: absent, or scores written earlier, which are replaced."""
    keep_requests: bool = True
    """Keep finished requests on disk, so that a stopped evaluation can be resumed and nothing is computed twice."""
    text_batch: int = execution(16, at_least=1)
    """Maximum number of texts generated at once."""


BEGINNING = '{"devft_evaluation"'
"""Of every file of scores."""


def validate_benchmark(options: BenchmarkOptions) -> None:
    """Raise `InputError` for an option that cannot be used.

    Args:
      options: to be checked.
    """
    check_options(options)
    if options.out is None:
        return
    place = checked_path(options.out, "out")
    if place.is_dir():
        raise InputError(f"out {options.out} is a folder; name a file in it.")
    if not place.parent.is_dir():
        raise InputError(f"out {options.out} is in a folder that does not exist; create it, or name another file.")
    if place.is_file():
        with place.open("rb") as file:
            begin = file.read(len(BEGINNING))
        if begin not in (b"", BEGINNING.encode()):
            raise InputError(
                f"out {options.out} holds something other than scores of `devft evaluate`, which would be replaced; name "
                "another file."
            )
