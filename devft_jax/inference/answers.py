"""Output of answers: on the screen, one after the other or in a conversation, and as lines of a JSON file.

A line of the file is an object with the prompt (`instruction`, `input`, and `prompt` as the model received it) and the
answer (`completion`, `finish_reason`, `tokens`); compared answers are separate objects under their headings.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from devft_jax.data import Record
from devft_jax.errors import InputError, RunError
from devft_jax.files import checked_path, printable
from devft_jax.inference.prompts import to_record
from devft_jax.inference.respondent import Respondent
from devft_jax.models.generation.answers import Completion
from devft_jax.models.generation.options import GenerationOptions
from devft_jax.models.huggingface.safetensors import one_line
from devft_jax.runtime.screen import complain, show

BEGINNING = b'{"instruction": '
"""Keys of every line that `to_row` makes."""

INTERACTIVE_LOOK = 4
"""Tokens decoded before an interactive answer shows more text."""

Writer = Callable[[dict[str, Any]], None]
"""Writes one line of the answers' file."""


def check_answers_file(path: Path) -> None:
    """Check that a file of answers would not replace something else, such as a run's own file.

    Args:
      path: where answers will be written.

    Raises:
      InputError: it is a folder, cannot be read, or holds something other than answers.
    """
    if path.is_dir():
        raise InputError(f"out {printable(str(path))} is a folder; name a file in it.")
    if not path.is_file():
        return
    try:
        with path.open("rb") as file:
            # The line of an answer begins with its prompt, however long it is.
            begin = file.read(len(BEGINNING))
    except OSError as error:
        raise InputError(
            f"out {printable(str(path))} cannot be read ({one_line(error)}) to check its contents; name another file."
        ) from error
    if begin not in (b"", BEGINNING):
        raise InputError(
            f"out {printable(str(path))} holds something other than answers of `devft generate` and would be replaced; "
            "name another file."
        )


@contextmanager
def answers_file(path: str | None) -> Iterator[Writer]:
    """A function that adds a line to the file; it does nothing if there is no file.

    An older file is replaced when the first line is written: a command without an answer keeps it, and creates no empty
    file.

    Args:
      path: path of the file as the user gave it; None for no file.

    Yields:
      The function.

    Raises:
      InputError: the file cannot be opened.
      RunError: a line cannot be written.
    """
    if path is None:
        yield lambda row: None
        return
    place = checked_path(path, "out")
    created = not os.path.lexists(place)
    try:
        file: TextIO = place.open("a", encoding="utf-8")
    except OSError as error:
        raise InputError(f"out {path} cannot be written ({one_line(error)}); name a file in a writable folder.") from error
    written = 0

    def write(row: dict[str, Any]) -> None:
        nonlocal written
        try:
            if not written and file.seekable() and file.tell():
                file.truncate(0)
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()
        except OSError as error:
            raise RunError(
                f"out {path} cannot be written ({one_line(error)}); it holds {written} answers: free space there and ask "
                "the rest again."
            ) from error
        written += 1

    try:
        yield write
    finally:
        # A write error that was pending is raised here.
        with suppress(OSError):
            file.close()
        if created and not written:
            place.unlink(missing_ok=True)


def answer_all(
    voices: Mapping[str, Respondent],
    records: Sequence[Record],
    options: GenerationOptions,
    write: Writer,
    *,
    kept: bool = False,
) -> None:
    """Answer records in their order, through `write` and on standard output.

    Answers are written before they are shown, batch by batch, so that a stopped command keeps those that it had.

    Args:
      voices: one respondent, or several to compare, by the heading of its answers.
      records: the prompts.
      options: how answers are sampled.
      write: receives each prompt with its answers as a line of the file.
      kept: whether `write` stores the answers; they are then all generated, even if standard output was closed.

    Raises:
      OSError: standard output could not be written; the stored answers are complete.
    """
    unseen: OSError | None = None
    for start in range(0, len(records), options.generation_batch):
        some = records[start : start + options.generation_batch]
        answers = {name: voice.answer(some, options, first=start) for name, voice in voices.items()}
        said = [{name: completions[index] for name, completions in answers.items()} for index in range(len(some))]
        for record, one in zip(some, said, strict=True):
            write(to_row(voices, record, one))
        try:
            for number, (record, one) in enumerate(zip(some, said, strict=True), start + 1):
                if unseen is None:
                    _show(record, one, number, alone=len(records) == 1)
        except OSError as error:
            unseen = error
            if not kept:
                break
    if unseen is not None:
        raise unseen


def _show(record: Record, said: Mapping[str, Completion], number: int, *, alone: bool) -> None:
    """Print a prompt and its answers; a single answer to a single prompt is printed alone, as suits a pipe."""
    if alone and len(said) == 1:
        show(*(completion.text or "" for completion in said.values()))
        return
    if not alone:
        show(f"--- prompt {number}")
        show("\n".join(part for part in (record.instruction, record.input) if part))
    for name, completion in said.items():
        show(f"--- {name}")
        show(completion.text or "")
    show()


def to_row(voices: Mapping[str, Respondent], record: Record, said: Mapping[str, Completion]) -> dict[str, Any]:
    """A prompt and its answers as a line of the file.

    Args:
      voices: the respondents by their headings.
      record: the prompt.
      said: their answers by the same headings.

    Returns:
      JSON-ready values; answers of several respondents are objects of their own.
    """
    answers = {
        name: {"completion": answer.text, "finish_reason": answer.finish_reason, "tokens": list(answer.tokens)}
        for name, answer in said.items()
    }
    respondent = next(iter(voices.values()))
    asked = {"instruction": record.instruction, "input": record.input, "prompt": respondent.prompt(record)}
    return asked | (answers if len(answers) > 1 else next(iter(answers.values())))


def converse(voices: Mapping[str, Respondent], options: GenerationOptions, write: Writer) -> None:
    """Answer what is typed, line by line; text appears as it is generated; Ctrl-D ends.

    Args:
      voices: the respondents by their headings.
      options: how answers are sampled.
      write: receives each prompt with its answers as a line of the file.
    """
    options = dataclasses.replace(options, tokens_per_look=min(options.tokens_per_look, INTERACTIVE_LOOK))
    complain("Each line is a prompt; Ctrl-D ends.")
    number = 0
    while True:
        try:
            line = input("> ")
        except EOFError:
            show()
            return
        if not line.strip():
            continue
        said = {}
        try:
            record = to_record(line, f"line {number + 1}")
            for name, voice in voices.items():
                if len(voices) > 1:
                    show(f"--- {name}")
                [said[name]] = voice.answer([record], options, first=number, listen=_say)
                show()
        except InputError as error:
            # A prompt that does not fit ends only its own answer, not the conversation.
            complain(f"devft: {error}")
            continue
        write(to_row(voices, record, said))
        number += 1


def _say(index: int, text: str) -> None:
    show(text, end="")
