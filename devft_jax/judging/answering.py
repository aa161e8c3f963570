"""A model's answers to a benchmark's questions, batch by batch, all turns of a question in one conversation.

Conversations are formatted as in training: the user's turn, the model's own answer with what ends it, the next turn. Answers
are lines of FastChat's answer file. A line's `answer_id` is a digest of everything that decides its answer (model, adapter,
template, options, question), so that a question whose answer is there is not asked again, and one that something else
answered is noticed.
"""

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from devft_jax.data import Record
from devft_jax.data.encoding import prompt_tokens
from devft_jax.data.records import Turn
from devft_jax.errors import InputError
from devft_jax.harness.identity import model_identity
from devft_jax.harness.meter import Meter
from devft_jax.inference.respondent import Respondent
from devft_jax.judging.lines import GrowingLines
from devft_jax.judging.options import AnswerOptions
from devft_jax.judging.questions import MOST_TURNS, Answers, Id, Question, answer_of, question_id
from devft_jax.models.generation.generate import generate
from devft_jax.options import identity_fields
from devft_jax.reporting import Progress
from devft_jax.runtime.stopping import StopRequest

ID_LENGTH = 22
"""Characters of an answer's id, as FastChat's have."""


@dataclass(frozen=True)
class Asked:
    """A model that answers, with the options of its answers.

    Attributes:
      name: of the model.
      respondent: the model.
      options: how answers are sampled.
      digest: of the model and its adapter, with its template and what ends its answers.
    """

    name: str
    respondent: Respondent
    options: AnswerOptions
    digest: str

    @classmethod
    def of(cls, name: str, respondent: Respondent, options: AnswerOptions) -> "Asked":
        """The model with its digest.

        Args:
          name: of the model.
          respondent: the model.
          options: how answers are sampled.
        """
        model = respondent.model
        identity = model_identity(model.config, model.base, respondent.adapter, respondent.compute)
        return cls(name, respondent, options, json.dumps([identity, respondent.template, list(respondent.eos_ids)]))

    def answer_id(self, question: Question) -> str:
        """The id of this model's answer to a question.

        Args:
          question: that is asked.
        """
        options = identity_fields(self.options)
        if self.options.temperature(question.category) == 0:
            options.pop("sampling_seed")
        options["temperatures"] = self.options.temperature(question.category)
        parts = [self.digest, options, question.category, question.turns]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:ID_LENGTH]


def answer_questions(
    asked: Asked, questions: Sequence[Question], file: GrowingLines, progress: Progress, stop: StopRequest
) -> Answers:
    """A model's answers to all questions; those that the file has are not generated again.

    Args:
      asked: the model.
      questions: all of them.
      file: of this model's answers.
      progress: shows how much is done, and what did not fit.
      stop: asks for an end after a batch.

    Returns:
      The answers.

    Raises:
      InputError: the file holds answers that something else gave, or a question cannot be asked.
      Stopped: a stop was requested; what was answered is in the file.
    """
    known = _known(asked, questions, file)
    missing = [question for question in questions if question.id not in known]
    meter = Meter(progress, f"answers of {asked.name}", len(questions), len(questions) - len(missing))
    finished = 0
    cut: list[Id] = []
    for batch in _batches(asked, missing):
        for question, texts in zip(batch, _answered(asked, batch, cut), strict=True):
            file.append(_row(asked, question, texts))
            known[question.id] = tuple(texts)
        finished += len(batch)
        meter.advance(len(batch), finished / len(missing))
        stop.check()
    if cut:
        progress.warn(
            f"{asked.name} has no answer to {len(cut)} turns (the first of question {cut[0]}), because the conversation "
            f"fills its {asked.respondent.model.config.max_length} tokens; they are judged as empty answers."
        )
    return Answers(asked.name, known, str(file.path))


def _known(asked: Asked, questions: Sequence[Question], file: GrowingLines) -> dict[Id, tuple[str, ...]]:
    """The answers that are in the file, of the questions that are asked."""
    wanted = {question.id: question for question in questions}
    found: dict[Id, tuple[str, ...]] = {}
    for where, row in file.read():
        question = wanted.get(question_id(row, where))
        if question is None:
            continue
        if row.get("answer_id") != asked.answer_id(question):
            raise InputError(
                f"{where} answers question {question.id} as '{asked.name}' with another model, template, option or "
                "wording of the question; name another out, or give this model another name with --names."
            )
        found[question.id] = answer_of(row, where)
    return found


def _batches(asked: Asked, questions: Sequence[Question]) -> list[list[Question]]:
    """Questions that are asked together: of one temperature, similar in length."""
    options = asked.options
    ordered = sorted(questions, key=lambda each: (options.temperature(each.category), len(each.turns), len(each.turns[0])))
    batches: list[list[Question]] = []
    for question in ordered:
        last = batches[-1] if batches else []
        alike = last and options.temperature(last[0].category) == options.temperature(question.category)
        if alike and len(last) < options.generation_batch:
            last.append(question)
        else:
            batches.append([question])
    return batches


def _answered(asked: Asked, batch: Sequence[Question], cut: list[Id]) -> list[list[str]]:
    """The answers to all turns of a batch; an empty one where the conversation fills the model, noted in `cut`."""
    said: list[list[str]] = [[] for _ in batch]
    config = asked.respondent.model.config
    for turn in range(MOST_TURNS):
        places = [place for place, question in enumerate(batch) if turn < len(question.turns)]
        prompts = {place: conversation_tokens(asked.respondent, batch[place], said[place]) for place in places}
        fitting = [place for place in places if len(prompts[place]) < config.max_length]
        texts = dict.fromkeys(places, "")
        cut += [batch[place].id for place in places if place not in fitting]
        if fitting:
            some = [prompts[place] for place in fitting]
            numbers = [batch[place].number * MOST_TURNS + turn for place in fitting]
            texts |= zip(fitting, _generated(asked, batch[0].category, some, numbers), strict=True)
        for place in places:
            said[place].append(texts[place])
    return said


def _generated(asked: Asked, category: str, prompts: Sequence[Sequence[int]], numbers: Sequence[int]) -> list[str]:
    respondent, most = asked.respondent, asked.options.max_new_tokens
    room = respondent.model.config.max_length
    completions = generate(
        respondent.model.config,
        respondent.model.base,
        respondent.adapter,
        prompts,
        # The limits below decide; so many fit behind every prompt.
        options=replace(asked.options.generation(category), max_new_tokens="auto"),
        eos_ids=respondent.eos_ids,
        tokenizer=respondent.model.tokenizer,
        compute=respondent.compute,
        row_ids=numbers,
        limits=[min(most, room - len(prompt)) for prompt in prompts],
    )
    return [(completion.text or "").strip() for completion in completions]


def conversation_tokens(respondent: Respondent, question: Question, said: Sequence[str]) -> list[int]:
    """The tokens of a conversation that asks for the next answer.

    Args:
      respondent: the model that is asked.
      question: its turns are the user's.
      said: the answers so far.
    """
    turns = []
    for asked, answer in zip(question.turns, [*said, ""], strict=False):
        turns += [Turn("user", asked), Turn("assistant", answer)]
    record = Record.of_turns(turns, question.category, f"question {question.id}")
    return prompt_tokens(record, respondent.model.tokenizer, respondent.template)


def _row(asked: Asked, question: Question, texts: Sequence[str]) -> dict[str, Any]:
    return {
        "question_id": question.id,
        "answer_id": asked.answer_id(question),
        "model_id": asked.name,
        "choices": [{"index": 0, "turns": list(texts)}],
        "tstamp": time.time(),
    }
