"""The wording of records for the model: prompts and answers.

A record becomes a sequence of `Segment`s: text that the model is given, and text of the assistant, which the loss covers. A
single instruction gives two, a conversation two for every assistant turn; both are processed alike after that.

`alpaca` is the template of Stanford Alpaca (Taori et al. 2023), character by character. `openfedllm` is the variant of
OpenFedLLM (Ye et al. 2024), whose protocol DevFT follows: no section for the input, which follows its instruction after a
space, a space after both, and the answer on the line of its heading. There the space before the answer is part of the
answer, as it is in the tokens of most models. In a conversation the opening sentence, or the system text in its place, comes
once, and the headings are repeated for every exchange. Consecutive turns of one role are joined.

`chat` is the tokenizer's own template, which most instruction-tuned models require. The assistant's part of its text is
found by rendering the conversation up to every assistant turn, once without the turn but with the prompt for it and once
with it: the second text must begin with the first. Most templates only append, so that a conversation is one text. Some
templates word earlier turns differently once others follow, as Qwen3's does, which leaves out the model's reasoning; an
answer then begins a text of its own, after the prompt that the template makes for it: every answer is trained exactly once,
after what the model will be given. `auto` is `chat` for conversations if the tokenizer has such a template, and `alpaca` for
everything else.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

from devft_jax.data.chat import ChatTemplate, ChatTemplateError, chat_template
from devft_jax.data.records import Record, Turn
from devft_jax.errors import InputError
from devft_jax.files import printable


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of a record's text.

    Attributes:
      text: the text of the piece.
      is_answer: whether it is the assistant's text, whose tokens the loss covers.
      begins: whether a new text begins here, so that the model is not given what comes before.
    """

    text: str
    is_answer: bool
    begins: bool = False


@dataclass(frozen=True, kw_only=True)
class TextTemplate:
    """One of our own wordings, as `str.format` patterns of an exchange's `instruction` and `input`.

    A prompt is `opening + separator + exchange`, with the opening replaced by the system text if there is
    one; later prompts are `separator + exchange`, after the end of the previous answer.

    Attributes:
      description: description for users.
      opening: pattern of the opening of a record without input.
      opening_with_input: pattern of the opening of a record with input.
      with_input: pattern of an exchange with input.
      without_input: pattern of an exchange without input.
      separator: text between opening and exchange; also joins consecutive turns of one role.
      answer: pattern of an answer. If it is more than the answer itself, prompt and answer are tokenised as one text.
    """

    description: str
    opening: str
    opening_with_input: str
    with_input: str
    without_input: str
    separator: str
    answer: str = "{answer}"


@dataclass(frozen=True)
class NamedTemplate:
    """A template that is determined by the tokenizer or the data.

    Attributes:
      description: description for users.
    """

    description: str


