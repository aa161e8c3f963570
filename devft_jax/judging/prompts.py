"""The judge's prompts: which one a turn of a question needs, and question and answers filled into it.

    {"name": "single-v1", "type": "single", "system_prompt": ..., "prompt_template": "... {question} ... {answer} ..."}

is a line of FastChat's judge_prompts.jsonl. Questions of math, reasoning and coding are judged beside a reference answer;
the second turn of a question is judged with the whole conversation before the judge.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Formatter

from devft_jax.errors import InputError
from devft_jax.files import printable
from devft_jax.judging.cases import Case, Mode
from devft_jax.judging.lines import read_lines
from devft_jax.judging.questions import Answers, Question

NAMES: dict[tuple[Mode, bool, int], str] = {
    ("single", False, 1): "single-v1",
    ("single", True, 1): "single-math-v1",
    ("single", False, 2): "single-v1-multi-turn",
    ("single", True, 2): "single-math-v1-multi-turn",
    ("pairwise", False, 1): "pair-v2",
    ("pairwise", True, 1): "pair-math-v1",
    ("pairwise", False, 2): "pair-v2-multi-turn",
    ("pairwise", True, 2): "pair-math-v1-multi-turn",
}
"""FastChat's prompts by mode, whether there is a reference answer, and turn."""


@dataclass(frozen=True)
class JudgePrompt:
    """A prompt of the judge.

    Attributes:
      name: in its file.
      system: the system text.
      template: the user's text, with places such as {question}.
    """

    name: str
    system: str
    template: str


def _places(mode: Mode, with_reference: bool, turn: int) -> set[str]:
    """The places that such a prompt may have."""
    turns = ("",) if turn == 1 else tuple(f"_{number}" for number in range(1, turn + 1))
    who = ("answer",) if mode == "single" else ("answer_a", "answer_b")
    places = {f"{name}{number}" for name in ("question", *who) for number in turns}
    return places | ({f"ref_answer_{number}" for number in range(1, turn + 1)} if with_reference else set())


def read_judge_prompts(path: Path) -> dict[str, JudgePrompt]:
    """The prompts of a file by their names.

    Args:
      path: of the file, in FastChat's layout.

    Raises:
      InputError: the file cannot be read, or a line is no prompt; names the line.
    """
    found = {}
    for where, row in read_lines(path, "the judge prompts"):
        texts = [row.get(name) for name in ("name", "system_prompt", "prompt_template")]
        if not all(isinstance(text, str) for text in texts):
            raise InputError(f"{where} lacks a text name, system_prompt or prompt_template; add it.")
        name, system, template = map(str, texts)
        found[name] = JudgePrompt(name, system, template)
    return found


def check_prompts(
    prompts: Mapping[str, JudgePrompt], modes: Sequence[Mode], questions: Sequence[Question], path: Path
) -> None:
    """Check that there is a prompt for every turn of every question.

    Args:
      prompts: by name.
      modes: in which questions are judged.
      questions: that are judged.
      path: of the prompts' file, for the sentence.

    Raises:
      InputError: one is missing, or has a place that is not filled.
    """
    for mode in modes:
        for needed in {(each.needs_reference, turn) for each in questions for turn in range(1, len(each.turns) + 1)}:
            name = NAMES[mode, *needed]
            if name not in prompts:
                raise InputError(
                    f"judge_prompts {printable(str(path))} has no prompt '{name}'; add it, as FastChat's "
                    "judge_prompts.jsonl has it."
                )
            allowed = _places(mode, *needed)
            try:
                places = {place for _, place, _, _ in Formatter().parse(prompts[name].template) if place is not None}
            except ValueError as error:
                raise InputError(
                    f"the judge prompt '{name}' in {printable(str(path))} cannot be filled in ({error}); write "
                    f"{{{{ for a brace."
                ) from error
            if not places <= allowed:
                raise InputError(
                    f"the judge prompt '{name}' in {printable(str(path))} has a place {{{sorted(places - allowed)[0]}}}, "
                    f"which is not filled; choose from {', '.join(sorted(allowed))}."
                )


def check_references(references: Answers | None, questions: Sequence[Question]) -> None:
    """Check that every question that is judged beside a reference answer has one.

    Args:
      references: the reference answers; None where there is no file of them.
      questions: that are judged.

    Raises:
      InputError: one is missing; names the first.
    """
    for question in questions:
        known = () if references is None else references.turns.get(question.id, ())
        if question.needs_reference and len(known) < len(question.turns):
            where = "there is no file of them" if references is None else f"{references.place} has none"
            raise InputError(
                f"question {question.id} ({question.category}) is judged beside a reference answer to every turn, and "
                f"{where}; name FastChat's reference_answer file with --references."
            )


def to_case(
    mode: Mode,
    question: Question,
    turn: int,
    answers: Sequence[Sequence[str]],
    references: Answers | None,
    prompts: Mapping[str, JudgePrompt] | None,
) -> Case:
    """What a judge is asked about a turn of a question.

    Args:
      mode: "single" or "pairwise".
      question: what was asked.
      turn: 1 or 2.
      answers: of one model, or of two in the order in which the judge is to see them; a text for each turn of the question.
      references: the reference answers, where there are any.
      prompts: of the judge, by name; None for a judge that needs none.
    """
    given = tuple(tuple(texts[:turn]) for texts in answers)
    reference = None if references is None else references.turns.get(question.id)
    if prompts is None:
        return Case(mode, question, turn, given, reference)
    prompt = prompts[NAMES[mode, question.needs_reference, turn]]
    who = ("answer",) if mode == "single" else ("answer_a", "answer_b")
    said = {"question": question.turns, **dict(zip(who, given, strict=True))}
    numbered = {f"{name}_{number}": text for name, texts in said.items() for number, text in enumerate(texts, 1)}
    numbered |= {f"ref_answer_{number}": text for number, text in enumerate(reference or (), 1)}
    filled = prompt.template.format(**{name: texts[0] for name, texts in said.items()}, **numbered)
    return Case(mode, question, turn, given, reference, prompt.name, prompt.system, filled)
