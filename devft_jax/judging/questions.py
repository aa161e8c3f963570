"""The questions of a benchmark and their reference answers, from FastChat's files.

A line of questions is `{"question_id", "category", "turns": [...]}`; a line of answers, of references too, is
`{"question_id", "answer_id", "model_id", "choices": [{"index", "turns": [...]}], "tstamp"}`.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from devft_jax.errors import InputError
from devft_jax.judging.lines import read_lines

MOST_TURNS = 2
"""Of a question: FastChat's judge prompts are for one or two."""

WITH_REFERENCE = ("math", "reasoning", "coding", "arena-hard-200")
"""Categories that are judged beside a reference answer (FastChat's NEED_REF_CATS)."""

Id = int | str
"""Of a question."""


@dataclass(frozen=True)
class Question:
    """An open question, with one that follows it where there are two turns.

    Attributes:
      id: its number or name in the file.
      category: kind of question, such as writing.
      turns: what the user says, one or two texts.
      number: its place in the file, from 0.
    """

    id: Id
    category: str
    turns: tuple[str, ...]
    number: int = 0

    @property
    def needs_reference(self) -> bool:
        """Whether it is judged beside a reference answer."""
        return self.category in WITH_REFERENCE


@dataclass(frozen=True)
class Answers:
    """What one model answered.

    Attributes:
      model: its name.
      turns: its answers by the question's id, a text for each turn.
      place: where they were read or written, for messages.
    """

    model: str
    turns: Mapping[Id, tuple[str, ...]]
    place: str = ""


def read_questions(path: Path, limit: int | None = None) -> list[Question]:
    """The questions of a file.

    Args:
      path: of the file, JSON lines.
      limit: most questions of each category, the first ones; None for all.

    Raises:
      InputError: the file cannot be read, a line is no question, or two have one id; names the line.
    """
    found: dict[Id, Question] = {}
    for number, (where, row) in enumerate(read_lines(path, "the questions")):
        question = Question(question_id(row, where), _category(row, where), _texts(row, "turns", where), number)
        if len(question.turns) > MOST_TURNS:
            raise InputError(
                f"{where} has {len(question.turns)} turns, and judge prompts are for {MOST_TURNS} at most; leave the "
                "others out."
            )
        if question.id in found:
            raise InputError(f"{where} has question_id {question.id} again; give every question an id of its own.")
        found[question.id] = question
    if not found:
        raise InputError(f"questions {path} holds no question; name a file such as FastChat's question.jsonl.")
    taken: Counter[str] = Counter()
    kept = []
    for question in found.values():
        taken[question.category] += 1
        if limit is None or taken[question.category] <= limit:
            kept.append(question)
    return kept


def question_id(row: Mapping[str, Any], where: str) -> Id:
    """The id of the question that a line is about.

    Args:
      row: the line.
      where: it stands, for the sentence.

    Raises:
      InputError: it has none.
    """
    found = row.get("question_id")
    if isinstance(found, bool) or not isinstance(found, int | str) or found == "":
        raise InputError(f"{where} has no question_id that is a number or a name (it has {_names(row)}); add it.")
    return found


def _names(row: Mapping[str, Any]) -> str:
    return ", ".join(row) or "nothing"


def _category(row: Mapping[str, Any], where: str) -> str:
    found = row.get("category", "general")
    if not isinstance(found, str) or not found:
        raise InputError(f"{where} has a category that is no text; write a name such as writing.")
    return found


def _texts(row: Mapping[str, Any], name: str, where: str) -> tuple[str, ...]:
    found = row.get(name)
    if not isinstance(found, list) or not found or not all(isinstance(text, str) for text in found):
        raise InputError(f"{where} has no list of texts called {name} (it has {_names(row)}); correct the line.")
    return tuple(found)


def answer_of(row: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """The texts of a line of answers, those of its first choice.

    Args:
      row: the line.
      where: it stands, for the sentence.

    Raises:
      InputError: it has none.
    """
    choices = row.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise InputError(
            f"{where} has no choices (it has {_names(row)}); write answers as "
            '{"question_id": ..., "model_id": ..., "choices": [{"index": 0, "turns": [...]}]}.'
        )
    return _texts(choices[0], "turns", where)


def read_answers(path: Path, what: str = "the answers") -> Answers:
    """The answers of a file of FastChat's layout, whichever program wrote it; of several lines of a question the last.

    Args:
      path: of the file.
      what: it holds, for the sentences.

    Raises:
      InputError: the file cannot be read, a line is no answer, or its lines are of several models; names the line.
    """
    turns: dict[Id, tuple[str, ...]] = {}
    model = ""
    for where, row in read_lines(path, what):
        name = row.get("model_id")
        if not isinstance(name, str) or not name:
            raise InputError(f"{where} has no model_id (it has {_names(row)}); add the name of the model that answered.")
        if model and name != model:
            raise InputError(f"{where} is of the model '{name}' and the lines before of '{model}'; give a file to each.")
        model = name
        turns[question_id(row, where)] = answer_of(row, where)
    if not turns:
        raise InputError(f"{path} holds no answer; name a file of answers in FastChat's layout.")
    return Answers(model, turns, str(path))


def check_answers(answers: Answers, questions: Sequence[Question], remedy: str) -> None:
    """Check that there is an answer to every turn of every question.

    Args:
      answers: of one model.
      questions: that are judged.
      remedy: how the sentence ends.

    Raises:
      InputError: one is missing; names the first.
    """
    missing = [each for each in questions if len(answers.turns.get(each.id, ())) < len(each.turns)]
    if not missing:
        return
    first = missing[0]
    begun = answers.turns.get(first.id, ())
    what = f"turn {len(begun) + 1} of question {first.id}" if begun else f"question {first.id}"
    others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
    raise InputError(f"{answers.place} has no answer to {what} ({first.category}){others}; {remedy}.")
