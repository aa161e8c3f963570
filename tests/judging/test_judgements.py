"""Judgements: FastChat's lines, verdicts asked for again, work that goes on after a kill, a failure or a stop."""

import json
import signal
import threading
import types

import pytest

from devft_jax.errors import InputError, RunError
from devft_jax.judging import endpoint as endpoint_module
from devft_jax.judging.cases import Reply
from devft_jax.judging.endpoint import Endpoint
from devft_jax.judging.judgements import judge_all, spent_on, wanted_judgements
from devft_jax.judging.lines import GrowingLines
from devft_jax.judging.options import EndpointOptions
from devft_jax.judging.prompts import read_judge_prompts
from devft_jax.judging.questions import Answers, read_answers, read_questions
from devft_jax.reporting import Progress
from devft_jax.runtime.stopping import Stopped, StopRequest
from tests.judging.files import write_benchmark
from tests.judging.server import endpoint, fails, garbage, hangs_up, sleeps

QUIET = Progress(quiet=True)


@pytest.fixture
def benchmark(tmp_path):
    path = write_benchmark(tmp_path / "bench")
    prompts = read_judge_prompts(path.with_name("judge_prompts.jsonl"))
    references = read_answers(path.with_name("reference_answer_gpt-4.jsonl"))
    questions = read_questions(path)
    models = [
        Answers(name, {each.id: tuple(f"{name} on {each.id}.{turn}" for turn in (1, 2)) for each in questions})
        for name in ("base", "tuned")
    ]
    return types.SimpleNamespace(questions=questions, prompts=prompts, references=references, models=models)


def wanted(benchmark, name, judged):
    return list(wanted_judgements(name, judged, benchmark.questions, benchmark.references, benchmark.prompts))


def singles(benchmark, name="judge-1"):
    return wanted(benchmark, name, [(model,) for model in benchmark.models])


def pairs(benchmark, name="judge-1"):
    base, tuned = benchmark.models
    return wanted(benchmark, name, [(tuned, base)])


def run(wanted, judge, path, **options):
    given = {"tries": 3, "concurrency": 1, "stop": StopRequest(), "progress": QUIET, "what": "ratings"}
    return judge_all(wanted, judge, "judge-1", GrowingLines(path), **given | options)


def says(text, **tokens):
    """A judge that always says the same, and counts how often."""

    def judge(case):
        judge.cases.append(case)
        return Reply(text(case) if callable(text) else text, **tokens)

    judge.cases = []
    return judge


def test_a_rating_is_a_line_as_fastchat_writes_it(benchmark, tmp_path):
    rows = run(singles(benchmark), says("fine [[8]]", prompt_tokens=5, completion_tokens=2), tmp_path / "s.jsonl")
    assert len(rows) == 2 * (2 + 2 + 2 + 1)
    assert [json.loads(line) for line in (tmp_path / "s.jsonl").read_text().splitlines()] == rows
    row = rows[1]
    assert list(row)[:8] == ["question_id", "model", "judge", "user_prompt", "judgment", "score", "turn", "tstamp"]
    assert row["judge"] == ["judge-1", "single-v1"]
    assert (row["model"], row["score"], row["judgment"], row["turn"]) == ("tuned", 8.0, "fine [[8]]", 1)
    assert row["user_prompt"] == "[Question]\na b\n[Answer]\ntuned on 81.1"
    spent = spent_on(rows)
    assert (spent.requests, spent.repeated, spent.prompt_tokens, spent.completion_tokens) == (14, 0, 70, 28)
    assert spent.cost(10.0, 30.0) == pytest.approx((70 * 10 + 28 * 30) / 1e6)
    assert spent.cost(None, None) is None


@pytest.mark.parametrize(
    ("said", "winners"),
    [
        # The one that sees the tuned model's answer wherever it stands, one that prefers what stands first, one undecided.
        (lambda case: "[[A]]" if "tuned" in case.answers[0][0] else "[[B]]", ("model_1", "model_1")),
        (lambda case: "[[A]]", ("model_1", "model_2")),
        (lambda case: "[[C]]", ("tie", "tie")),
        (lambda case: "[[A]]" if "tuned" in case.answers[0][0] else "neither", ("model_1", "error")),
    ],
)
def test_a_pair_is_two_games_with_the_answers_in_both_orders(benchmark, tmp_path, said, winners):
    rows = run(pairs(benchmark), says(said), tmp_path / "p.jsonl")
    assert len(rows) == 7
    for row in rows:
        assert (row["model_1"], row["model_2"]) == ("tuned", "base")
        assert (row["g1_winner"], row["g2_winner"]) == winners
        first, second = row["g1_user_prompt"], row["g2_user_prompt"]
        assert first.index("tuned on") < first.index("base on")
        assert second.index("base on") < second.index("tuned on")


def test_a_malformed_verdict_is_asked_for_again_and_then_counted(benchmark, tmp_path):
    replies = iter(["no verdict", "[[4]] or [[5]]", "[[6]]", *["nothing"] * 3, *["[[9]]"] * 100])
    rows = run(singles(benchmark), says(lambda case: next(replies)), tmp_path / "s.jsonl")
    assert [row["score"] for row in rows[:3]] == [6.0, -1, 9.0]
    assert [row["tokens"]["requests"] for row in rows[:3]] == [3, 3, 1]
    assert spent_on(rows).repeated == 4
    assert spent_on(rows).uncounted == 18
    # What has no verdict after so many tries is not asked again by the next call either.
    silent = says("x")
    assert run(singles(benchmark), silent, tmp_path / "s.jsonl") == rows
    assert not silent.cases


