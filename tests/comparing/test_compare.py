"""Comparisons: made of real tiny runs through the command line, and of made-up ones where only the bookkeeping is asked."""

import csv
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from devft_jax.commands.cli import run_command
from devft_jax.commands.compare import parse_compare
from devft_jax.comparing import runs as module
from devft_jax.comparing.compare import compare
from devft_jax.comparing.formats import to_text
from devft_jax.comparing.options import CompareOptions
from devft_jax.comparing.page import comparison_html
from devft_jax.comparing.runs import Job, Runs, check_splits, read_outcome, run_name
from devft_jax.config.run_config import RunConfig
from devft_jax.errors import InputError
from devft_jax.reporting import Progress
from devft_jax.reporting.report_file import read_story
from tests.conftest import REPOSITORY
from tests.reporting.stories import write_story
from tests.reporting.test_report_file import check_page
from tests.tiny_run import write_run_inputs
from tests.training.test_run import flags

QUIET = Progress(quiet=True)


ARMS = "fedit,fedit+devft:capacities=2/4"


@pytest.fixture(scope="module")
def config(tmp_path_factory, word_tokenizer):
    written = write_run_inputs(tmp_path_factory.mktemp("tiny"), word_tokenizer)
    return dataclasses.replace(written, rounds=4, local_steps=1, devices=1, evaluate_every=1)


def command(config, out, arms=ARMS, *more):
    """The command line of a comparison in which all arms share a configuration."""
    return ["compare", *flags(config), "--arms", arms, "--out", str(out), *more]


@pytest.fixture(scope="module")
def made(config, tmp_path_factory):
    """The folder of a finished comparison of two arms over two seeds, and its command."""
    out = tmp_path_factory.mktemp("compared") / "out"
    words = command(config, out, ARMS, "--seeds", "0,1")
    assert run_command(words) == 0
    return out, words


