"""What `devft judge` is asked to do, read and checked before a model is loaded or a judge is asked."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from devft_jax.errors import InputError
from devft_jax.files import checked_path, printable
from devft_jax.inference.options import ModelOptions, SelectionOptions
from devft_jax.inference.respondent import Respondent, open_respondent
from devft_jax.judging.cases import Judge, Mode
from devft_jax.judging.endpoint import Endpoint
from devft_jax.judging.options import AnswerOptions, AskedOptions, EndpointOptions, JudgeOptions, OpeningOptions
from devft_jax.judging.own import own_judge
from devft_jax.judging.prompts import JudgePrompt, check_prompts, check_references, read_judge_prompts
from devft_jax.judging.questions import Answers, Question, check_answers, read_answers, read_questions
from devft_jax.options import check_options, closest
from devft_jax.reporting import Progress
from devft_jax.training.stored_runs import Kind, kind_of

ANSWERS_ENDING = ".jsonl"
"""Of a file of answers, which tells it from a model."""

PROMPTS_FILE, REFERENCES_FILE = "judge_prompts.jsonl", "reference_answer_gpt-4.jsonl"
"""What is read beside the questions where no file is named."""

AT_AN_ENDPOINT, IN_PYTHON = 4, 1
"""Number of judgements at once, by default."""

_FILE_NAME = re.compile(r"[^\W_][\w.,@+= -]*")


@dataclass(frozen=True)
class Source:
    """A model whose answers are judged.

    Attributes:
      name: in tables and files.
      what: as it was given: what `open_respondent` opens, or a file of answers.
      answers: what the file holds; None where the model is asked.
    """

    name: str
    what: str
    answers: Answers | None


@dataclass(frozen=True)
class Judging:
    """A judge and what it needs.

    Attributes:
      judge: that is asked.
      name: in tables and files.
      modes: in which it judges.
      prompts: by name; None for a user-defined judge without a file of them.
      references: reference answers, where there are any.
      concurrency: maximum number of judgements at once.
      endpoint: the judge, where it is an endpoint.
    """

    judge: Judge
    name: str
    modes: Sequence[Mode]
    prompts: Mapping[str, JudgePrompt] | None
    references: Answers | None
    concurrency: int
    endpoint: Endpoint | None


@dataclass(frozen=True)
class Request:
    """All that is asked for.

    Attributes:
      questions: that are answered.
      sources: the models.
      baseline: name of the model that the others are compared with.
      judging: who judges; None where questions are only answered.
    """

    questions: Sequence[Question]
    sources: Sequence[Source]
    baseline: str
    judging: Judging | None


def check_request(
    what: Sequence[str],
    asked: AskedOptions,
    selection: SelectionOptions,
    opening: OpeningOptions,
    answering: AnswerOptions,
    judging: JudgeOptions,
    endpoint: EndpointOptions,
    progress: Progress,
) -> Request:
    """Read the files of a request and check all of it that can be checked without a model.

    Args:
      what: the models, and files of answers.
      asked: questions, names and the folder.
      selection: which models of runs, and which base.
      opening: how models are opened.
      answering: how answers are sampled.
      judging: who judges, and how.
      endpoint: where.
      progress: where an endpoint says that it is asked again.

    Raises:
      InputError: the first thing that is wrong.
    """
    for options in (asked, selection, opening, answering, judging, endpoint):
        check_options(options)
    if "" in answering.stop:
        raise InputError("stop holds an empty text, which every answer begins with; leave it out.")
    questions_file = checked_path(asked.questions, "questions")
    questions = read_questions(questions_file, asked.limit)
    sources = _sources(what, asked.names, questions)
    names = [source.name for source in sources]
    _check_selection(sources, selection)
    if judging.mode != "single" and len(sources) < 2:
        raise InputError(f"mode {judging.mode} compares models and there is one; name two or more, or use single.")
    if judging.baseline is not None and judging.baseline not in names:
        hint = closest(judging.baseline, names, f"choose from {', '.join(names)}.")
        raise InputError(f"baseline '{printable(judging.baseline)}' is none of the models; {hint}")
    return Request(
        questions,
        sources,
        judging.baseline or names[0],
        _judging(judging, endpoint, questions_file, questions, progress),
    )


def _sources(what: Sequence[str], names: Sequence[str] | None, questions: Sequence[Question]) -> list[Source]:
    """The models with their names, answers of files read."""
    if names is not None and len(names) != len(what):
        raise InputError(f"names gives {len(names)} names to {len(what)} models; give one to each.")
    found: list[Source] = []
    for number, one in enumerate(what):
        path = checked_path(one, "what")
        answers = read_answers(path) if one.endswith(ANSWERS_ENDING) else None
        if answers is not None:
            check_answers(answers, questions, "add it, or judge other questions")
        usual = path.absolute().name if answers is None else answers.model
        name = usual if names is None else names[number]
        if not _FILE_NAME.fullmatch(name) or len(name) > 100:
            raise InputError(
                f"the name '{printable(name)}' is no name of a file; give others with --names, such as base,tuned."
            )
        if name in [other.name for other in found]:
            raise InputError(f"two models are called '{name}'; give each a name of its own with --names.")
        found.append(Source(name, one, None if answers is None else Answers(name, answers.turns, answers.place)))
    return found


SELECTED: dict[str, tuple[Kind, ...]] = {
    "stage": ("run",),
    "round": ("run",),
    "client": ("run",),
    "model": ("run", "adapter"),
}
"""The kinds of sources that an option of selection is for."""


def _check_selection(sources: Sequence[Source], selection: SelectionOptions) -> None:
    """Raise `InputError` for an option of selection that is for none of the models."""
    kinds = {kind_of(checked_path(source.what, "what")) for source in sources if source.answers is None}
    for name, of in SELECTED.items():
        value = getattr(selection, name)
        if value is not None and not kinds & set(of):
            raise InputError(
                f"{name} {printable(str(value))} is for {' and '.join(f'{kind}s' for kind in of)}, and none of the "
                "models is one; leave it out."
            )


def open_source(source: Source, selection: SelectionOptions, opening: OpeningOptions) -> Respondent:
    """Load a model that is asked.

    Args:
      source: that has no answers yet.
      selection: which of its models, and which base; what is for other kinds of sources is left out.
      opening: how it is opened.

    Raises:
      InputError: it cannot be opened, or has neither a chat template nor one of its run.
    """
    kind = kind_of(checked_path(source.what, "what"))
    chosen = SelectionOptions(**{name: getattr(selection, name) for name, of in SELECTED.items() if kind in of})
    # A run's conversations are worded as in its training; of other models nothing is known but their chat template.
    template = opening.template or (None if kind == "run" else "chat")
    options = ModelOptions(template=template, quantization=opening.quantization, dtype=opening.dtype)
    try:
        return open_respondent(source.what, options, chosen)
    except InputError as error:
        if opening.template is None and kind != "run" and "chat template" in str(error):
            raise InputError(
                f"{printable(source.what)} has no chat template that words a conversation, and is no run that has a "
                "template of its own; give the one that it was trained with, such as --template alpaca."
            ) from error
        raise


def _judging(
    options: JudgeOptions, endpoint: EndpointOptions, questions_file: Path, questions: Sequence[Question], progress: Progress
) -> Judging | None:
    """The judge with its prompts and references; None where there is none."""
    if options.judge is not None and endpoint.endpoint is not None:
        raise InputError("judge and endpoint are two judges; give one of them.")
    if options.judge is None and endpoint.endpoint is None:
        if endpoint.judge_model is not None:
            raise InputError(
                f"judge_model {printable(endpoint.judge_model)} belongs to an endpoint; give its address with --endpoint."
            )
        return None
    prompts_file = _beside(options.judge_prompts, "judge_prompts", questions_file, PROMPTS_FILE)
    if prompts_file is None and endpoint.endpoint is not None:
        raise InputError(
            f"endpoint needs the judge's prompts, and there is no {PROMPTS_FILE} beside the questions; name FastChat's with "
            "--judge-prompts."
        )
    references_file = _beside(options.references, "references", questions_file, REFERENCES_FILE)
    references = None if references_file is None else read_answers(references_file, "the reference answers")
    modes: list[Mode] = ["single", "pairwise"] if options.mode == "both" else [options.mode]
    prompts = None
    if prompts_file is not None:
        prompts = read_judge_prompts(prompts_file)
        check_prompts(prompts, modes, questions, prompts_file)
        check_references(references, questions)
    if options.judge is not None:
        judge = own_judge(options.judge)
        return Judging(judge, options.judge, modes, prompts, references, options.concurrency or IN_PYTHON, None)
    asked = Endpoint(endpoint, progress.say)
    concurrency = options.concurrency or AT_AN_ENDPOINT
    return Judging(asked, str(endpoint.judge_model), modes, prompts, references, concurrency, asked)


def _beside(given: str | None, field: str, questions: Path, name: str) -> Path | None:
    """The file that an option names, or the one of a usual name beside the questions; None where there is neither."""
    if given is not None:
        return checked_path(given, field)
    usual = questions.parent / name
    return usual if usual.is_file() else None
