"""Converts the rows of a source to records: layouts found from field names, and the turns of conversations.

The layout of a record is found from its field names (a conversation, Alpaca, Dolly, prompt/completion, question/answer) or
given by the user. Every error names the record's origin (`path:line`).
"""

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from devft_jax.data.files import Row
from devft_jax.data.records import Record, Turn
from devft_jax.errors import InputError
from devft_jax.files import printable

ROLES = ("instruction", "input", "output", "messages")

# Common field names, by role. The first layout whose fields all occur is used, otherwise the first
# whose instruction and output occur, because files without inputs often leave that field out.
LAYOUTS: tuple[Mapping[str, str], ...] = (
    {"instruction": "instruction", "input": "input", "output": "output"},  # Alpaca
    {"instruction": "instruction", "input": "context", "output": "response"},  # Dolly
    {"instruction": "instruction", "input": "input", "output": "response"},  # GPTeacher
    {"instruction": "prompt", "output": "completion"},
    {"instruction": "question", "output": "answer"},  # GSM8K
)

# Fields of conversations; they have priority over the layouts above, because data sets of
# conversations often repeat the first question in a separate field.
MESSAGES_FIELDS = ("messages", "conversations", "conversation")

# The field of a system text that is beside the turns instead of among them.
SYSTEM_FIELD = "system"

CATEGORY_FIELDS = ("category", "template", "task")

# The two forms of a turn, (speaker, content): that of OpenAI and Hugging Face, and that of ShareGPT.
TURN_FIELDS = (("role", "content"), ("from", "value"))

SPEAKERS = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bard": "assistant",
    "bing": "assistant",
    "model": "assistant",
}


@dataclass(frozen=True)
class Reader:
    """Converts the rows of one source to records.

    Attributes:
      layout: role to field of an instruction record.
      messages: field of the turns, if the records are conversations.
      category_field: field of the category, if any.
    """

    layout: Mapping[str, str]
    messages: str | None
    category_field: str | None

    @classmethod
    def of(cls, place: str, present: Collection[str], fields: Mapping[str, str], category_field: str | None) -> "Reader":
        """The reader of a source.

        Args:
          place: the source, for messages.
          present: fields that occur in any of its rows.
          fields: role to field, as given by the user.
          category_field: field of the category, as given by the user.

        Raises:
          InputError: the user's field for the input does not occur.
        """
        if "input" in fields and fields["input"] not in present:
            raise InputError(
                f"fields maps input to {fields['input']!r}, which no record of {place} has; "
                f"its fields are {_listed(sorted(present))}."
            )
        messages = fields.get("messages")
        if "messages" not in fields and not {"instruction", "output"} & set(fields):
            messages = next((name for name in MESSAGES_FIELDS if name in present), None)
        if category_field is None:
            category_field = next((name for name in CATEGORY_FIELDS if name in present), None)
        return cls(_layout(set(present), fields), messages, category_field)

    def records(self, place: str, rows: Iterable[Row]) -> Iterator[Record]:
        """The records of rows, one by one.

        Args:
          place: where the rows are, for the records' origins.
          rows: numbered rows, as `read_rows` returns them.

        Raises:
          InputError: a row is not a valid record.
        """
        for number, row in rows:
            origin = f"{place}:{number}"
            value = _value(row, self.category_field)
            # An empty cell means in CSV that there is no value.
            category = None if value in (None, "") else str(value)
            if self.messages is not None:
                yield Record.of_turns(_turns(origin, row, self.messages), category, origin)
            else:
                instruction, input, output = (
                    _role_text(origin, row, role, self.layout.get(role)) for role in ("instruction", "input", "output")
                )
                yield Record(instruction, input, output, category, origin)


def _layout(present: set[str], fields: Mapping[str, str]) -> Mapping[str, str]:
    whole = [layout for layout in LAYOUTS if present.issuperset(layout.values())]
    enough = [layout for layout in LAYOUTS if {layout["instruction"], layout["output"]} <= present]
    return {**(whole + enough + [LAYOUTS[0]])[0], **fields}


def _turns(origin: str, row: Mapping[str, Any], field: str) -> list[Turn]:
    """The turns of a conversation, with a separate system text first."""
    messages = _value(row, field)
    if not isinstance(messages, list) or not messages:
        found = "an empty list" if messages == [] else "nothing" if messages is None else f"a {type(messages).__name__}"
        raise InputError(
            f"{origin} has {found} in the field {field!r}, where the turns of a conversation are needed; "
            "give objects with role and content or with from and value, or name another field with the option fields."
        )
    turns = [_turn(origin, number, message) for number, message in enumerate(messages, 1)]
    if all(turn.role != "assistant" for turn in turns):
        raise InputError(f"{origin} has no assistant turn, so nothing can be learned from it; correct or remove it.")
    system = _value(row, SYSTEM_FIELD)
    if system and all(turn.role != "system" for turn in turns):
        turns.insert(0, Turn("system", _text(origin, f"in the field {SYSTEM_FIELD!r}", system)))
    return turns


def _turn(origin: str, number: int, message: Any) -> Turn:
    forms = [form for form in TURN_FIELDS if isinstance(message, Mapping) and form[0] in message]
    # In Parquet every turn has the fields of all turns, with null for those that it does not use.
    form = next((form for form in forms if message[form[0]] is not None), forms[0] if forms else None)
    if form is None:
        raise InputError(
            f"{origin} has a turn {number} without a speaker; every turn must be an object with "
            "role and content, or with from and value."
        )
    speaker, content = message[form[0]], message.get(form[1])
    if not isinstance(speaker, str) or speaker not in SPEAKERS:
        raise InputError(
            f"{origin} has a turn {number} by {speaker!r}, which is not supported; the speakers are {', '.join(SPEAKERS)}."
        )
    if not isinstance(content, str):
        found = "nothing" if content is None else f"a {type(content).__name__}"
        raise InputError(f"{origin} has {found} as the content of turn {number}, where text is needed; correct the record.")
    return Turn(SPEAKERS[speaker], _text(origin, f"in turn {number}", content))


def _role_text(origin: str, row: Mapping[str, Any], role: str, field: str | None) -> str:
    value = _value(row, field)
    if value is None and role == "input":
        return ""
    if value is None:
        lacks = f"holds nothing in the field {field!r}" if field in row else f"has no field {field!r}"
        raise InputError(
            f"{origin} {lacks} for its {role} (it has {_listed(row)}); "
            "correct the record, or name the fields of your data with the option fields."
        )
    return _text(origin, f"in the field {field!r}", value)


def _value(row: Mapping[str, Any], field: str | None) -> Any:
    """A field's value; None if there is none, which pandas also writes as NaN."""
    value = row.get(field) if field else None
    return None if isinstance(value, float) and math.isnan(value) else value


def _text(origin: str, where: str, value: Any) -> str:
    if not isinstance(value, str | int | float):
        raise InputError(
            f"{origin} has a {type(value).__name__} {where}, where text is needed; "
            "correct the record, or name another field with the option fields."
        )
    text = str(value)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{origin} has an unpaired surrogate {where}; correct the record.") from error
    return text


def _listed(names: Iterable[Any]) -> str:
    return printable(", ".join(map(str, names))) or "none"
