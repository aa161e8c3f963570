"""How a record is worded for the model: what it is given, and what it should say.

A record becomes `Segment`s in turn: text that the model is given, and text of the assistant, which
the loss covers. A single instruction gives two, a conversation two for every assistant turn, and
both go the same way from here on.

`alpaca` is the template of Stanford Alpaca (Taori et al. 2023), letter for letter; OpenFedLLM,
whose protocol DevFT follows, trains with that format. In a conversation its opening sentence, or the
system text in its place, comes once, and the headings come again for every exchange. Neighbouring
turns of one role are read as one.

`chat` is the template that the tokenizer brings with it, which most instruction-tuned models need to
be spoken to. Which part of its text is the assistant's is found by rendering the conversation up to
every assistant turn, once without the turn but asking for it and once with it: each rendering must
begin with the one before. `auto` is `chat` for conversations where the tokenizer has such a
template, and `alpaca` for everything else.
"""

import datetime
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

from devft_jax.data.sources import Record, Turn
from devft_jax.errors import InputError

# Templates such as LLaMA 3.2's print today's date, under which no run could be repeated. This is the
# day that LLaMA 3.1's template names.
CHAT_DATE = datetime.date(2024, 7, 26)

# The function by which templates ask for the date, with that day's values; no value holds a percent
# sign, so the order does not matter. The plus sign keeps a line break that the template begins with.
_DATE_MACRO = (
    "{% macro strftime_now(format) %}{{ format"
    + "".join(f" | replace('%{letter}', '{CHAT_DATE.strftime('%' + letter)}')" for letter in "aAbBdjmyYHIMSp")
    + " }}{% endmacro +%}"
)


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of a record's text."""

    text: str
    is_answer: bool
    """Whether the assistant says it: the loss covers its tokens."""


@dataclass(frozen=True, kw_only=True)
class TextTemplate:
    """A wording of our own, as `str.format` patterns over an exchange's `instruction` and `input`.

    A prompt is `opening + separator + exchange`, the opening replaced by the system text if there is
    one; later prompts are `separator + exchange`, after the end of the answer before.
    """

    description: str
    opening: str
    opening_with_input: str
    with_input: str
    without_input: str
    """Used when the input is empty."""
    separator: str
    """Also joins neighbouring turns of one role."""


@dataclass(frozen=True)
class NamedTemplate:
    """A template that the tokenizer or the data decides."""

    description: str


