"""`devft compare --tasks`: which models are scored, what is kept, and what is refused before any run."""

import dataclasses
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("lm_eval", reason="needs lm-eval: pip install 'devft-jax[eval]'")

from devft_jax.benchmarking.evaluate import evaluate
from devft_jax.benchmarking.options import BenchmarkOptions
from devft_jax.commands.cli import run_command
from devft_jax.commands.compare import parse_compare
from devft_jax.comparing import scoring as module
from devft_jax.comparing.arms import Arm
from devft_jax.comparing.budgets import Configured
from devft_jax.comparing.scoring import Scoring, score_runs
from devft_jax.config.run_config import RunConfig
from devft_jax.reporting import Progress
from devft_jax.runtime.stopping import Stopped, StopRequest
from tests.benchmarking.task_files import write_task
from tests.comparing.comparisons import arm, comparison
from tests.comparing.test_scores import scored
from tests.tiny_run import flags, write_run_inputs

QUIET = Progress(quiet=True)


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    return write_task(tmp_path_factory.mktemp("task"))


@pytest.mark.slow
def test_final_models_are_scored_as_devft_evaluate_does_it(tmp_path, word_tokenizer, task, monkeypatch, capsys):
    """Two runs, of which one has a model for all clients; afterwards everything is read from the comparison's folder."""
    config = dataclasses.replace(write_run_inputs(tmp_path, word_tokenizer), rounds=2, local_steps=1, devices=1)
    config = dataclasses.replace(config, capacities=None)
    out = tmp_path / "a,b"
    words = ["compare", *flags(config), "--arms", "fedit,local-only", "--out", str(out), "--tasks", task, "--limit", "8"]
    assert run_command(words) == 0
    said = capsys.readouterr()
    assert "scoring model 1 of 1: fedit, seed 0 and the untuned base" in said.err
    assert "Scores on tasks" in said.out
    plain = json.loads((out / "comparison.json").read_text())
    fedit, local = plain["budgets"][0]["arms"]
    options = BenchmarkOptions(tasks=(task,), limit=8, compare=True)
    base, run = evaluate([fedit["runs"][0]["folder"]], options)
    [score] = [each for each in fedit["scores"] if each["metric"] == "acc"]
    [own] = [each for each in run.results.scores if each.metric == "acc"]
    assert (score["mean"], score["items"]) == (own.value, 8)
    assert score["by_seed"]["0"]["standard_error"] == own.standard_error
    assert plain["tasks"]["untuned_base"] == json.loads(json.dumps(base.results.to_plain()["scores"]))
    assert base.computed == run.computed == 0
    assert local["scores"] == []
    assert "local-only has no global model and is not scored on tasks" in " ".join(said.out.split())
    assert [file.suffix for file in (out / "scores").iterdir()].count(".json") == 1
    monkeypatch.setattr(subprocess, "Popen", None)
    assert run_command(words) == 0
    assert "models scored before: 1 of 1" in capsys.readouterr().err
    assert json.loads((out / "comparison.json").read_text()) == plain


@pytest.fixture
def invented(monkeypatch):
    """Evaluations that are written instead of computed; gives the words of each. Folders in `failing` fail."""
    asked, failing = [], set()

    def supervise(words, log, progress, stop, **more):
        assert words[:3] == [sys.executable, "-m", "devft_jax.commands.child"]
        [run] = json.loads(words[words.index("evaluate") + 1])
        asked.append((run, "--compare" in words))
        if run in failing:
            log.write_text("devft: no memory.\n")
            return 2
        models = [scored(0, 1), scored(1, 1)] if "--compare" in words else [scored(1, 1)]
        Path(words[words.index("--out") + 1]).write_text(json.dumps({"models": [each.to_plain() for each in models]}))
        return 0

    monkeypatch.setattr(module, "supervise", supervise)
    return asked, failing


def scoring_of(digest="1234abcd", **left_out):
    return Scoring(BenchmarkOptions(tasks=("own",)), None, digest, left_out)


def test_only_what_has_no_scores_is_scored_and_the_base_once(tmp_path, invented):
    asked, _ = invented
    first = comparison(arm("a", [2.0, 3.0]), arm("b", [None, 3.0]))
    found = score_runs(first, scoring_of(), tmp_path, QUIET, StopRequest())
    assert asked == [("runs/a-0", True), ("runs/a-1", False), ("runs/b-1", False)]
    assert set(found.runs) == {"runs/a-0", "runs/a-1", "runs/b-1"}
    assert (found.base.scores[0].value, found.runs["runs/a-0"].scores[0].value) == (0.5, 1.0)
    more = comparison(arm("c", [2.0, 3.0]), arm("a", [2.0, 3.0]), arm("own", [1.0, 1.0]))
    again = score_runs(more, scoring_of(own="has none"), tmp_path, QUIET, StopRequest())
    assert asked[3:] == [("runs/c-0", False), ("runs/c-1", False)]
    assert again.base == found.base
    # Of a comparison none of whose runs was evaluated with its base.
    alone = comparison(arm("c", [2.0, 3.0]))
    assert score_runs(alone, scoring_of(), tmp_path, QUIET, StopRequest()).base == found.base
    assert asked[5:] == [("runs/c-0", True)]
    # Other tasks, other scores.
    score_runs(alone, scoring_of("0000ffff"), tmp_path, QUIET, StopRequest())
    assert asked[6:] == [("runs/c-0", True), ("runs/c-1", False)]


