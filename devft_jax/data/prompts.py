"""How a record is worded for the model: the prompt it is given, the completion it should say.

`alpaca` is the template of Stanford Alpaca (Taori et al. 2023), letter for letter; OpenFedLLM,
whose protocol DevFT follows, trains with that format. The loss covers the completion only, so a
template decides nothing but the prompt.
"""

from dataclasses import dataclass

from devft_jax.data.sources import Record
from devft_jax.errors import InputError


@dataclass(frozen=True)
class Template:
    """Prompts as `str.format` patterns over the record's `instruction` and `input`."""

    description: str
    with_input: str
    without_input: str
    """Used when the record's input is empty."""


TEMPLATES: dict[str, Template] = {
    "alpaca": Template(
        "Stanford Alpaca's instruction format",
        with_input=(
            "Below is an instruction that describes a task, paired with an input that provides "
            "further context. Write a response that appropriately completes the request.\n\n"
            "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
        ),
        without_input=(
            "Below is an instruction that describes a task. "
            "Write a response that appropriately completes the request.\n\n"
            "### Instruction:\n{instruction}\n\n### Response:"
        ),
    ),
    "alpaca_short": Template(
        "alpaca's headings without its opening sentence, for small models and short contexts",
        with_input="### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n",
        without_input="### Instruction:\n{instruction}\n\n### Response:\n",
    ),
    "completion": Template(
        "the instruction as it is, then the input on a line of its own",
        with_input="{instruction}\n{input}",
        without_input="{instruction}",
    ),
}


def find_template(name: str) -> Template:
    """The template of that name; `InputError` if there is none."""
    if name not in TEMPLATES:
        raise InputError(f"template {name!r} is unknown; choose from {', '.join(TEMPLATES)}.")
    return TEMPLATES[name]


def render(record: Record, template: str = "alpaca") -> tuple[str, str]:
    """(prompt, completion) of a record under the template of that name."""
    wording = find_template(template)
    pattern = wording.with_input if record.input else wording.without_input
    return pattern.format(instruction=record.instruction, input=record.input), record.output