TEMPLATES: dict[str, TextTemplate | NamedTemplate] = {
    "auto": NamedTemplate("chat for conversations where the tokenizer has a chat template, else alpaca"),
    "alpaca": TextTemplate(
        description="Stanford Alpaca's instruction format",
        opening=(
            "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        ),
        opening_with_input=(
            "Below is an instruction that describes a task, paired with an input that provides "
            "further context. Write a response that appropriately completes the request."
        ),
        with_input="### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:",
        without_input="### Instruction:\n{instruction}\n\n### Response:",
        separator="\n\n",
    ),
    "alpaca_short": TextTemplate(
        description="alpaca's headings without its opening sentence, for small models and short contexts",
        opening="",
        opening_with_input="",
        with_input="### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n",
        without_input="### Instruction:\n{instruction}\n\n### Response:\n",
        separator="\n\n",
    ),
    "completion": TextTemplate(
        description="the instruction as it is, then the input on a line of its own",
        opening="",
        opening_with_input="",
        with_input="{instruction}\n{input}",
        without_input="{instruction}",
        separator="\n",
    ),
    "chat": NamedTemplate("the tokenizer's own chat template"),
}


def find_template(name: str) -> TextTemplate | NamedTemplate:
    """The template of that name; `InputError` if there is none."""
    if name not in TEMPLATES:
        raise InputError(f"template {name!r} is unknown; choose from {', '.join(TEMPLATES)}.")
    return TEMPLATES[name]


def resolve_template(name: str, *, conversational: bool, tokenizer: Any) -> str:
    """The template that is used: `auto` decided by whether any record is a conversation, others as they are."""
    if name != "auto":
        return name
    return "chat" if conversational and getattr(tokenizer, "chat_template", None) is not None else "alpaca"


def tokenizer_name(tokenizer: Any) -> str:
    """What a message calls a tokenizer."""
    return getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__


def render(record: Record, template: str = "alpaca", tokenizer: Any = None) -> list[Segment]:
    """One record's segments; `renderer` says how, and serves many records."""
    return renderer(template, tokenizer)(record)


def renderer(template: str, tokenizer: Any = None) -> Callable[[Record], list[Segment]]:
    """A template as a function of a record.

    The function gives the segments of an instruction or a conversation: prompts and answers
    alternate, a prompt is the first (it may be empty) and an answer the last; turns after the last
    assistant turn are left out. It raises `InputError` for a conversation that a chat template
    refuses, or words in a way that hides where the answers are.

    Args:
      template: one of `TEMPLATES` but `auto`, which `resolve_template` decides.
      tokenizer: of `transformers`, for `chat`.

    Raises:
      InputError: an unknown template, or `chat` for a tokenizer without a chat template.
    """
    wording = find_template(template)
    if isinstance(wording, TextTemplate):
        return lambda record: list(_text_segments(record, wording))
    apply = _chat(template, tokenizer)
    specials = "|".join(re.escape(text) for text in sorted(special_texts(tokenizer), key=len, reverse=True))
    end_of_turn = re.compile(rf"({specials})(?:\s|{specials})*\Z") if specials else None
    return lambda record: list(_chat_segments(record, apply, end_of_turn))


def prompt_text(record: Record, template: str, tokenizer: Any = None) -> str:
    """What the model is given of an instruction whose answer it is asked for: the first segment that `render` gives.

    `template` and `tokenizer` are those of `renderer`, and so are the errors.
    """
    wording = find_template(template)
    if isinstance(wording, TextTemplate):
        return next(_text_segments(record, wording)).text
    return _chat(template, tokenizer)(record.turns[:-1], record.origin, ask=True)


def _chat(template: str, tokenizer: Any) -> Callable[..., str]:
    """The tokenizer's chat template: a function of turns, their record's origin, and whether to `ask` for an answer."""
    if template == "auto":
        raise InputError("template 'auto' depends on the data; name the template that it stands for.")
    if getattr(tokenizer, "chat_template", None) is None:
        raise InputError(
            f"template 'chat' needs a chat template and the tokenizer {tokenizer_name(tokenizer)!r} has none; "
            "add chat_template to its tokenizer_config.json, or use another template such as alpaca."
        )
    try:
        chosen = tokenizer.get_chat_template()
    except ValueError as error:
        raise InputError(
            f"the tokenizer {tokenizer_name(tokenizer)!r} has several chat templates and none is called default; "
            "name the one to use default in its files, or use another template such as alpaca."
        ) from error
    return partial(_apply, tokenizer, _DATE_MACRO + chosen)


def _text_segments(record: Record, wording: TextTemplate) -> Iterator[Segment]:
    for number, (system, instruction, input, answer) in enumerate(_exchanges(record, wording.separator)):
        opening = wording.opening_with_input if input else wording.opening
        lead = system or ("" if number else opening)
        pattern = wording.with_input if input else wording.without_input
        parts = [""] if number else []
        parts += [lead] if lead else []
        yield Segment(wording.separator.join([*parts, pattern.format(instruction=instruction, input=input)]), False)
        yield Segment(answer, True)


def _exchanges(record: Record, separator: str) -> Iterator[tuple[str, str, str, str]]:
    """(system text, instruction, input, answer) of every exchange; all but the answer may be empty."""
    if not record.conversation:
        yield "", record.instruction, record.input, record.output
        return
    said = {"system": "", "user": ""}
    for role, turns in groupby(record.conversation, lambda turn: turn.role):
        text = separator.join(turn.content for turn in turns)
        if role == "assistant":
            yield said["system"], said["user"], "", text
            said = {"system": "", "user": ""}
        else:
            said[role] = separator.join(filter(None, [said[role], text]))


def _chat_segments(record: Record, apply: Callable[..., str], end_of_turn: re.Pattern[str] | None) -> Iterator[Segment]:
    turns = record.turns
    done = ""
    for index, turn in enumerate(turns):
        if turn.role != "assistant":
            continue
        asked = apply(turns[:index], record.origin, ask=True)
        answered = apply(turns[: index + 1], record.origin, ask=False)
        if not asked.startswith(done) or not answered.startswith(asked):
            raise InputError(
                f"the tokenizer's chat template words what comes before turn {index + 1} of {record.origin} otherwise "
                "once that turn follows, so which tokens are the assistant's cannot be told; use another template "
                "such as alpaca, or a chat template that only ever appends."
            )
        answer = answered[len(asked) :]
        # What a template prints after the end of turn, often a line break, is not said by the model,
        # which has stopped by then: it belongs to the next prompt.
        end = end_of_turn and end_of_turn.search(answer)
        answer = answer[: end.end(1)] if end else answer
        yield Segment(asked[len(done) :], False)
        yield Segment(answer, True)
        done = asked + answer


def special_texts(tokenizer: Any) -> set[str]:
    """The texts that the tokenizer reads as one token of their own each, end of turn among them."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return {*tokenizer.all_special_tokens, *(token.content for token in added.values())}


def _apply(tokenizer: Any, chat_template: str, turns: tuple[Turn, ...], origin: str, *, ask: bool) -> str:
    try:
        return tokenizer.apply_chat_template(
            [{"role": turn.role, "content": turn.content} for turn in turns],
            chat_template=chat_template,
            tokenize=False,
            add_generation_prompt=ask,
        )
    except Exception as error:  # a template is a program: it may raise anything, and some refuse by raising
        reason = str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__
        raise InputError(
            f"the tokenizer's chat template refuses the conversation {origin} ({reason}); correct or remove the "
            "record, or use another template such as alpaca."
        ) from error
