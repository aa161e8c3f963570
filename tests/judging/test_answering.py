"""Answers to questions: conversations worded as in training, answers that do not depend on batches, stops and kills."""

import json
import signal

import pytest

from devft_jax.data.encoding import prompt_tokens
from devft_jax.errors import InputError
from devft_jax.inference.options import ModelOptions
from devft_jax.inference.prompts import to_record
from devft_jax.inference.respondent import open_respondent
from devft_jax.judging.answering import Asked, answer_questions, conversation_tokens
from devft_jax.judging.lines import GrowingLines
from devft_jax.judging.options import AnswerOptions
from devft_jax.judging.questions import Question, read_answers, read_questions
from devft_jax.models.generation.options import GenerationOptions
from devft_jax.reporting import Progress
from devft_jax.runtime.stopping import Stopped, StopRequest
from tests.inference.folders import write_folders
from tests.judging.files import write_benchmark

QUIET = Progress(quiet=True)


@pytest.fixture(scope="module")
def respondent(tmp_path_factory, word_tokenizer):
    folders = write_folders(tmp_path_factory.mktemp("folders"), word_tokenizer)
    return open_respondent(folders["run"], ModelOptions())


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    return read_questions(write_benchmark(tmp_path_factory.mktemp("bench")))


def answered(respondent, questions, path, stop=None, progress=QUIET, **options):
    asked = Asked.of("tuned", respondent, AnswerOptions(**{"max_new_tokens": 6} | options))
    return answer_questions(asked, questions, GrowingLines(path), progress, stop or StopRequest())


def test_a_second_turn_follows_the_models_own_answer(respondent, questions, tmp_path):
    """Turn by turn what `generate` says of the conversation, whose answers end as in training."""
    found = answered(respondent, questions, tmp_path / "a.jsonl")
    question = questions[0]
    first = respondent.answer([to_record(question.turns[0], "x")], GenerationOptions(max_new_tokens=6))[0].text.strip()
    assert found.turns[81][0] == first
    tokenizer = respondent.model.tokenizer
    before = prompt_tokens(to_record(question.turns[0], "x"), tokenizer, "completion")
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (first, f"\n{question.turns[1]}")]
    assert conversation_tokens(respondent, question, [first]) == [*before, *ids[0], tokenizer.eos_token_id, *ids[1]]
    assert len(found.turns[81]) == 2
    assert len(found.turns[112]) == 1


def test_answers_are_lines_as_fastchat_writes_them_and_read_by_others(respondent, questions, tmp_path):
    found = answered(respondent, questions, tmp_path / "a.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert all(list(row) == ["question_id", "answer_id", "model_id", "choices", "tstamp"] for row in rows)
    assert {row["question_id"]: tuple(row["choices"][0]["turns"]) for row in rows} == found.turns
    assert read_answers(tmp_path / "a.jsonl").turns == found.turns


@pytest.mark.parametrize("temperatures", ["greedy", "fastchat"])
def test_no_answer_depends_on_its_batch_or_on_a_kill(respondent, questions, tmp_path, temperatures):
    options = {"temperatures": temperatures, "sampling_seed": 3}
    whole = answered(respondent, questions, tmp_path / "a.jsonl", **options)
    assert answered(respondent, questions, tmp_path / "b.jsonl", generation_batch=1, **options).turns == whole.turns
    content = (tmp_path / "a.jsonl").read_bytes()
    (tmp_path / "c.jsonl").write_bytes(content[: len(content) // 2])
    kept = (tmp_path / "c.jsonl").read_bytes().count(b"\n")
    assert 0 < kept < len(questions)
    assert answered(respondent, questions, tmp_path / "c.jsonl", **options).turns == whole.turns
    assert len((tmp_path / "c.jsonl").read_text().splitlines()) == len(questions)


def test_what_is_answered_is_not_asked_again(respondent, questions, tmp_path, monkeypatch):
    answered(respondent, questions[:2], tmp_path / "a.jsonl")
    before = (tmp_path / "a.jsonl").read_bytes()
    monkeypatch.setattr("devft_jax.judging.answering.generate", None)
    assert answered(respondent, questions[:2], tmp_path / "a.jsonl", sampling_seed=9, generation_batch=1).turns.keys() == {
        81,
        82,
    }
    assert (tmp_path / "a.jsonl").read_bytes() == before


@pytest.mark.parametrize("change", ["model", "option", "question"])
def test_answers_that_something_else_gave_are_not_taken(respondent, questions, tmp_path, change):
    answered(respondent, questions[:1], tmp_path / "a.jsonl")
    options = {"max_new_tokens": 5} if change == "option" else {}
    other = [Question(81, "writing", ("other", "c"))] if change == "question" else questions[:1]
    with pytest.raises(
        InputError, match=r"a.jsonl:1 answers question 81 as 'tuned' with another model, template, option or"
    ):
        answered(respondent.bare if change == "model" else respondent, other, tmp_path / "a.jsonl", **options)


def test_a_conversation_that_fills_the_model_has_an_empty_answer(respondent, tmp_path, capsys):
    """The model reads 64 tokens: an answer takes what is left, the next turn has no room."""
    long = [Question(1, "writing", (" ".join("a" * 59), "b")), Question(2, "writing", (" ".join("a" * 80),))]
    found = answered(respondent, long, tmp_path / "a.jsonl", progress=Progress(quiet=True), max_new_tokens=100)
    assert found.turns[2] == ("",)
    assert found.turns[1][1] == ""
    tokens = respondent.model.tokenizer(found.turns[1][0], add_special_tokens=False)["input_ids"]
    assert 0 < len(tokens) <= 4
    assert "tuned has no answer to 2 turns (the first of question" in capsys.readouterr().err


def test_a_stop_ends_after_a_batch(respondent, questions, tmp_path):
    request = StopRequest()
    request.signal = signal.SIGINT
    with pytest.raises(Stopped):
        answered(respondent, questions, tmp_path / "a.jsonl", stop=request, generation_batch=2)
    assert len((tmp_path / "a.jsonl").read_text().splitlines()) == 2


def test_temperatures_are_greedy_or_fastchats():
    options = AnswerOptions(temperatures="fastchat")
    shown = {name: options.temperature(name) for name in ("writing", "math", "stem", "fermi")}
    assert shown == {"writing": 0.7, "math": 0.0, "stem": 0.1, "fermi": 0.7}
    assert AnswerOptions().temperature("writing") == 0
