"""`devft judge`: answers to open questions, rated or compared by a judge."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from devft_jax.commands.flags import Section, flags_of, parse
from devft_jax.commands.jax_setup import require_devices
from devft_jax.inference.options import SelectionOptions
from devft_jax.judging.options import AnswerOptions, AskedOptions, EndpointOptions, JudgeOptions, OpeningOptions
from devft_jax.options import operand
from devft_jax.runtime.screen import show

ABOUT = (
    "Answer the questions of Vicuna-Bench or MT-Bench with models, and have the answers judged: rated from 1 to 10, or "
    "compared in both orders, by an OpenAI-compatible endpoint or your own function. Files have FastChat's layouts. What an "
    "earlier call with the same --out did is not done again; without a judge questions are only answered."
)


@dataclass(frozen=True, kw_only=True)
class WhatOptions:
    """The models."""

    what: tuple[str, ...] = operand(path=True)
    """Runs' folders, PEFT adapters' folders, models' folders, Hugging Face names, bundled for the small model of this
    package, or files of answers in FastChat's layout, which end in .jsonl."""


OPTION_GROUPS: dict[str, type] = {
    "models": WhatOptions,
    "asked": AskedOptions,
    "selection": SelectionOptions,
    "opening": OpeningOptions,
    "answering": AnswerOptions,
    "judging": JudgeOptions,
    "endpoint": EndpointOptions,
}
"""The option groups by the argument of `judge` that takes them; these names are also the headings of the help."""


def parse_judge(arguments: Sequence[str]) -> dict[str, Any]:
    """The options of a command line.

    Args:
      arguments: the words after `devft judge`.

    Returns:
      An instance of each option group, by its name in `OPTION_GROUPS`.

    Raises:
      InputError: the words cannot be read.
    """
    sections = [Section(title, flags_of(group)) for title, group in OPTION_GROUPS.items()]
    values = parse("devft judge", ABOUT, sections, arguments)
    return {
        section.title: OPTION_GROUPS[section.title](
            **{flag.name: values[flag.name] for flag in section.flags if flag.name in values}
        )
        for section in sections
    }


def command(arguments: Sequence[str]) -> int:
    """Run `devft judge` and return its exit code: 128 + signal number where it was stopped.

    Args:
      arguments: the words after `devft judge`.
    """
    options = parse_judge(arguments)
    from devft_jax.judging.judge import judge

    require_devices()
    made = judge(options.pop("models").what, options.pop("asked"), **options)
    if made.stopped_by is not None:
        return 128 + made.stopped_by
    if made.results is None:
        show("\n".join(answers.place for answers in made.answers))
        show("answered; judge them by --endpoint URL --judge-model NAME, or --judge package.module:name.")
    else:
        show(made.text)
        show(f"{made.folder}: results.txt, results.json, model_answer/ and model_judgment/")
    return 0
