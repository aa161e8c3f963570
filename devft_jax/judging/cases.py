"""What a judge is asked, and what it says: the interface of every judge, an endpoint or your own function.

A judge of your own is a function of a `Case` that returns text with a verdict in FastChat's form, or a number where one
answer is rated:

    def my_judge(case):
        return 10 if case.question.turns[case.turn - 1] in case.answers[0][case.turn - 1] else 1

It is named by its import path, `--judge my_module:my_judge`.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from devft_jax.judging.questions import Question

Mode = Literal["single", "pairwise"]
"""One answer rated from 1 to 10, or two answers compared."""

LOWEST, HIGHEST = 1.0, 10.0
"""Ends of the scale of ratings."""

# FastChat's patterns; the second where a judge forgets one pair of brackets.
_RATINGS = (re.compile(r"\[\[(\d+\.?\d*)\]\]"), re.compile(r"\[(\d+\.?\d*)\]"))
_WINNER = re.compile(r"\[\[([ABC])\]\]")


@dataclass(frozen=True)
class Case:
    """What a judge is asked once.

    Attributes:
      mode: "single", one answer rated, or "pairwise", two compared.
      question: what was asked.
      turn: which turn of it is judged, 1 or 2.
      answers: a model's answers to the turns up to this one; of two models in the order in which the judge sees them.
      reference: answers to compare with, a text for each turn; None where there are none.
      prompt_name: of the judge prompt; empty where no file of prompts was given.
      system_prompt: the judge prompt's system text.
      user_prompt: the judge prompt with question and answers filled in.
    """

    mode: Mode
    question: Question
    turn: int
    answers: tuple[tuple[str, ...], ...]
    reference: tuple[str, ...] | None = None
    prompt_name: str = ""
    system_prompt: str = ""
    user_prompt: str = ""


@dataclass(frozen=True)
class Reply:
    """What a judge said once.

    Attributes:
      text: the judgement, verdict included.
      prompt_tokens: tokens that it was given; None where it does not count them.
      completion_tokens: tokens that it wrote; None where it does not count them.
      refused: why an endpoint would not judge this case; None where it did.
    """

    text: str
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    refused: str | None = None


class Abandoned(Exception):  # noqa: N818
    """A judge was asked to end, so that the next attempt of a request is not waited for."""


Judge = Callable[[Case], Reply]
"""Anything that judges; called from several threads where the concurrency is above 1."""

Winner = Literal["A", "B", "tie"]


def rating_of(text: str) -> float | None:
    """The rating in a judgement, such as 7 in "Rating: [[7]]".

    Args:
      text: of the judgement.

    Returns:
      A number from 1 to 10; None where there is none, one outside the scale, or several that differ.
    """
    for pattern in _RATINGS:
        found = {float(number) for number in pattern.findall(text)}
        if found:
            rating = found.pop()
            return rating if not found and LOWEST <= rating <= HIGHEST else None
    return None


def winner_of(text: str) -> Winner | None:
    """The better answer in a judgement: [[A]], [[B]], or [[C]] for a tie.

    Args:
      text: of the judgement.

    Returns:
      "A", "B" or "tie"; None where there is no verdict, or several that differ.
    """
    names: dict[str, Winner] = {"A": "A", "B": "B", "C": "tie"}
    found = set(_WINNER.findall(text))
    return names[found.pop()] if len(found) == 1 else None


def is_readable(case: Case, text: str) -> bool:
    """Whether a judgement has a verdict of the kind that a case asks for.

    Args:
      case: what was asked.
      text: of the judgement.
    """
    return (rating_of(text) if case.mode == "single" else winner_of(text)) is not None
