"""Scores on benchmark tasks during a run: in the records, the same after a stop, and what is refused before any work."""

import csv
import dataclasses
import json
import os
import signal
import sys

import pytest

pytest.importorskip("lm_eval", reason="needs lm-eval: pip install 'devft-jax[eval]'")

from devft_jax.benchmarking.evaluate import evaluate
from devft_jax.benchmarking.options import BenchmarkOptions
from devft_jax.config.identity import identity, identity_hash
from devft_jax.errors import InputError
from devft_jax.harness import scoring
from devft_jax.reporting import Progress
from devft_jax.storage.ownership import RUN
from devft_jax.storage.run_folder import RunFolder
from devft_jax.training import run as module
from devft_jax.training.callbacks import Callback
from devft_jax.training.run import train
from tests.benchmarking.task_files import write_task

QUIET = Progress(quiet=True)


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """A task file of twelve questions."""
    return write_task(tmp_path_factory.mktemp("task"))


@pytest.fixture(scope="module")
def scored(two_stages, task, tmp_path_factory):
    """The options of a run that is scored after every second round, of four in two stages."""
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEVFT_CACHE", str(cache))
        yield dataclasses.replace(two_stages, evaluate_tasks=(f"{task}:10",), evaluate_tasks_every=1, devices=1)


@pytest.fixture(scope="module")
def whole(scored, tmp_path_factory):
    return train(dataclasses.replace(scored, out=str(tmp_path_factory.mktemp("whole")), track=("csv",)), progress=QUIET)


def values(records):
    return [(each.task, each.metric, each.value, each.standard_error, each.change, each.change_error) for each in records]


def test_base_rounds_and_final_model_are_scored(whole, task):
    base, final = whole.summary.base_scores, whole.summary.final_scores
    assert [(each.task, each.metric, each.items, each.shots) for each in base] == [("own", "acc", 10, 0)]
    assert base[0].change is None
    assert 0 < base[0].standard_error < 1
    assert final[0].change == pytest.approx(final[0].value - base[0].value)
    # The last round's model as if its stage ended is the final one.
    assert values(whole.history[-1].scores) == values(final)
    assert RunFolder(whole.folder).metrics.read() == whole.history
    # A finished run is opened and scored by the same code, and finds its requests.
    [alone] = evaluate([str(whole.folder)], BenchmarkOptions(tasks=(f"{task}:10",)))
    assert [each.value for each in alone.results.scores] == [each.value for each in final]


def test_trackers_log_the_scores(whole):
    rows = list(csv.DictReader((whole.folder / "metrics.csv").read_text().splitlines()))
    assert [float(row["scores/own/acc"]) for row in rows] == [row.scores[0].value for row in whole.history]
    assert float(rows[0]["scores/own/acc_stderr"]) == whole.history[0].scores[0].standard_error


def test_the_report_shows_them(whole):
    text = (whole.folder / "report.html").read_text()
    assert '<a href="#scores">' in text
    assert "own against rounds" in text
    final = whole.summary.final_scores[0]
    assert f"{final.value:.4f} \u00b1 {final.standard_error:.4f}" in text


def test_scores_are_not_part_of_the_runs_identity(scored, two_stages):
    plain = dataclasses.replace(two_stages, devices=1)
    assert identity(scored) == identity(plain)
    assert identity_hash(scored) == identity_hash(plain)


class StopsIn(Callback):
    """Requests a stop at the beginning of the passes of a round's scoring."""

    def __init__(self, monkeypatch, after):
        self.finish, self.left = scoring._Run.finish, after
        self.monkeypatch = monkeypatch

    def on_stage(self, run, stage):
        def finish(passes, pending, total):
            self.left -= 1
            if not self.left:
                os.kill(os.getpid(), signal.SIGINT)
            return self.finish(passes, pending, total)

        self.monkeypatch.setattr(scoring._Run, "finish", finish)


def test_a_stopped_scoring_goes_on_with_the_same_scores(scored, whole, tmp_path, monkeypatch):
    monkeypatch.setenv("DEVFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(scoring, "SEQUENCE_TOKENS", 4)
    chosen = dataclasses.replace(scored, out=str(tmp_path / "run"))
    stopped = train(chosen, progress=QUIET, callbacks=[StopsIn(monkeypatch, after=3)])
    assert stopped.stopped_by == signal.SIGINT
    assert stopped.history[-1].scores is None
    [kept] = [path for path in (tmp_path / "cache" / "evaluations").iterdir() if 0 < len(path.read_text().splitlines()) < 20]
    finished = kept.read_text()
    resumed = train(chosen, progress=QUIET)
    lines = kept.read_text().splitlines()
    assert kept.read_text().startswith(finished)
    assert len({json.loads(line)["key"] for line in lines}) == len(lines) == 20
    assert [row.round for row in resumed.history] == [1, 2, 3, 4]
    assert [values(row.scores) for row in resumed.history] == [values(row.scores) for row in whole.history]
    assert RunFolder(resumed.folder).metrics.read() == resumed.history
    assert values(resumed.summary.final_scores) == values(whole.summary.final_scores)
    assert values(resumed.summary.base_scores) == values(whole.summary.base_scores)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"evaluate_tasks": ("nothing_of_this_name",)}, "task 'nothing_of_this_name' is unknown"),
        ({"evaluate_tasks": ("own.yaml:0",)}, "a task of no items"),
        ({"benchmark_files": "nowhere"}, "does not exist"),
        ({"algorithm": "local-only", "growth": "end-to-end"}, "but with local-only every client has its own"),
        ({"algorithm": "c2a", "growth": "end-to-end"}, "cannot score an adapter that a hypernetwork makes"),
        ({"model_shards": 2, "devices": 2}, "model_shards 2 divides it"),
    ],
    ids=str,
)
def test_what_cannot_be_scored_is_refused_before_anything_is_compiled(scored, tmp_path, monkeypatch, changes, sentence):
    monkeypatch.setattr(module.Trainer, "begin", lambda self: pytest.fail("begun"))
    with pytest.raises(InputError, match=sentence):
        train(dataclasses.replace(scored, out=str(tmp_path / "run"), **changes), progress=QUIET)
    assert not (tmp_path / "run" / "config.json").exists()
    # The folder is free again.
    with RunFolder(str(tmp_path / "run"), RUN):
        pass


def test_a_missing_extra_is_one_sentence_before_any_work(scored, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    monkeypatch.setattr(module, "build_parts", lambda *arguments, **options: pytest.fail("built"))
    with pytest.raises(InputError, match=r"needs lm-eval, which is not installed; run `pip install lm-eval "):
        train(dataclasses.replace(scored, out=str(tmp_path)), progress=QUIET)
