"""`devft generate`: answer prompts with the model of a run, an adapter or any other, with and without the adapter."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from devft_jax.commands.flags import Section, flags_of, parse
from devft_jax.commands.jax_setup import require_devices
from devft_jax.errors import InputError
from devft_jax.files import checked_path
from devft_jax.inference.options import ModelOptions, SelectionOptions
from devft_jax.models.generation.options import GenerationOptions, validate_generation
from devft_jax.options import operand, path, verbatim

ABOUT = "Answer prompts: one prompt, those of a file or of standard input, or, at a terminal, one after the other."


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """The model that answers."""

    source: str = operand(path=True)
    """A run's folder, a model's folder, a PEFT adapter's folder (with the base that it names), a Hugging Face name, or
    bundled for the small model that comes with this package."""


@dataclass(frozen=True, kw_only=True)
class PromptOptions:
    """The prompts, and where the answers go."""

    prompt: str | None = verbatim(None)
    """One prompt. Without this and without `file`, each line of standard input is a prompt."""
    input: str = verbatim("")
    """Text that `prompt` refers to, such as a text to shorten; inserted as a record's input is in training."""
    file: str | None = path(None)
    """File of prompts: one prompt per line, or, for .jsonl and .json, records with instruction and input like training
    data."""
    compare: bool = False
    """Also show the answer of the model without the adapter."""
    out: str | None = path(None)
    """File to which a JSON object for every prompt is also written: absent, empty, or earlier answers, which are
    replaced."""


@dataclass(frozen=True)
class Request:
    """The parsed options of `devft generate`.

    Attributes:
      source: the model that answers.
      selection: which of the source's models.
      prompts: the prompts.
      model: how the model is loaded.
      generation: how answers are sampled.
    """

    source: str
    selection: SelectionOptions
    prompts: PromptOptions
    model: ModelOptions
    generation: GenerationOptions


def parse_generate(arguments: Sequence[str]) -> Request:
    """Parse a command line.

    Args:
      arguments: the words after `devft generate`.

    Returns:
      The request; only its types are checked.

    Raises:
      InputError: the words cannot be parsed.
    """
    groups = {
        "source": SourceOptions,
        "selection": SelectionOptions,
        "prompts": PromptOptions,
        "model": ModelOptions,
        "generation": GenerationOptions,
    }
    sections = {title: Section(title, flags_of(options)) for title, options in groups.items()}
    values = parse("devft generate", ABOUT, list(sections.values()), arguments)
    given = {
        title: {flag.name: values[flag.name] for flag in section.flags if flag.name in values}
        for title, section in sections.items()
    }
    return Request(
        SourceOptions(**given["source"]).source,
        SelectionOptions(**given["selection"]),
        PromptOptions(**given["prompts"]),
        ModelOptions(**given["model"]),
        GenerationOptions(**given["generation"]),
    )


def _check(request: Request) -> None:
    """Raise `InputError` for what is wrong with a request whichever model it names."""
    validate_generation(request.generation)
    asked = request.prompts
    if asked.prompt is not None and asked.file is not None:
        raise InputError("prompt and file exclude each other; give one of them.")
    if asked.input and asked.prompt is None:
        raise InputError("input is given without a prompt; give prompt as well.")
    if asked.file is not None and not checked_path(asked.file, "file").exists():
        raise InputError(f"file {asked.file} does not exist; give the path of a file of prompts.")
    if asked.out and asked.file and Path(asked.out).expanduser().resolve() == Path(asked.file).expanduser().resolve():
        raise InputError(f"out {asked.out} is the file of prompts and would be replaced; give another path.")
    if asked.out:
        from devft_jax.inference.answers import check_answers_file

        check_answers_file(checked_path(asked.out, "out"))


def command(arguments: Sequence[str]) -> int:
    """Run `devft generate` and return its exit code.

    Args:
      arguments: the words after `devft generate`.
    """
    request = parse_generate(arguments)
    _check(request)
    from devft_jax.inference.answers import answer_all, answers_file, converse
    from devft_jax.inference.prompts import read_prompts, read_standard_input, to_record
    from devft_jax.inference.respondent import open_respondent

    require_devices()
    asked, options = request.prompts, request.generation
    respondent = open_respondent(request.source, request.model, request.selection, compare=asked.compare)
    voices = {"base": respondent.bare, "adapter": respondent} if asked.compare else {"answer": respondent}
    if asked.prompt is not None:
        records = [to_record(asked.prompt, "prompt", asked.input)]
    elif asked.file is not None:
        records = read_prompts(asked.file, respondent.fields)
    elif sys.stdin.isatty():
        with answers_file(asked.out) as write:
            converse(voices, options, write)
        return 0
    else:
        records = read_standard_input(sys.stdin)
    respondent.check(records, options)
    with answers_file(asked.out) as write:
        answer_all(voices, records, options, write, kept=asked.out is not None)
    return 0