def test_a_comparison_leaves_tables_a_page_and_ordinary_runs(made):
    out, _ = made
    plain = json.loads((out / "comparison.json").read_text())
    [budget] = plain["budgets"]
    assert [arm["name"] for arm in budget["arms"]] == ARMS.split(",")
    devft = budget["arms"][1]
    assert devft["changes"] == {"capacities": [2, 4]}
    runs = [run["folder"] for arm in budget["arms"] for run in arm["runs"]]
    assert len(set(runs)) == 4
    for arm in budget["arms"]:
        for run in arm["runs"]:
            summary = json.loads((Path(run["folder"]) / "summary.json").read_text())
            seed = str(run["seed"])
            assert arm["measures"]["final_loss"]["by_seed"][seed] == summary["final_loss"]
            assert arm["measures"]["bytes_up"]["by_seed"][seed] == summary["bytes_up"]
            assert read_story(run["folder"]).finished
    mean = [arm["measures"]["final_loss"]["mean"] for arm in budget["arms"]]
    assert devft["measures"]["final_loss"]["difference"]["mean"] == pytest.approx(mean[1] - mean[0])
    assert plain["target"] == mean[0]
    with open(out / "comparison.csv", newline="") as file:
        assert [row["arm"] for row in csv.DictReader(file)] == ARMS.split(",")
    with open(out / "runs.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 4
    check_page((out / "comparison.html").read_text())
    assert "held-out loss" in (out / "comparison.md").read_text()


def test_a_growing_arm_is_known_as_the_full_model_at_every_round(made):
    out, _ = made
    [growing] = out.glob("runs/fedit-devft-s0-*/metrics.jsonl")
    rows = [json.loads(line) for line in growing.read_text().splitlines()]
    assert [("full_loss" in row) for row in rows] == [True, False, True, False]
    runs = json.loads((out / "comparison.json").read_text())["budgets"][0]["arms"][1]["runs"]
    job = Job("", RunConfig(out=runs[0]["folder"]), "")
    assert [point.round for point in read_outcome(job).curve] == [0, 1, 2, 3, 4]


def test_finished_runs_are_read_and_shared_by_other_comparisons(made, config, monkeypatch, capsys):
    out, words = made
    before = (out / "comparison.json").read_text()
    monkeypatch.setattr(subprocess, "Popen", None)
    assert run_command(words) == 0
    assert (out / "comparison.json").read_text() == before
    printed = capsys.readouterr()
    assert "runs finished before: 4 of 4" in printed.err
    assert "What was learned" in printed.out
    # Another reference, one seed less and the other order of arms need no run.
    other = command(config, out, ",".join(reversed(ARMS.split(","))), "--seeds", "1")
    assert run_command(other) == 0
    assert "This is one seed" in capsys.readouterr().out


def test_a_name_follows_what_is_computed_and_when_it_is_judged(config):
    names = {
        run_name(dataclasses.replace(config, **change))
        for change in ({}, {"seed": 1}, {"rounds": 5}, {"rank": 3}, {"evaluate_every": 2}, {"evaluate_full": True})
    }
    assert len(names) == 6
    assert run_name(dataclasses.replace(config, devices=7, out="elsewhere")) in names


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--arms", "fedit,fedavg"], "names the algorithm 'fedavg', which does not exist"),
        (["--arms", "fedit+grow"], "names the growth 'grow', which does not exist"),
        ([], "arms are given by --arms or by --arms-file; give one of them"),
        (["--arms", "fedit", "--arms-file", "a.yaml"], "give one of them"),
        (["--arms", "fedit", "--reference", "devft"], "reference 'devft' is not among the arms; choose from fedit"),
        (["--arms", "fedit", "--seeds", "1,1"], "seeds 1,1 holds 1 twice; give each once"),
        (["--arms", "fedit", "--seeds", "-1"], "seeds -1 is outside [0, 2^32)"),
        (["--arms", "fedit", "--budget", "time"], "budget 'time' is unknown; choose from rounds, bytes"),
        (["--arms", "fedit", "--budget", "bytes", "--budget-of", "x"], "budget_of 'x' is not among the arms"),
        (["--arms", "fedit", "--budget-of", "fedit"], "but the budget is rounds; also give --budget bytes"),
        (["--arms", "local-only", "--budget", "bytes"], "the budget is bytes and no arm sends any"),
        (["--arms", "fedit", "--learning-rates", "0.1,0.1"], "learning_rates 0.1,0.1 holds 0.1 twice; give each once"),
        (["--arms", "fedit", "--learning-rates", "0.1", "--tuning-seeds", "3,0"], "tuning_seeds 0 is among the seeds"),
        (["--arms", "fedit:learning_rate=1", "--learning-rates", "0.1"], "sets its own learning_rate, but"),
        (["--arms", "fedit", "--learning-rates", "0.1", "--tuning-seeds", "-5"], "tuning_seeds -5 is outside [0, 2^32)"),
        (["--arms", "fedit", "--target-loss", "nan"], "target_loss nan is not finite; give a positive number"),
        (["--arms", "fedit", "--evaluations", "-1"], "evaluations -1 is negative; use 0"),
        (["--arms", "fedit,fedit:evaluate_every=2"], "sets evaluate_every, which all arms share"),
        (["--arms", "fedit", "--target-loss", "-3"], "target_loss -3.0 is not positive; give a positive number"),
        (
            ["--arms", "fedit,fedit+devft:stage_end=plateau", "--budget", "bytes"],
            "the arm 'fedit+devft:stage_end=plateau' cannot be run: stage_end 'plateau' ends stages by the loss",
        ),
        (
            ["--arms", "fedit,fedit+top-grow:stage_end=gain", "--budget", "bytes"],
            "the arm 'fedit+top-grow:stage_end=gain' cannot be run: stage_end 'gain' ends stages by gradients",
        ),
        (
            ["--arms", "fedit,c2a+progfed:warmup_rounds=1"],
            "the arm 'c2a+progfed:warmup_rounds=1' cannot be run: c2a trains weights that all layers share",
        ),
        (["--arms", "fedit", "--data", "nowhere.json"], "nowhere.json"),
        (["--arms", "fedit", "--rank", "0"], "rank 0 is not positive"),
    ],
)
def test_bad_input_is_one_sentence_before_any_run(tmp_path, monkeypatch, capsys, words, expected):
    monkeypatch.setattr(subprocess, "Popen", None)
    assert run_command(["compare", *words, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("devft: ")
    assert expected in said
    assert len(said.splitlines()) == 1


def test_a_folder_that_holds_a_run_is_refused(tmp_path, config):
    write_story(tmp_path / "run")
    with pytest.raises(InputError, match="holds a run; name another folder for the comparison"):
        compare(config, CompareOptions(arms=("fedit",), out=str(tmp_path / "run")), progress=QUIET)


def test_options_of_a_run_are_the_common_part_and_arms_own_theirs(tmp_path, capsys):
    (tmp_path / "run.yaml").write_text("seed: 7\nrounds: 9\n")
    common, options, _ = parse_compare(["--config", str(tmp_path / "run.yaml"), "--arms", "fedit", "--rank", "3"])
    assert (common.seed, common.rounds, common.rank) == (7, 9, 3)
    assert (options.arms, options.seeds) == (("fedit",), None)
    with pytest.raises(InputError, match="devft compare has no option --algorithm"):
        parse_compare(["--arms", "fedit", "--algorithm", "fedit"])
    with pytest.raises(SystemExit):
        parse_compare(["--help"])
    printed = " ".join(capsys.readouterr().out.split())
    for field in dataclasses.fields(CompareOptions):
        assert f"--{field.name.replace('_', '-')}" in printed


@pytest.fixture
def invented(config, monkeypatch):
    """Runs that are written instead of made; `losses(config)` gives their final loss, or None for one that fails."""
    started = []

    def install(losses, **changes):
        def supervise(self, words, log, *more):
            asked = json.loads(Path(words[-1]).read_text())
            chosen = RunConfig(**{name: tuple(value) if isinstance(value, list) else value for name, value in asked.items()})
            started.append(chosen)
            loss = losses(chosen)
            if loss is None:
                log.write_text("  round 1/4\ndevft: 2 of 2 updates are not finite.\n")
                return 1
            folder = Path(chosen.out)
            folder.mkdir(parents=True, exist_ok=True)
            write_story(folder, rounds=chosen.rounds, depths=(8,), seed=chosen.seed, **changes)
            # The split of a seed is that of every run of it.
            split = json.loads((folder / "split.json").read_text())
            clients = [{**client, "examples": 5 + chosen.seed, "tokens": 50} for client in split["clients"]]
            (folder / "split.json").write_text(json.dumps({**split, "examples": 25, "clients": clients}))
            summary = json.loads((folder / "summary.json").read_text())
            (folder / "summary.json").write_text(json.dumps({**summary, "final_loss": loss, "bytes_up": 100}))
            return 0

        monkeypatch.setattr(Runs, "_supervise", supervise)
        return started

    return install


def asked(config, tmp_path, arms=("fedit", "local-only"), **options):
    return compare(config, CompareOptions(arms=arms, out=str(tmp_path / "out"), **options), progress=QUIET)


def test_all_arms_are_judged_at_the_same_rounds_by_default(config, tmp_path, invented):
    """Rounds 1 to 4 of a run of four; a run of forty every five. Own models, a judgement of all clients, at the ends."""
    config = dataclasses.replace(config, evaluate_every=0, rounds=40)
    started = invented(lambda chosen: 2.0)
    asked(config, tmp_path, ("fedit", "fedit+devft", "local-only"))
    assert [(each.evaluate_every, each.evaluate_full) for each in started] == [(5, False), (5, True), (0, False)]
    asked(config, tmp_path, ("fedit", "fedit+devft"), evaluations=4)
    assert [each.evaluate_every for each in started[3:]] == [10, 10]
    asked(config, tmp_path, ("fedit", "fedit+devft"), evaluations=0)
    assert [(each.evaluate_every, each.evaluate_full) for each in started[5:]] == [(0, False), (0, False)]


def test_a_run_that_was_made_without_these_rounds_serves_and_is_told_of(config, tmp_path, invented):
    config = dataclasses.replace(config, evaluate_every=0, rounds=16)
    started = invented(lambda chosen: 2.0, evaluate_every=0)
    arms = ("fedit", "fedit+devft")
    asked(config, tmp_path, arms, evaluations=0)
    assert len(started) == 2
    made = asked(config, tmp_path, arms)
    assert len(started) == 2
    assert made.comparison.judged_apart == list(arms)
    assert not any(point.alike for point in made.comparison.budgets[0].arms[0].outcomes[0].curve)


def test_a_failing_arm_is_told_and_the_rest_compared(config, tmp_path, invented, capsys):
    invented(lambda chosen: None if chosen.algorithm == "local-only" and chosen.seed == 1 else 2.0 + chosen.seed)
    config = dataclasses.replace(config, capacities=None)
    words = command(config, tmp_path / "out", "fedit,local-only", "--seeds", "0,1,2")
    assert run_command(words) == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert "local-only, seed 1, failed: 2 of 2 updates are not finite. (see " in printed
    plain = json.loads((tmp_path / "out" / "comparison.json").read_text())
    fedit, local = plain["budgets"][0]["arms"]
    assert fedit["measures"]["final_loss"]["seeds"] == 3
    assert local["measures"]["final_loss"]["by_seed"] == {"0": 2.0, "2": 4.0}
    assert local["measures"]["final_loss"]["difference"]["seeds"] == 2


def test_runs_that_both_budgets_share_are_made_once(config, tmp_path, invented):
    started = invented(lambda chosen: 2.0)
    made = asked(config, tmp_path, ("fedit", "fedit+devft", "local-only"), budget=("rounds", "bytes"), seeds=(0, 1))
    rounds, sent = made.comparison.budgets
    # DevFT and local-only are the same under both; FedIT has fewer rounds under DevFT's bytes.
    assert len(started) == 2 * 4
    assert rounds.arm("fedit+devft").outcomes[0].folder == sent.arm("fedit+devft").outcomes[0].folder
    assert rounds.arm("fedit").rounds == 4
    assert sent.arm("fedit").rounds < 4
    assert "as fedit+devft does" in sent.text
    # Seeds one after the other, so that a comparison that is stopped has whole ones.
    assert [chosen.seed for chosen in started] == [0] * 4 + [1] * 4


def test_what_does_not_fit_a_budget_of_bytes_is_left_out_of_its_table_alone(config, tmp_path, invented):
    invented(lambda chosen: 2.0)
    arms = ("fedit:rank=1", "fedit+devft:rank=8")
    made = asked(config, tmp_path, arms, budget=("rounds", "bytes"))
    rounds, sent = made.comparison.budgets
    assert not made.failed
    assert [arm.name for arm in rounds.arms] == list(arms)
    assert [arm.name for arm in sent.arms] == ["fedit:rank=1"]
    for text in (to_text(made.comparison), comparison_html(made.comparison)):
        assert "fedit+devft:rank=8 is left out: its shortest run sends" in " ".join(text.split())
    with pytest.raises(InputError, match=r"the reference does not fit: .* is left out"):
        asked(config, tmp_path, arms, budget=("bytes",), reference=arms[1])


def test_every_arm_gets_the_best_of_the_rates_on_the_tuning_seed(config, tmp_path, invented):
    def losses(chosen):
        [rate] = chosen.learning_rate
        if chosen.algorithm == "local-only" and rate == 0.1:
            return None
        return abs(rate - (0.3 if chosen.algorithm == "fedit" else 0.1)) + chosen.seed / 1e6

    started = invented(losses)
    made = asked(config, tmp_path, learning_rates=(0.1, 0.3, 0.9), seeds=(0, 1))
    tuning = [chosen for chosen in started if chosen.seed == 1000]
    assert len(tuning) == 6
    fedit, local = made.comparison.budgets[0].arms
    assert (fedit.config.learning_rate, local.config.learning_rate) == ((0.3,), (0.3,))
    assert local.tuning[0.1] is None
    assert set(local.tuning) == {0.1, 0.3, 0.9}
    assert {chosen.learning_rate for chosen in started if chosen.seed != 1000} == {(0.3,)}


def test_rates_are_chosen_by_the_mean_over_the_tuning_seeds(config, tmp_path, invented):
    def losses(chosen):
        [rate] = chosen.learning_rate
        if chosen.algorithm == "local-only":
            return None if (rate, chosen.seed) == (0.1, 8) else rate
        return {(0.1, 7): 1.0, (0.1, 8): 4.0, (0.3, 7): 2.0, (0.3, 8): 2.5}.get((rate, chosen.seed), 3.0)

    started = invented(losses)
    made = asked(config, tmp_path, learning_rates=(0.1, 0.3), seeds=(0, 1), tuning_seeds=(7, 8))
    fedit, local = made.comparison.budgets[0].arms
    assert fedit.tuning == {0.1: 2.5, 0.3: 2.25}
    assert fedit.config.learning_rate == (0.3,)
    # A rate that fails on one seed is not chosen, however well it does on the others.
    assert local.tuning == {0.1: None, 0.3: 0.3}
    assert len([chosen for chosen in started if chosen.seed in (7, 8)]) == 8
    assert "on seeds 7, 8 (mean)" in " ".join(to_text(made.comparison).split())


def test_an_arm_without_any_rate_that_works_is_told(config, tmp_path, invented):
    invented(lambda chosen: 2.0 if chosen.algorithm == "fedit" else None)
    made = asked(config, tmp_path, learning_rates=(0.1, 0.3))
    assert made.failed
    [outcome] = made.comparison.budgets[0].arms[1].outcomes
    assert outcome.error == "no learning rate of the search gave a finished run."


def test_rates_need_held_out_data(config, tmp_path, invented):
    invented(lambda chosen: 2.0, held_out=False)

    def blind(job):
        found = read_outcome(job)
        return (
            None if found is None else dataclasses.replace(found, record=dataclasses.replace(found.record, final_loss=None))
        )

    module_read = module.read_outcome
    try:
        module.read_outcome = blind
        with pytest.raises(InputError, match="learning_rates needs held-out data to choose by"):
            asked(config, tmp_path, learning_rates=(0.1, 0.3))
    finally:
        module.read_outcome = module_read


def test_what_is_wrong_for_all_ends_the_comparison_at_once(config, tmp_path, monkeypatch):
    def refuse(self, words, log, *more):
        log.write_text("devft: devices 9 exceeds the 2 cpu device(s) found; use 2 or fewer.\n")
        return 2

    monkeypatch.setattr(Runs, "_supervise", refuse)
    with pytest.raises(InputError, match="fedit, seed 0: devices 9 exceeds"):
        asked(config, tmp_path)


def test_other_data_of_the_same_seed_is_refused(config, tmp_path, invented):
    invented(lambda chosen: 2.0)
    made = asked(config, tmp_path)
    outcomes = [outcome for arm in made.comparison.budgets[0].arms for outcome in arm.outcomes]
    check_splits(outcomes)
    split = Path(outcomes[1].folder) / "split.json"
    found = json.loads(split.read_text())
    found["clients"][0]["tokens"] += 1
    split.write_text(json.dumps(found))
    with pytest.raises(InputError, match="have the same seed but different data: it has changed between them"):
        asked(config, tmp_path)


def test_a_damaged_run_is_told_and_not_run_again(config, tmp_path, invented):
    invented(lambda chosen: 2.0)
    made = asked(config, tmp_path)
    folder = Path(made.comparison.budgets[0].arms[1].outcomes[0].folder)
    (folder / "metrics.jsonl").write_text("{}\n")
    again = asked(config, tmp_path)
    assert "damaged" in again.comparison.budgets[0].arms[1].outcomes[0].error


def test_a_run_that_ends_at_no_number_has_failed(config, tmp_path, invented):
    invented(lambda chosen: float("nan") if chosen.algorithm == "local-only" else 2.0)
    made = asked(config, tmp_path)
    assert made.comparison.budgets[0].arms[1].outcomes[0].error == "its final held-out loss is nan; it diverged."
    assert made.failed


def test_a_stopped_comparison_goes_on(config, tmp_path, invented, monkeypatch):
    started = invented(lambda chosen: 2.0)
    write = Runs._supervise

    def stopped(self, words, log, *more):
        if len(started) == 1:
            self._stop.signal = signal.SIGINT
            return 130
        return write(self, words, log)

    monkeypatch.setattr(Runs, "_supervise", stopped)
    made = asked(config, tmp_path)
    assert (made.comparison, made.stopped_by) == (None, signal.SIGINT)
    assert not (tmp_path / "out" / "comparison.json").exists()
    monkeypatch.setattr(Runs, "_supervise", write)
    assert not asked(config, tmp_path).failed
    assert [chosen.algorithm for chosen in started] == ["fedit", "local-only"]


@pytest.mark.slow
def test_ctrl_c_saves_the_run_under_way_and_the_same_command_goes_on(config, tmp_path):
    out = tmp_path / "out"
    longer = dataclasses.replace(config, rounds=120, evaluate_every=0, checkpoint_every=1000, capacities=None)
    words = [sys.executable, "-m", "devft_jax", *command(longer, out, "fedit,local-only")]
    process = subprocess.Popen(words, cwd=REPOSITORY, env=os.environ, stderr=subprocess.PIPE, text=True)
    while not [path for path in out.glob("runs/*/metrics.jsonl") if len(path.read_text().splitlines()) > 3]:
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    said = process.communicate()[1]
    assert process.returncode == 130
    assert "the same command resumes the comparison" in said
    [folder] = [path.parent for path in out.glob("runs/*/record.json")]
    done = len((folder / "metrics.jsonl").read_text().splitlines())
    assert 3 < done < 120
    again = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert "What was learned" in again.stdout
    assert json.loads((folder / "summary.json").read_text())["resumed_after"] == [done]