def test_a_refused_case_is_counted_without_being_asked_again(benchmark, tmp_path):
    rows = run(singles(benchmark)[:1], lambda case: Reply("", refused="413: too long"), tmp_path / "s.jsonl")
    assert (rows[0]["score"], rows[0]["judgment"], rows[0]["tokens"]["requests"]) == (-1, "[refused] 413: too long", 1)


@pytest.mark.parametrize("cut", [0, 1, 40, 3000])
def test_what_a_kill_left_is_gone_on_with(benchmark, tmp_path, cut):
    """At any byte: finished lines are kept and no case of theirs is judged again."""
    path = tmp_path / "s.jsonl"
    whole = run(singles(benchmark), says("[[5]]"), path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) - cut])
    kept = len(GrowingLines(path).read())
    assert kept == path.read_bytes().count(b"\n") + (cut == 1)
    judge = says("[[5]]")
    rows = run(singles(benchmark), judge, path)
    assert len(judge.cases) == len(whole) - kept
    assert [row["digest"] for row in rows] == [row["digest"] for row in whole]
    assert len(path.read_text().splitlines()) == len(whole)


def test_other_answers_and_other_judges_are_judged_anew(benchmark, tmp_path):
    path = tmp_path / "s.jsonl"
    run(singles(benchmark), says("[[5]]"), path)
    benchmark.models[0].turns[112] = ("another answer", "")
    judge = says("[[6]]")
    rows = run(singles(benchmark), judge, path)
    assert len(judge.cases) == 1
    assert sorted(row["score"] for row in rows) == [5.0] * 13 + [6.0]
    judge = says("[[6]]")
    run(singles(benchmark, "judge-2"), judge, path)
    assert len(judge.cases) == 14


def test_a_failure_keeps_what_was_judged_and_the_next_call_goes_on(benchmark, tmp_path):
    path = tmp_path / "s.jsonl"
    count = []

    def judge(case):
        count.append(1)
        if len(count) == 6:
            raise RunError("the judge is gone")
        return Reply("[[5]]")

    with pytest.raises(RunError, match="the judge is gone"):
        run(singles(benchmark), judge, path)
    assert len(path.read_text().splitlines()) == 5
    rest = says("[[5]]")
    run(singles(benchmark), rest, path)
    assert len(rest.cases) == 9


def test_judgements_under_way_at_a_failure_are_kept(benchmark, tmp_path):
    path = tmp_path / "s.jsonl"
    both = threading.Barrier(2)

    def judge(case):
        both.wait(5)
        if case.answers[0][0].startswith("base"):
            raise RunError("gone")
        return Reply("[[5]]")

    with pytest.raises(RunError, match="gone"):
        run(singles(benchmark)[:2], judge, path, concurrency=2)
    assert len(path.read_text().splitlines()) == 1


def test_a_stop_finishes_what_is_under_way(benchmark, tmp_path):
    path = tmp_path / "s.jsonl"
    request = StopRequest()
    given_up = []

    def judge(case):
        if case.question.id == 82:
            request.signal = signal.SIGTERM
        return Reply("[[5]]")

    with pytest.raises(Stopped):
        run(singles(benchmark), judge, path, stop=request, give_up=lambda: given_up.append(1))
    assert given_up
    lines = len(path.read_text().splitlines())
    assert 5 <= lines < 14
    rest = says("[[5]]")
    run(singles(benchmark), rest, path)
    assert len(rest.cases) == 14 - lines


def test_an_endpoint_that_misbehaves_in_every_way_gives_the_same_judgements(benchmark, tmp_path, monkeypatch):
    monkeypatch.setattr(endpoint_module, "FIRST_WAIT", 0.01)
    wrong = (fails(429, Retry_After="0.05"), hangs_up, garbage(b"{"), fails(500), sleeps(0.6), garbage(b"\xff", 503))
    clean = run(singles(benchmark), says("Rating: [[7]]"), tmp_path / "clean.jsonl")
    with endpoint(*wrong) as fake:
        judge = Endpoint(EndpointOptions(endpoint=fake.url, judge_model="judge-1", timeout=0.3))
        rows = run(singles(benchmark), judge, tmp_path / "s.jsonl", concurrency=4)
        assert len(fake.requests) == 14 + len(wrong)
    said = ("question_id", "model", "turn", "score", "judgment", "user_prompt", "digest")
    assert [[row[name] for name in said] for row in rows] == [[row[name] for name in said] for row in clean]
    assert spent_on(rows).prompt_tokens == 1400


def test_lines_of_something_else_are_refused(benchmark, tmp_path):
    path = tmp_path / "s.jsonl"
    path.write_text('{"question_id": 1, "score": 5, "turn": 1}\n')
    # FastChat's own line has no digest, and no claim to be ours.
    assert len(run(singles(benchmark), says("[[5]]"), path)) == 14
    path.write_text('{"digest": "x", "score": 77, "tokens": {}}\n')
    with pytest.raises(InputError, match=r"s.jsonl:1 is no judgement that was written here; remove the line"):
        run(singles(benchmark), says("[[5]]"), path)
