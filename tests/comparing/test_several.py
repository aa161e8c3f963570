"""Comparisons whose runs are made at the same time, and shared by several processes on loopback."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from devft_jax.commands.cli import run_command
from devft_jax.config.run_config import RunConfig
from tests.several_processes import assert_equal_runs, finish, free_port
from tests.tiny_run import write_run_inputs
from tests.training.test_run import flags

# The machine does not have these cores, so that its runs keep those of the test.
MAIN = "import os; os.sched_getaffinity = lambda process: {2000, 2001}\nfrom devft_jax.commands.cli import main; main()"


@pytest.fixture(scope="module")
def config(tmp_path_factory, word_tokenizer):
    written = write_run_inputs(tmp_path_factory.mktemp("tiny"), word_tokenizer)
    return dataclasses.replace(written, rounds=4, local_steps=1, devices=1, evaluate_every=1)


def words(config, out, *more):
    return ["compare", *flags(config), "--arms", "fedit,fedit+devft:capacities=2/4", "--out", str(out), *more]


@pytest.fixture(scope="module")
def one_by_one(config, tmp_path_factory):
    """The folder of a comparison whose two runs were made one after the other."""
    out = tmp_path_factory.mktemp("one") / "out"
    assert run_command(words(config, out)) == 0
    return out


def start(arguments, index=None, port=0, folder=None):
    joined = {}
    if index is not None:
        joined = {"DEVFT_HOSTS": f"127.0.0.1:{port}", "DEVFT_PROCESSES": "2", "DEVFT_PROCESS": str(index)}
    environment, pipe = {**os.environ, "JAX_PLATFORMS": "cpu", **joined}, subprocess.PIPE
    command = [sys.executable, "-c", MAIN, *arguments]
    return subprocess.Popen(command, stderr=pipe, stdout=pipe, text=True, env=environment, cwd=folder)


def assert_equal_comparisons(out, other):
    runs = sorted(path.name for path in other.glob("runs/*") if path.is_dir())
    assert len(runs) == 2
    for name in runs:
        assert_equal_runs(out / "runs" / name, other / "runs" / name)
    mine, theirs = (json.loads((each / "comparison.json").read_text())["budgets"][0]["arms"] for each in (out, other))
    for arm, same in zip(mine, theirs, strict=True):
        assert arm["measures"]["final_loss"] == same["measures"]["final_loss"]


def wait_for_rounds(out, runs, processes):
    """Wait until this many runs have trained a round."""
    deadline = time.monotonic() + 200
    while len([path for path in out.glob("runs/*/metrics.jsonl") if path.read_text().count("\n") > 1]) < runs:
        assert all(process.poll() is None for process in processes)
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_two_runs_at_once_give_the_results_of_one_by_one(config, tmp_path, one_by_one):
    out = tmp_path / "out"
    [(code, said)] = finish([start(words(config, out, "--at-once", "2"))])
    assert code == 0, said
    assert_equal_comparisons(out, one_by_one)
    lines = said.splitlines()
    for name in ("run 1 of 2: fedit, seed ", "run 2 of 2: fedit+devft:capacities=2/4, seed "):
        assert [line for line in lines if line.startswith(name) and "held-out loss" in line]


@pytest.mark.slow
def test_a_stop_saves_all_runs_under_way_and_the_same_command_resumes_them(config, tmp_path):
    out = tmp_path / "out"
    longer = dataclasses.replace(config, rounds=200, evaluate_every=0, checkpoint_every=1000)
    arguments = words(longer, out, "--at-once", "2")
    process = start(arguments)
    wait_for_rounds(out, 2, [process])
    process.send_signal(signal.SIGTERM)
    [(code, said)] = finish([process])
    assert code == 128 + signal.SIGTERM, said
    assert "the same command resumes the comparison" in said
    assert said.count("stopping when the run has saved its round") == 2
    saved = [path.parent for path in out.glob("runs/*/checkpoints")]
    assert len(saved) == 2
    [(code, said)] = finish([start(arguments)])
    assert code == 0, said
    assert all("resuming" in log.read_text() for log in out.glob("runs/*.log"))
    whole = tmp_path / "whole"
    assert run_command(words(longer, whole)) == 0
    assert_equal_comparisons(out, whole)


@pytest.mark.slow
def test_two_processes_share_the_runs_and_process_0_writes_the_tables(config, tmp_path, one_by_one):
    out, port = tmp_path / "out", free_port()
    found = finish([start(words(config, out), index, port) for index in range(2)])
    assert [code for code, _ in found] == [0, 0], found
    assert_equal_comparisons(out, one_by_one)
    assert "run 1 of 2: fedit, seed" in found[0][1]
    assert "run 2 of 2: fedit+devft" in found[1][1]
    assert "run 2 of 2" not in found[0][1]


@pytest.mark.slow
def test_processes_choose_the_same_rates_and_one_process_finds_all_runs_finished(config, tmp_path, monkeypatch, capsys):
    out, port = tmp_path / "out", free_port()
    short = dataclasses.replace(config, rounds=2, learning_rate=RunConfig.learning_rate)
    arguments = words(short, out, "--learning-rates", "0.01,0.1")
    found = finish([start([*arguments, "--at-once", "1"], index, port) for index in range(2)])
    assert [code for code, _ in found] == [0, 0], found
    written = json.loads((out / "comparison.json").read_text())
    monkeypatch.setattr(subprocess, "Popen", None)
    assert run_command(arguments) == 0
    assert "tuning runs finished before: 4 of 4\nruns finished before: 2 of 2" in capsys.readouterr().err
    again = json.loads((out / "comparison.json").read_text())
    assert again["budgets"] == written["budgets"]


@pytest.mark.slow
def test_a_stop_in_one_process_reaches_all_and_one_process_goes_on(config, tmp_path):
    out, port = tmp_path / "out", free_port()
    longer = dataclasses.replace(config, rounds=400, evaluate_every=0, checkpoint_every=1000)
    started = [start(words(longer, out), index, port) for index in range(2)]
    wait_for_rounds(out, 2, started)
    started[1].send_signal(signal.SIGINT)
    found = finish(started)
    assert [code for code, _ in found] == [130, 130], found
    assert len(list(out.glob("runs/*/checkpoints"))) == 2
    alone = start(words(longer, out))
    deadline = time.monotonic() + 200
    while not any("resuming" in log.read_text() for log in out.glob("runs/*.log")):
        assert alone.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    alone.send_signal(signal.SIGINT)
    [(code, said)] = finish([alone])
    assert code == 130, said


@pytest.mark.slow
def test_a_process_that_dies_ends_the_other_and_all_runs(config, tmp_path):
    out, port = tmp_path / "out", free_port()
    longer = dataclasses.replace(config, rounds=400, evaluate_every=0, checkpoint_every=1000)
    started = [start(words(longer, out), index, port) for index in range(2)]
    wait_for_rounds(out, 2, started)
    started[1].kill()
    found = finish(started)
    assert found[0][0] == 1, found
    assert "process 1 of 2 (on " in found[0][1]
    # The runs notice that their parents have gone, and save their rounds.
    deadline = time.monotonic() + 60
    while not all("the same command resumes" in log.read_text() for log in out.glob("runs/*.log")):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_processes_with_other_commands_are_refused(config, tmp_path):
    port = free_port()
    started = [start(words(config, tmp_path / "out", "--seeds", str(index)), index, port) for index in range(2)]
    for code, said in finish(started):
        assert code == 2, said
        assert "seeds is (1,) in process 1 of 2 and (0,) in process 0; start the same command in all of them." in said


@pytest.mark.slow
def test_a_folder_that_not_all_processes_see_is_refused(config, tmp_path):
    port, started = free_port(), []
    for index in range(2):
        folder = tmp_path / f"host{index}"
        folder.mkdir()
        started.append(start(words(config, "out"), index, port, folder))
    for code, said in finish(started):
        assert code == 2, said
        assert "is another folder for process 1 of 2 than for process 0; name one on storage" in said
