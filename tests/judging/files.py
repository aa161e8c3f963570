"""Small files in FastChat's layouts: questions of two categories, one or two turns; answers, references, judge prompts."""

import json
from pathlib import Path

QUESTIONS = [
    {"question_id": 81, "category": "writing", "turns": ["a b", "c"]},
    {"question_id": 82, "category": "writing", "turns": ["d e f", "g"]},
    {"question_id": 111, "category": "math", "turns": ["1 2", "3"], "reference": ["3", "6"]},
    {"question_id": 112, "category": "math", "turns": ["h"]},
]

SINGLE = "[Question]\n{question}\n[Answer]\n{answer}"
SINGLE_MATH = "[Question]\n{question}\n[Reference]\n{ref_answer_1}\n[Answer]\n{answer}"
SINGLE_TURNS = "{question_1}|{answer_1}|{question_2}|{answer_2}"
SINGLE_MATH_TURNS = "{ref_answer_1}|{ref_answer_2}|" + SINGLE_TURNS
PAIR = "{question}\n[A]{answer_a}[/A]\n[B]{answer_b}[/B]"
PAIR_TURNS = "{question_1}|{question_2}\n[A]{answer_a_1}|{answer_a_2}[/A]\n[B]{answer_b_1}|{answer_b_2}[/B]"

PROMPTS = {
    "single-v1": SINGLE,
    "single-math-v1": SINGLE_MATH,
    "single-v1-multi-turn": SINGLE_TURNS,
    "single-math-v1-multi-turn": SINGLE_MATH_TURNS,
    "pair-v2": PAIR,
    "pair-math-v1": "{ref_answer_1}\n" + PAIR,
    "pair-v2-multi-turn": PAIR_TURNS,
    "pair-math-v1-multi-turn": "{ref_answer_1}|{ref_answer_2}\n" + PAIR_TURNS,
}


def write_lines(path: Path, rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def answer_rows(name, say=lambda question, turn: f"answer {turn}"):
    return [
        {
            "question_id": question["question_id"],
            "answer_id": "x",
            "model_id": name,
            "choices": [{"index": 0, "turns": [say(question, turn) for turn in range(1, len(question["turns"]) + 1)]}],
            "tstamp": 1.0,
        }
        for question in QUESTIONS
    ]


def write_benchmark(folder: Path) -> Path:
    """Questions with prompts and references beside them; returns the questions' file."""
    folder.mkdir(parents=True, exist_ok=True)
    prompts = [
        {"name": name, "type": name.split("-")[0], "system_prompt": f"system of {name}", "prompt_template": template}
        for name, template in PROMPTS.items()
    ]
    write_lines(folder / "judge_prompts.jsonl", prompts)
    references = [
        row for row in answer_rows("gpt-4", lambda question, turn: f"reference {turn}") if row["question_id"] > 100
    ]
    write_lines(folder / "reference_answer_gpt-4.jsonl", references)
    return write_lines(folder / "question.jsonl", QUESTIONS)
