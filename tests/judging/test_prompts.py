"""The judge's prompts: which is chosen, and what is filled in."""

import json

import pytest

from devft_jax.errors import InputError
from devft_jax.judging.prompts import check_prompts, check_references, read_judge_prompts, to_case
from devft_jax.judging.questions import read_answers, read_questions
from tests.judging.files import write_benchmark, write_lines


@pytest.fixture
def benchmark(tmp_path):
    path = write_benchmark(tmp_path)
    prompts = read_judge_prompts(tmp_path / "judge_prompts.jsonl")
    return read_questions(path), prompts, read_answers(tmp_path / "reference_answer_gpt-4.jsonl")


@pytest.mark.parametrize(
    ("number", "turn", "name", "text"),
    [
        (0, 1, "single-v1", "[Question]\na b\n[Answer]\nx"),
        (0, 2, "single-v1-multi-turn", "a b|x|c|y"),
        (2, 1, "single-math-v1", "[Question]\n1 2\n[Reference]\nreference 1\n[Answer]\nx"),
        (2, 2, "single-math-v1-multi-turn", "reference 1|reference 2|1 2|x|3|y"),
    ],
)
def test_an_answer_is_rated_by_the_prompt_of_its_category_and_turn(benchmark, number, turn, name, text):
    questions, prompts, references = benchmark
    case = to_case("single", questions[number], turn, [("x", "y")], references, prompts)
    assert (case.prompt_name, case.system_prompt, case.user_prompt) == (name, f"system of {name}", text)
    assert case.answers == (("x", "y")[:turn],)


def test_a_pair_is_shown_in_the_order_in_which_it_is_given_whatever_braces_it_holds(benchmark):
    questions, prompts, references = benchmark
    case = to_case("pairwise", questions[0], 1, [("{answer_b}", "y"), ("}{", "z")], references, prompts)
    assert case.user_prompt == "a b\n[A]{answer_b}[/A]\n[B]}{[/B]"
    case = to_case("pairwise", questions[2], 2, [("p", "q"), ("r", "s")], references, prompts)
    assert case.prompt_name == "pair-math-v1-multi-turn"
    assert case.user_prompt == "reference 1|reference 2\n1 2|3\n[A]p|q[/A]\n[B]r|s[/B]"


def test_fastchats_prompts_fit_both_benchmarks(shared):
    folder = shared / "data" / "benchmarks"
    path = folder / "mt-bench" / "judge_prompts.jsonl"
    prompts = read_judge_prompts(path)
    for name in ("mt-bench", "vicuna-bench"):
        questions = read_questions(folder / name / "question.jsonl")
        references = read_answers(folder / name / "reference_answer_gpt-4.jsonl")
        check_prompts(prompts, ("single", "pairwise"), questions, path)
        check_references(references, questions)
        for question in questions:
            for turn in range(1, len(question.turns) + 1):
                both = [("FIRST", "SECOND"), ("THIRD", "FOURTH")]
                case = to_case("pairwise", question, turn, both, references, prompts)
                assert all(text in case.user_prompt for text in question.turns[:turn])
                assert all(texts[turn - 1] in case.user_prompt for texts in both)
                needed = references.turns[question.id][turn - 1] if question.needs_reference else ""
                assert needed in case.user_prompt


def test_a_missing_or_wrong_prompt_is_named(benchmark, tmp_path):
    questions, prompts, _ = benchmark
    path = tmp_path / "p.jsonl"
    check_prompts(prompts, ("single", "pairwise"), questions, path)
    less = {name: prompt for name, prompt in prompts.items() if name != "single-math-v1-multi-turn"}
    with pytest.raises(InputError, match="has no prompt 'single-math-v1-multi-turn'; add it"):
        check_prompts(less, ("single",), questions, path)
    check_prompts(less, ("single",), questions[:2], path)
    for template, sentence in (
        ("{question} {ref_answer_1}", "has a place {ref_answer_1}, which is not filled; choose from answer, question"),
        ("{question.__class__}", "has a place {question.__class__}"),
        ("{question", "cannot be filled in"),
    ):
        row = {"name": "single-v1", "system_prompt": "", "prompt_template": template}
        wrong = prompts | read_judge_prompts(write_lines(tmp_path / "p.jsonl", [row]))
        with pytest.raises(InputError) as caught:
            check_prompts(wrong, ("single",), questions, path)
        assert sentence in str(caught.value)
    path.write_text(json.dumps({"name": "single-v1", "prompt_template": ""}) + "\n")
    with pytest.raises(InputError, match=r"p.jsonl:1 lacks a text name, system_prompt or prompt_template"):
        read_judge_prompts(path)


def test_missing_references_are_named(benchmark, tmp_path):
    questions, _, references = benchmark
    check_references(references, questions)
    check_references(None, questions[:2])
    with pytest.raises(InputError, match=r"question 111 \(math\) is judged beside .* and there is no file of them; name"):
        check_references(None, questions)
    del references.turns[112]
    with pytest.raises(InputError, match=r"question 112 \(math\) .*reference_answer_gpt-4.jsonl has none"):
        check_references(references, questions)
