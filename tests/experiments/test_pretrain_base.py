"""Pretraining of the bundled model: from text to a folder that loads, with a stop on the way."""

import gzip
import json
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from devft_jax.models import load_pretrained

PARAGRAPH = "The old woman went down to the river in the morning, and there she found a little boat with a red sail. "


def pretrain(out, text, steps):
    options = {
        "text": text,
        "text-characters": 4000,
        "documents": 60,
        "steps": steps,
        "batch": 4,
        "length": 32,
        "vocabulary": 300,
        "layers": 2,
        "width": 16,
        "feed-forward": 24,
        "heads": 2,
        "kv-heads": 1,
        "every": 3,
        "dtype": "float32",
    }
    flags = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    command = [sys.executable, "experiments/pretrain_base.py", "--out", str(out), *flags]
    subprocess.run(command, check=True, capture_output=True)
    return json.loads((out / "training.json").read_text())["history"]


@pytest.mark.slow
def test_a_stopped_pretraining_ends_where_an_unstopped_one_does(tmp_path):
    text = tmp_path / "books.jsonl.gz"
    with gzip.open(text, "wt") as file:
        for shelf in ("children", "fiction"):
            file.write(json.dumps({"shelf": shelf, "text": "\n\n".join([PARAGRAPH * 2] * 40)}) + "\n")
    whole = pretrain(tmp_path / "whole", text, 6)
    # A training that was stopped after its third step is one whose folder holds no later checkpoint.
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    shutil.rmtree(tmp_path / "parts" / "checkpoints" / "6")
    (tmp_path / "parts" / "model.safetensors").unlink()
    parts = pretrain(tmp_path / "parts", text, 6)
    names = ("step", "tokens", "loss", "held_out_problems", "held_out_answers", "held_out_prose")
    assert [[row[name] for name in names] for row in parts] == [[row[name] for name in names] for row in whole]
    assert [row["step"] for row in whole] == [3, 6]
    one, other = (load_pretrained(tmp_path / name) for name in ("whole", "parts"))
    jax.tree.map(np.testing.assert_array_equal, one.base, other.base)
    assert one.config.layers == 2
    assert one.config.vocabulary == 300
    pieces = one.tokenizer.encode("The boat cost 42.", add_special_tokens=False)
    assert one.tokenizer.decode(pieces) == "The boat cost 42."
    assert [one.tokenizer.decode([piece]).strip() for piece in pieces][-3:] == ["4", "2", "."]