TEMPLATES: dict[str, TextTemplate | NamedTemplate] = {
    "auto": NamedTemplate("chat for conversations if the tokenizer has a chat template, else alpaca"),
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
    "openfedllm": TextTemplate(
        description="OpenFedLLM's form of alpaca: the input follows the instruction, the answer follows its heading",
        opening=(
            "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        ),
        opening_with_input=(
            "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        ),
        with_input="### Instruction:\n{instruction} {input} \n\n### Response:",
        without_input="### Instruction:\n{instruction} \n\n### Response:",
        separator="\n\n",
        answer=" {answer}",
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
        description="the instruction unchanged, then the input on a line of its own",
        opening="",
        opening_with_input="",
        with_input="{instruction}\n{input}",
        without_input="{instruction}",
        separator="\n",
    ),
    "chat": NamedTemplate("the tokenizer's own chat template"),
}
"""All templates by name."""


def find_template(name: str) -> TextTemplate | NamedTemplate:
    """The template of that name; raises `InputError` if there is none.

    Args:
      name: name of the template.
    """
    if name not in TEMPLATES:
        raise InputError(f"template {name!r} is unknown; choose from {', '.join(TEMPLATES)}.")
    return TEMPLATES[name]


def joins_texts(name: str) -> bool:
    """Whether a template's prompts and answers are tokenised as one text, not separately.

    Args:
      name: name of the template.
    """
    wording = find_template(name)
    return wording.answer != "{answer}" if isinstance(wording, TextTemplate) else True


def resolve_template(name: str, *, conversational: bool, tokenizer: Any) -> str:
    """The template to use: `auto` is resolved by whether any record is a conversation, other names are unchanged.

    Args:
      name: name of the template, or auto.
      conversational: whether any record is a conversation.
      tokenizer: a tokenizer of `transformers`.
    """
    if name != "auto":
        return name
    return "chat" if conversational and getattr(tokenizer, "chat_template", None) is not None else "alpaca"


def tokenizer_name(tokenizer: Any) -> str:
    """The name of a tokenizer in messages.

    Args:
      tokenizer: a tokenizer of `transformers`.
    """
    return getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__


def render(record: Record, template: str = "alpaca", tokenizer: Any = None) -> list[Segment]:
    """The segments of one record; see `renderer`, which is meant for many records.

    Args:
      record: the record to word.
      template: as in `renderer`.
      tokenizer: as in `renderer`.
    """
    return renderer(template, tokenizer)(record)


def renderer(template: str, tokenizer: Any = None) -> Callable[[Record], list[Segment]]:
    """A template as a function of a record.

    The function returns the segments of an instruction or a conversation: prompts and answers alternate, the first segment
    is a prompt (it may be empty) and the last an answer; turns after the last assistant turn are left out. A prompt that
    `begins` a text contains everything before its answer. The function raises `InputError` for a conversation that a chat
    template refuses, or words in such a way that the answers cannot be located.

    Args:
      template: one of `TEMPLATES` other than `auto`, which `resolve_template` resolves.
      tokenizer: a tokenizer of `transformers`, for `chat`.

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
    """The prompt of an instruction, or of a conversation, whose last answer is to be generated.

    It raises the errors of `renderer`.

    Args:
      record: the record to word.
      template: as in `renderer`.
      tokenizer: as in `renderer`.
    """
    wording = find_template(template)
    if isinstance(wording, TextTemplate):
        return "".join(segment.text for segment in [*_text_segments(record, wording)][:-1])
    turns = record.turns[:-1]
    [text] = _chat(template, tokenizer)(turns, [(len(turns), True)], record.origin)
    return text


def _chat(template: str, tokenizer: Any) -> Callable[..., list[str]]:
    """The tokenizer's chat template: a function of turns, cuts as in `ChatTemplate`, and their record's origin."""
    if template == "auto":
        raise InputError("template 'auto' depends on the data; give the template that it was resolved to.")
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
            "rename the one to use to default in its files, or use another template such as alpaca."
        ) from error
    return partial(_apply, chat_template(chosen, tokenizer.special_tokens_map))


def _text_segments(record: Record, wording: TextTemplate) -> Iterator[Segment]:
    for number, (system, instruction, input, answer) in enumerate(_exchanges(record, wording.separator)):
        opening = wording.opening_with_input if input else wording.opening
        lead = system or ("" if number else opening)
        pattern = wording.with_input if input else wording.without_input
        parts = [""] if number else []
        parts += [lead] if lead else []
        yield Segment(wording.separator.join([*parts, pattern.format(instruction=instruction, input=input)]), False)
        yield Segment(wording.answer.format(answer=answer), True)


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


def _chat_segments(
    record: Record, apply: Callable[..., list[str]], end_of_turn: re.Pattern[str] | None
) -> Iterator[Segment]:
    turns = record.turns
    answered = [index for index, turn in enumerate(turns) if turn.role == "assistant"]
    texts = iter(apply(turns, [cut for index in answered for cut in ((index, True), (index + 1, False))], record.origin))
    done = ""
    for index, asked, whole in zip(answered, texts, texts, strict=True):
        if not whole.startswith(asked):
            raise InputError(
                f"the tokenizer's chat template words what comes before turn {index + 1} of {record.origin} differently "
                "when it asks for that turn, so it is unknown which tokens are the assistant's; use another template "
                "such as alpaca, or a chat template whose turns begin with the prompt for them."
            )
        answer = whole[len(asked) :]
        # What a template prints after the end of turn, often a line break, is not generated by the model,
        # which has stopped by then: it belongs to the next prompt.
        end = end_of_turn and end_of_turn.search(answer)
        answer = answer[: end.end(1)] if end else answer
        begins = not asked.startswith(done)
        yield Segment(asked if begins else asked[len(done) :], False, begins)
        yield Segment(answer, True)
        done = asked + answer


def special_texts(tokenizer: Any) -> set[str]:
    """The texts of the tokenizer's special tokens, including the end of turn.

    Args:
      tokenizer: a tokenizer of `transformers`.
    """
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return {*tokenizer.all_special_tokens, *(token.content for token in added.values())}


def _apply(apply: ChatTemplate, turns: Sequence[Turn], cuts: Sequence[tuple[int, bool]], origin: str) -> list[str]:
    try:
        return apply([{"role": turn.role, "content": turn.content} for turn in turns], cuts)
    except ChatTemplateError as error:
        reason = printable(str(error)).rstrip(".")
        raise InputError(
            f"the tokenizer's chat template refuses the conversation {origin} ({reason}); correct or remove the "
            "record, or use another template such as alpaca."
        ) from error
