"""Questions and answers in FastChat's layouts: what is read of them, and which line is wrong."""

import json

import pytest

from devft_jax.errors import InputError
from devft_jax.judging.questions import Answers, Question, check_answers, read_answers, read_questions
from tests.judging.files import QUESTIONS, answer_rows, write_benchmark, write_lines


def test_questions_keep_their_places_and_a_limit_is_of_each_category(tmp_path):
    path = write_benchmark(tmp_path)
    questions = read_questions(path)
    assert questions[2] == Question(111, "math", ("1 2", "3"), 2)
    assert questions[2].needs_reference
    assert not questions[0].needs_reference
    assert [(each.id, each.number) for each in read_questions(path, 1)] == [(81, 0), (111, 2)]


@pytest.mark.parametrize(("name", "turns", "references"), [("mt-bench", 2, 30), ("vicuna-bench", 1, 10)])
def test_the_originals_are_read(shared, name, turns, references):
    folder = shared / "data" / "benchmarks" / name
    questions = read_questions(folder / "question.jsonl")
    assert len(questions) == 80
    assert {len(each.turns) for each in questions} == {turns}
    answers = read_answers(folder / "reference_answer_gpt-4.jsonl")
    assert len(answers.turns) == references
    check_answers(answers, [each for each in questions if each.needs_reference], "none")


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        (
            {"category": "writing", "turns": ["a"]},
            ":2 has no question_id that is a number or a name (it has category, turns)",
        ),
        ({"question_id": True, "turns": ["a"]}, ":2 has no question_id that is a number or a name"),
        ({"question_id": 9}, ":2 has no list of texts called turns"),
        ({"question_id": 9, "turns": []}, ":2 has no list of texts called turns"),
        ({"question_id": 9, "turns": ["a", 3]}, ":2 has no list of texts called turns"),
        ({"question_id": 9, "turns": ["a", "b", "c"]}, ":2 has 3 turns, and judge prompts are for 2 at most"),
        ({"question_id": 9, "turns": ["a"], "category": 3}, ":2 has a category that is no text"),
        ({"question_id": 81, "turns": ["a"]}, ":2 has question_id 81 again"),
    ],
)
def test_a_wrong_question_is_named_by_its_line(tmp_path, row, sentence):
    path = write_lines(tmp_path / "question.jsonl", [QUESTIONS[0], row])
    with pytest.raises(InputError) as caught:
        read_questions(path)
    assert sentence in str(caught.value)


def test_a_file_without_a_question_says_so(tmp_path):
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(InputError, match="holds no question"):
        read_questions(tmp_path / "empty")
    with pytest.raises(InputError, match=r"the questions .*absent cannot be read"):
        read_questions(tmp_path / "absent")


def test_answers_of_another_program_are_read_the_last_of_a_question_counts(tmp_path):
    rows = answer_rows("vicuna-7b")
    rows.append(rows[0] | {"choices": [{"index": 0, "turns": ["x", "y"]}, {"index": 1, "turns": ["no"]}]})
    answers = read_answers(write_lines(tmp_path / "a.jsonl", rows))
    assert answers.model == "vicuna-7b"
    assert answers.turns[81] == ("x", "y")
    check_answers(answers, read_questions(write_benchmark(tmp_path / "b")), "none")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"model_id": None}, ":2 has no model_id"),
        ({"model_id": "other"}, ":2 is of the model 'other' and the lines before of 'm'"),
        ({"choices": []}, ":2 has no choices (it has question_id, answer_id, model_id, choices, tstamp); write answers as"),
        ({"choices": [{"turns": "text"}]}, ":2 has no list of texts called turns"),
    ],
)
def test_a_wrong_answer_is_named_by_its_line(tmp_path, change, sentence):
    rows = answer_rows("m")
    rows[1] |= change
    with pytest.raises(InputError) as caught:
        read_answers(write_lines(tmp_path / "a.jsonl", rows))
    assert sentence in str(caught.value)


def test_missing_answers_are_named():
    questions = [Question(row["question_id"], row["category"], tuple(row["turns"])) for row in QUESTIONS]
    turns = {row["question_id"]: tuple(row["turns"]) for row in QUESTIONS}
    del turns[81]
    with pytest.raises(InputError, match=r"a\.jsonl has no answer to question 81 \(writing\); add it\."):
        check_answers(Answers("m", turns, "a.jsonl"), questions, "add it")
    turns[111] = ("only one",)
    with pytest.raises(InputError, match=r"question 81 \(writing\) and 1 more"):
        check_answers(Answers("m", turns, "a.jsonl"), questions, "add it")
    turns[81] = ("both", "turns")
    with pytest.raises(InputError, match=r"no answer to turn 2 of question 111 \(math\)"):
        check_answers(Answers("m", turns, "a.jsonl"), questions, "add it")


def test_a_broken_line_is_named(tmp_path):
    path = tmp_path / "question.jsonl"
    path.write_text(json.dumps(QUESTIONS[0]) + '\n{"question_id": 82, "turns": ["a"')
    with pytest.raises(InputError, match=r"question.jsonl:2 is not valid JSON"):
        read_questions(path)