def test_a_run_that_cannot_be_scored_is_named_and_the_others_are_scored(tmp_path, invented):
    asked, failing = invented
    failing.add("runs/a-0")
    made = comparison(arm("a", [2.0]), arm("b", [3.0]))
    found = score_runs(made, scoring_of(), tmp_path, QUIET, StopRequest())
    assert asked == [("runs/a-0", True), ("runs/b-0", True)]
    assert found.errors["runs/a-0"].startswith("no memory. (see ")
    assert set(found.runs) == {"runs/b-0"}
    assert found.base is not None


def test_what_a_stopped_evaluation_has_written_is_not_taken_for_scores(tmp_path, invented, monkeypatch):
    write, stop = module.supervise, StopRequest()

    def stopped(words, *rest, **more):
        write(words, *rest, **more)
        stop.signal = signal.SIGINT
        return 130

    monkeypatch.setattr(module, "supervise", stopped)
    made = comparison(arm("a", [2.0]))
    with pytest.raises(Stopped):
        score_runs(made, scoring_of(), tmp_path, QUIET, stop)
    monkeypatch.setattr(module, "supervise", write)
    asked, _ = invented
    score_runs(made, scoring_of(), tmp_path, QUIET, StopRequest())
    assert asked == [("runs/a-0", True)] * 2


def test_the_digest_follows_the_items_and_the_wording(tmp_path):
    def digest(**changes):
        options = BenchmarkOptions(**{"tasks": (task,)} | changes)
        return module.check_scoring(options, common, arms).digest

    common = RunConfig()
    arms = [Configured(Arm("a", "fedit"), common)]
    task = write_task(tmp_path)
    first = digest()
    assert digest() == first
    assert digest(limit=7) != first
    yaml, questions = tmp_path / "own.yaml", tmp_path / "questions.jsonl"
    yaml.write_text(yaml.read_text().replace("x y", "y x"))
    second = digest()
    assert second != first
    questions.write_text(questions.read_text().replace('"a b"', '"a c"'))
    assert digest() not in (first, second)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--arms", "fedit", "--tasks", "nothing_like_this.yaml"], "task 'nothing_like_this.yaml' is unknown"),
        (["--arms", "fedit", "--tasks", "own:0"], "a task of no items"),
        (["--arms", "fedit", "--limit", "3"], "limit has no effect without tasks; give some, such as --tasks quick"),
        (["--arms", "local-only", "--tasks", "TASK"], "tasks has no arm to score: local-only has no global model"),
        (["--arms", "fedit", "--tasks", "TASK", "--benchmark-files", "nowhere"], "name the folder"),
        (["--arms", "fedit", "--tasks", "TASK", "--limit", "0"], "limit 0 "),
    ],
)
def test_what_cannot_be_scored_is_refused_before_any_run(tmp_path, task, monkeypatch, capsys, words, expected):
    monkeypatch.setattr(subprocess, "Popen", None)
    words = [task if word == "TASK" else word for word in words]
    assert run_command(["compare", *words, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("devft: ")
    assert expected in said
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_missing_extra_is_named_before_any_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(subprocess, "Popen", None)
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    assert run_command(["compare", "--arms", "fedit", "--tasks", "quick", "--out", str(tmp_path / "out")]) == 2
    assert "needs lm-eval, which is not installed; run `pip install lm-eval" in capsys.readouterr().err


def test_words_become_tasks():
    _, options, tasks = parse_compare(
        ["--arms", "fedit", "--tasks", "quick", "mmlu:500@5", "--limit", "7", "--benchmark-files", "there"]
    )
    assert options.arms == ("fedit",)
    assert tasks == BenchmarkOptions(tasks=("quick", "mmlu:500@5"), limit=7, benchmark_files="there")
    assert parse_compare(["--arms", "fedit"])[2].tasks == ()


@pytest.mark.parametrize(
    ("tasks", "of_runs", "of_final_models"),
    [
        (["--tasks", "quick"], None, "there"),
        (["--evaluate-tasks", "arc_easy"], "there", None),
        (["--tasks", "quick", "--evaluate-tasks", "arc_easy"], "there", "there"),
    ],
)
def test_files_of_benchmarks_are_those_of_runs_and_of_final_models(tasks, of_runs, of_final_models):
    common, _, asked = parse_compare(["--arms", "fedit", *tasks, "--benchmark-files", "there"])
    assert (common.benchmark_files, asked.benchmark_files) == (of_runs, of_final_models)
