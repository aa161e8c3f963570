"""Models side by side on the same items: scores, differences, what is kept, what is refused."""

import dataclasses
import json
import shutil
from importlib import metadata

import jax
import pytest

pytest.importorskip("lm_eval", reason="needs lm-eval: pip install 'devft-jax[eval]'")

from devft_jax.benchmarking import evaluate as module
from devft_jax.benchmarking.evaluate import as_text, evaluate
from devft_jax.benchmarking.options import BenchmarkOptions
from devft_jax.commands.cli import run_command
from devft_jax.commands.evaluate import parse_evaluate
from devft_jax.errors import InputError
from devft_jax.harness import scoring
from devft_jax.inference.options import ModelOptions, SelectionOptions
from devft_jax.runtime.devices import versions
from devft_jax.runtime.stopping import Stopped
from tests.benchmarking.task_files import write_task
from tests.inference.folders import write_folders


@pytest.fixture(scope="module")
def folders(tmp_path_factory, word_tokenizer):
    return write_folders(tmp_path_factory.mktemp("folders"), word_tokenizer)


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """A task file of twelve questions."""
    return write_task(tmp_path_factory.mktemp("task"))


def test_a_run_is_compared_with_its_base_item_by_item(folders, task, tmp_path):
    out = tmp_path / "scores.json"
    options = BenchmarkOptions(tasks=(task,), compare=True, out=str(out))
    base, run = evaluate([folders["run"]], options)
    [alone] = evaluate([folders["model"]], BenchmarkOptions(tasks=(task,)))
    assert base.name == f"{folders['run']} without adapter"
    # The base of the run is that model: its requests are the same and are not computed again.
    assert (alone.identity, alone.computed, alone.kept) == (base.identity, 0, 24)
    assert alone.results.items == base.results.items
    assert run.identity != base.identity
    assert run.computed == 24
    [score] = [score for score in run.results.scores if score.metric == "acc"]
    assert score.items == 12
    text = as_text([base, run])
    assert "own" in text
    assert "±" in text
    plain = json.loads(out.read_text())
    # As a run records them: a checkout that is not installed has no metadata of its own.
    assert plain["versions"] == versions(jax.devices()[0]) | {"lm-eval": metadata.version("lm-eval")}
    assert [model["name"] for model in plain["models"]] == [base.name, run.name]
    [difference] = [each for each in plain["differences"] if each["metric"] == "acc"]
    before, after = (each.results.values_of("own", "acc") for each in (base, run))
    assert difference["mean"] == pytest.approx(sum(after[item] - before[item] for item in before) / 12)


def test_a_base_that_runs_share_is_scored_once(folders, task, tmp_path):
    other = str(shutil.copytree(folders["run"], tmp_path / "other"))
    found = evaluate([folders["run"], other], BenchmarkOptions(tasks=(task,), compare=True))
    assert [each.name for each in found] == [f"{folders['run']} without adapter", folders["run"], other]


def test_stopped_and_started_again(folders, task, monkeypatch, tmp_path):
    monkeypatch.setenv("DEVFT_CACHE", str(tmp_path))
    monkeypatch.setattr(scoring, "SEQUENCE_TOKENS", 4)
    one = jax.devices()[:1]
    monkeypatch.setattr(scoring.jax, "local_devices", lambda: one)
    options = BenchmarkOptions(tasks=(task,))
    finish, passes = scoring._Run.finish, []

    def stopped(self, pending, total):
        if len(passes) == 3:
            raise Stopped
        passes.append(pending)
        return finish(self, pending, total)

    monkeypatch.setattr(scoring._Run, "finish", stopped)
    with pytest.raises(Stopped):
        evaluate([folders["model"]], options)
    monkeypatch.setattr(scoring._Run, "finish", finish)
    [resumed] = evaluate([folders["model"]], options)
    assert 0 < resumed.kept < 24
    assert resumed.computed + resumed.kept == 24
    [fresh] = evaluate([folders["model"]], dataclasses.replace(options, keep_requests=False))
    assert fresh.computed == 24
    assert resumed.results.items == fresh.results.items


def test_what_cannot_be_used_is_refused_before_a_model_is_loaded(folders, task, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "open_respondent", lambda *arguments, **options: pytest.fail("loaded"))
    precious = tmp_path / "precious.json"
    precious.write_text('{"a": 1}')
    for options, sentence in (
        ({"tasks": ("nothing:0",)}, "a task of no items"),
        ({"tasks": (task,), "out": str(tmp_path)}, "is a folder; name a file in it"),
        ({"tasks": (task,), "out": str(tmp_path / "a" / "b")}, "is in a folder that does not exist"),
        ({"tasks": (task,), "out": str(precious)}, "holds something other than scores"),
        ({"tasks": (task,), "limit": 0}, "limit"),
        ({"tasks": (task,), "benchmark_files": str(tmp_path / "nowhere")}, "does not exist; name the folder"),
    ):
        with pytest.raises(InputError, match=sentence):
            evaluate([folders["model"]], BenchmarkOptions(**options))
    with pytest.raises(InputError, match="is named twice"):
        evaluate(["bundled", "bundled"], BenchmarkOptions(tasks=(task,)))


def test_the_command_prints_a_table(folders, task, capsys):
    assert run_command(["evaluate", folders["model"], folders["run"], "--tasks", f"{task}:4"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["task", "metric", "shots", "items", "[1]", "[2]", "[2]", "-", "[1]"]
    assert lines[1].split()[:4] == ["own", "acc", "0", "4"]
    assert f"[2] {folders['run']}" in lines


def test_words_become_options():
    what, options, loading, selection = parse_evaluate(
        ["runs/a", "bundled", "--tasks", "mmlu:500@5", "--tasks", "paper", "--limit", "7", "--compare", "--stage", "2"]
    )
    assert what == ("runs/a", "bundled")
    assert options == BenchmarkOptions(tasks=("mmlu:500@5", "paper"), limit=7, compare=True)
    assert (loading, selection) == (ModelOptions(), SelectionOptions(stage=2))
