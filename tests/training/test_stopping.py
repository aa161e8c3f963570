"""Runs that are stopped, killed or left alone by whoever read their progress, in processes of their own."""

import dataclasses
import itertools
import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from devft_jax.reporting import Progress
from devft_jax.reporting.report import report_html
from devft_jax.reporting.report_file import read_settings, read_story
from devft_jax.storage.records import CompiledAheadRecord, SecondsRecord
from tests.several_processes import MAIN
from tests.tiny_run import adapter_bytes, flags

QUIET = Progress(quiet=True)


def start(config, folder, script=None):
    """The run in a process of its own, with the test session's compiled programs."""
    code = MAIN if script is None else script
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        [sys.executable, "-c", code, "run", *flags(config, out=str(folder))],
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def wait_for_rounds(process, folder, rounds):
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        path = folder / "metrics.jsonl"
        if path.exists() and path.read_text().count("\n") >= rounds:
            return
        if process.poll() is not None:
            pytest.fail(f"the run ended early: {process.stderr.read()}")
        time.sleep(0.005)
    pytest.fail("the run made no progress")


@pytest.fixture(scope="module")
def long(config):
    return dataclasses.replace(config, rounds=15)


@pytest.fixture(scope="module")
def uninterrupted(long, tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    process = start(long, folder)
    assert process.wait(180) == 0, process.stderr.read()
    return folder


KILL_IN_CHECKPOINT = textwrap.dedent(
    """
    import os, signal, sys, threading, time
    from pathlib import Path
    folder = Path(sys.argv[sys.argv.index("--out") + 1]) / "checkpoints"
    def watch():
        while True:
            try:
                whole = [name for name in os.listdir(folder) if name.isdecimal()]
                partial = [path for path in folder.glob(".*.partial") if any(WHERE in name for name in os.listdir(path))]
            except OSError:  # it has just got its name
                continue
            if whole and partial:
                os.kill(os.getpid(), signal.SIGKILL)
    threading.Thread(target=watch, daemon=True).start()
    """
)


def slow(value):
    """One more case of what the default suite tries once."""
    return pytest.param(value, marks=pytest.mark.slow)


@pytest.mark.parametrize("where", [slow("first-stage"), "stage-border", slow("last-stage"), "tmp", slow("record")])
def test_a_killed_run_resumes_bit_for_bit(long, uninterrupted, tmp_path, where):
    if where in ("tmp", "record"):
        every = dataclasses.replace(long, checkpoint_every=1)
        process = start(every, tmp_path, f"{KILL_IN_CHECKPOINT.replace('WHERE', repr(where))}\n{MAIN}")
        process.wait(180)
    else:
        process = start(long, tmp_path)
        wait_for_rounds(process, tmp_path, {"first-stage": 3, "stage-border": 5, "last-stage": 13}[where])
        process.kill()
        process.wait(60)
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "adapter").exists()
    resumed = start(long, tmp_path)
    assert resumed.wait(180) == 0, resumed.stderr.read()
    assert adapter_bytes(tmp_path) == adapter_bytes(uninterrupted)
    rounds = [json.loads(line)["round"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rounds == list(range(1, 16))
    mine, theirs = (json.loads((folder / "summary.json").read_text()) for folder in (tmp_path, uninterrupted))
    for name in ("final_loss", "bytes_up", "bytes_down", "bytes_stage", "train_flops", "rounds"):
        assert mine[name] == theirs[name], name
    if mine["energy"]["source"] == theirs["energy"]["source"] == "estimate from FLOPs":
        assert mine["energy"]["kwh"] == pytest.approx(theirs["energy"]["kwh"], rel=1e-12)


@pytest.mark.parametrize("stream", ["closed", slow("/dev/full")])
def test_a_run_whose_progress_nobody_takes_goes_on(config, finished, tmp_path, stream):
    command = [
        sys.executable,
        "-c",
        MAIN,
        "run",
        *flags(config, out=str(tmp_path)),
    ]
    if stream == "closed":
        process = subprocess.Popen(command, stderr=subprocess.PIPE, env={**os.environ, "JAX_PLATFORMS": "cpu"})
        process.stderr.close()
        assert process.wait(180) == 0
    else:
        with open(stream, "w") as full:
            assert subprocess.run(command, stderr=full, env={**os.environ, "JAX_PLATFORMS": "cpu"}).returncode == 0
    assert adapter_bytes(tmp_path) == adapter_bytes(finished.folder)
    assert json.loads((tmp_path / "summary.json").read_text())["progress_lost"] in ("Broken pipe", "No space left on device")


def test_a_stop_while_a_run_is_loaded_is_before_its_first_round(long, tmp_path):
    process = start(long, tmp_path / "run")
    deadline = time.monotonic() + 60
    while not (tmp_path / "run" / ".lock").exists() and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM
    said = process.stderr.read()
    assert "stopped before a round was trained; the same command starts the run again" in said
    assert "Traceback" not in said
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, slow(signal.SIGTERM), slow(signal.SIGHUP)])
def test_a_stopped_run_says_how_to_go_on_and_does(long, uninterrupted, tmp_path, number):
    process = start(long, tmp_path)
    wait_for_rounds(process, tmp_path, 4)
    process.send_signal(number)
    assert process.wait(60) == 128 + number
    assert "the same command resumes it" in process.stderr.read()
    done = len((tmp_path / "metrics.jsonl").read_text().splitlines())
    assert f"stopped after round {done} of 15" in (tmp_path / "report.html").read_text()
    resumed = start(long, tmp_path)
    assert resumed.wait(180) == 0, resumed.stderr.read()
    assert adapter_bytes(tmp_path) == adapter_bytes(uninterrupted)
    assert f"finished: 15 rounds, resumed after round {done}<" in (tmp_path / "report.html").read_text()
    story = read_story(tmp_path)
    assert story.resumes == [done]
    for axis in story.axes:
        assert len(axis.values) == 16
        assert all(before < after for before, after in itertools.pairwise(axis.values))
    assert timeless_page(tmp_path) == timeless_page(uninterrupted)


def timeless_page(folder):
    """The report without what two equal runs differ in: times, memory, the folder's name and where it was resumed."""

    story = read_story(folder)
    record = dataclasses.replace(
        story.record,
        resumed_after=[],
        peak_memory_bytes=1,
        seconds=SecondsRecord(train=1, compile=1, build=1, evaluate=1),
        compiled_ahead=CompiledAheadRecord(programs=1, seconds=1, unused=0),
        stages=[dataclasses.replace(stage, seconds=1.0) for stage in story.record.stages],
    )
    rows = [dataclasses.replace(row, seconds=1.0, tokens_per_second=1.0) for row in story.rows]
    config = dataclasses.replace(story.config, out="run")
    story = dataclasses.replace(story, name="run", config=config, record=record, rows=rows)
    return report_html(story, read_settings(story.config))
