"""Results of `devft judge` on the pages of a run and of a comparison; nothing where there are none."""

import json

from devft_jax.comparing.compare import write_files
from devft_jax.judging.questions import Question
from devft_jax.judging.results import results_of
from devft_jax.judging.tables import to_plain
from devft_jax.reporting.judged import judged_answers
from devft_jax.reporting.report_file import write_report
from devft_jax.storage.ownership import COMPARISON
from devft_jax.storage.run_folder import RunFolder
from tests.comparing.comparisons import arm, comparison
from tests.reporting.stories import write_story
from tests.reporting.test_report_file import check_page, text_of

PLUS_MINUS, MINUS = "\u00b1", "\u2212"
QUESTIONS = [Question(1, "writing", ("a", "b")), Question(2, "math", ("c", "d")), Question(3, "math", ("e", "f"))]


def single(model, question, turn, score):
    return {"model": model, "question_id": question.id, "turn": turn, "score": score}


def results(*, single_ratings=True, pairs=True):
    """The base is rated 4 and 5, the tuned model 6 and 8; it wins every pair but two, one of them inconsistent."""
    found = {"base": (4, 5), "tuned": (6, 8)}
    ratings = [single(name, each, turn, found[name][turn - 1]) for name in found for each in QUESTIONS for turn in (1, 2)]
    ratings[0] = single("base", QUESTIONS[0], 1, -1)
    winners = {(1, 1): ("model_1", "model_2"), (2, 2): ("model_2", "model_2")}
    games = [
        {"question_id": each.id, "turn": turn, "model_1": "tuned"}
        | dict(zip(("g1_winner", "g2_winner"), winners.get((each.id, turn), ("model_1", "model_1")), strict=True))
        for each in QUESTIONS
        for turn in (1, 2)
    ]
    made = results_of(["base", "tuned"], "base", QUESTIONS, ratings if single_ratings else [], games if pairs else [])
    return to_plain(made)


def write_judged(folder, found):
    (folder / "judged").mkdir(exist_ok=True)
    facts = {"questions": "/data/question.jsonl", "models": {"base": "bundled", "tuned": "runs/<a>"}, "judge": "gpt"}
    (folder / "judged" / "results.json").write_text(json.dumps(facts | {"results": found}))


def test_a_runs_report_shows_what_lies_in_its_folder_judged(tmp_path):
    folder = write_story(tmp_path / "run", rounds=4)
    assert "Judged answers" not in text_of(write_report(folder).read_text())
    write_judged(folder, results())
    html = write_report(folder).read_text()
    check_page(html)
    words = text_of(html)
    assert '<a href="#judged">' in html
    assert "Answers to question.jsonl, judged by gpt; models: base (bundled), tuned (runs/<a>)." in words
    # A question without one of its ratings has no mean over both turns.
    assert f"questions base tuned tuned {MINUS} base writing \u2013 7.00 \u2013 math" in words
    assert f"all 4.50 {PLUS_MINUS} 0.00 7.00 {PLUS_MINUS} 0.00 +2.50 {PLUS_MINUS} 0.00" in words
    assert f"all, turn 1 4.00 {PLUS_MINUS} 0.00 6.00 {PLUS_MINUS} 0.00" in words
    assert "all tuned 4 1 1 1 0 0.75" in words
    assert "all, turn 2 tuned 2 0 1 0 0 0.67" in words
    assert "Judgements without a rating, which count nowhere: base 1." in words


def test_a_comparisons_page_shows_them_too(tmp_path):
    made = comparison(arm("FedIT", [2.0, 3.0]))
    for number, found in enumerate([None, results(pairs=False), results(single_ratings=False)]):
        with RunFolder(tmp_path / "all", COMPARISON) as folder:
            if number:
                write_judged(folder.path, found)
            write_files(made, folder)
        html = (tmp_path / "all" / "comparison.html").read_text()
        check_page(html)
        assert ("Mean ratings from 1 to 10" in html, "Pairs with base" in html) == (number == 1, number == 2)
        assert ('<a href="#judged">' in html) == bool(number)


def test_what_is_not_judged_or_damaged_costs_no_page(tmp_path):
    write_judged(tmp_path, None)
    assert judged_answers(tmp_path) == ""
    for damaged in ({"ratings": [{}], "baseline": "base"}, [], {"ratings": 3, "games": [], "unrated": {}}):
        write_judged(tmp_path, damaged)
        assert "judged/results.json is damaged or of another version; start `devft judge`" in judged_answers(tmp_path)
    (tmp_path / "judged" / "results.json").write_text("{")
    assert "is damaged" in judged_answers(tmp_path)
