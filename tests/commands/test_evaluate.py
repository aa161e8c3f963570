"""`devft evaluate`: a process that is killed, and models that cannot be evaluated."""

import contextlib
import json
import os
import subprocess
import sys
import time

import jax
import pytest

pytest.importorskip("lm_eval", reason="needs lm-eval: pip install 'devft-jax[eval]'")

from devft_jax.commands.cli import run_command
from devft_jax.harness import scoring
from tests.benchmarking.task_files import write_task
from tests.conftest import REPOSITORY
from tests.inference.folders import write_folders

WORDS = ("evaluate", "bundled", "--tasks", "microtasks:40", "--text-batch", "4")


def finished(cache):
    """(key, answer) of every finished request in a cache, in the order in which they were kept."""
    found = []
    for file in (cache / "evaluations").glob("*.jsonl"):
        for line in file.read_bytes().split(b"\n"):
            # A kill may cut the last line.
            with contextlib.suppress(ValueError):
                row = json.loads(line)
                found.append((row["key"], row["answer"]))
    return found


@pytest.mark.slow
def test_a_killed_process_resumes_and_computes_no_request_twice(tmp_path, token_cache, monkeypatch, capsys):
    one = jax.devices()[:1]
    monkeypatch.setattr(scoring.jax, "local_devices", lambda: one)
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    for cache in (killed, whole):
        cache.mkdir()
        (cache / "programs").symlink_to(token_cache / "programs")
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "DEVFT_CACHE": str(killed)}
    command = [sys.executable, "-m", "devft_jax", *WORDS]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while not finished(killed):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.kill()
    process.communicate(timeout=60)
    kept = finished(killed)
    assert 0 < len(kept) < 40
    scores = {}
    for cache in (killed, whole):
        monkeypatch.setenv("DEVFT_CACHE", str(cache))
        out = tmp_path / f"{cache.name}.json"
        assert run_command([*WORDS, "--out", str(out)]) == 0
        said = f"texts: {len(kept)} of 40 requests were finished before"
        assert (said in capsys.readouterr().err) == (cache is killed)
        scores[cache] = json.loads(out.read_text())["models"]
    resumed = finished(killed)
    assert resumed[: len(kept)] == kept
    assert len(resumed) == len(dict(resumed)) == 40
    assert dict(resumed) == dict(finished(whole))
    assert scores[killed] == scores[whole]


def test_a_model_that_cannot_be_evaluated_is_one_sentence(tmp_path, word_tokenizer, capsys):
    """Without a chat template that was asked for, and without a tokenizer."""
    model, words = write_folders(tmp_path, word_tokenizer)["model"], ["--tasks", write_task(tmp_path)]
    assert run_command(["evaluate", model, *words, "--apply-chat-template", "true"]) == 2
    said = capsys.readouterr().err
    assert "has no chat template; leave apply_chat_template out" in said
    assert said.count("devft: ") == 1
    for file in tmp_path.glob("model/tokenizer*"):
        file.unlink()
    assert run_command(["evaluate", model, *words]) == 2
    said = capsys.readouterr().err
    assert "holds no tokenizer; add the tokenizer.json that the model was trained with" in said
    assert said.count("devft: ") == 1
