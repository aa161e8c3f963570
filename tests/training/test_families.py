"""Every family by the command line: loaded, packed, trained in growing stages, exported and asked.

The base is packed throughout; float bases are trained in tests/training/test_run.py, and every family's floats are
compared with transformers in tests/parity.
"""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from devft_jax.commands.cli import run_command
from devft_jax.models.architecture import PROJECTIONS
from devft_jax.models.base import init_base
from devft_jax.models.huggingface.peft.reading import import_peft
from devft_jax.models.huggingface.reading import load_pretrained
from devft_jax.models.llama import forward
from devft_jax.models.quantization import is_quantized
from tests.tiny_run import MODEL, write_run_inputs
from tests.training.test_run import flags

FAMILIES = {
    "llama": dataclasses.replace(MODEL, family="llama"),
    "mistral": dataclasses.replace(MODEL, family="mistral", sliding_window=6),
    "qwen2": dataclasses.replace(MODEL, family="qwen2", biases=("q", "k", "v"), tied_head=True),
    "qwen3": dataclasses.replace(MODEL, family="qwen3", qk_norm=True),
}


# One family with biases and a tied head and one with normalised queries by default; the slow suite has all.
@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=[pytest.mark.slow] if name in ("llama", "mistral") else []) for name in FAMILIES],
)
def run(request, tmp_path_factory, word_tokenizer):
    """The configuration of a finished run of two stages on a packed random model of the family."""
    folder = tmp_path_factory.mktemp(request.param)
    model = FAMILIES[request.param]
    base = init_base(jax.random.key(0), model)
    # Fresh weights are too small for an adapter to make anything likely.
    grown = {"embed": 20 * base.embed, "head": None if base.head is None else 20 * base.head}
    base = base.replace(**grown, blocks=jax.tree.map(lambda leaf: 3 * leaf if leaf.ndim == 3 else leaf, base.blocks))
    config = dataclasses.replace(
        write_run_inputs(folder, word_tokenizer, model, base),
        quantization="nf4",
        capacities=(2, 4),
        rounds=10,
        stage_rounds=(2, 8),
        local_steps=4,
        batch_size=4,
        dropout=0.0,
        targets=PROJECTIONS,
        devices=1,
        out=str(folder / "run"),
    )
    assert run_command(["run", *flags(config)]) == 0
    return config


def summary_of(run):
    with open(f"{run.out}/summary.json") as file:
        return json.load(file)


def test_it_trains(run):
    summary = summary_of(run)
    assert [stage["layers"] for stage in summary["stages"]] == [2, 4]
    assert summary["final_loss"] < summary["base_loss"] - 0.3


def test_it_is_packed(run):
    loaded = load_pretrained(run.model, quantization=run.quantization)
    assert is_quantized(loaded.base)
    assert summary_of(run)["base_bytes"] == sum(leaf.nbytes for leaf in jax.tree.leaves(loaded.base))


def test_it_is_exported(run, tmp_path):
    """The merged model computes what base and adapter do together; a packed base is merged as it was trained."""
    for form in ("merged", "submodel", "adapter"):
        assert run_command(["export", run.out, "--form", form, "--out", str(tmp_path / form), "--dtype", "float32"]) == 0
    base = load_pretrained(run.model, quantization=run.quantization)
    adapter = import_peft(tmp_path / "adapter", base.config)
    merged = load_pretrained(tmp_path / "merged")
    assert merged.config == base.config
    tokens = jnp.arange(24).reshape(2, 12)
    together = forward(base.config, base.base, adapter, tokens)
    # Merging rounds otherwise than adding; processors differ, and 1.6e-4 was seen.
    np.testing.assert_allclose(forward(merged.config, merged.base, None, tokens), together, atol=1e-3)
    assert np.abs(together - forward(base.config, base.base, None, tokens)).max() > 0.1


def test_it_answers(run, tmp_path, capfd):
    out = tmp_path / "answers.jsonl"
    (tmp_path / "prompts.txt").write_text("a\nb\nh\n")
    words = ["--file", str(tmp_path / "prompts.txt"), "--compare", "--max-new-tokens", "6", "--out", str(out)]
    assert run_command(["generate", run.out, *words]) == 0
    answers = [json.loads(line) for line in out.read_text().splitlines()]
    assert [answer["prompt"] for answer in answers] == ["a", "b", "h"]
    # What was learned shows: answers end with "1" and an end token, as the clients' do and the base's do not.
    assert all(answer["adapter"]["finish_reason"] == "eos" for answer in answers)
    assert all(answer["adapter"]["completion"].endswith("1") for answer in answers)
    assert not all(answer["base"]["completion"].endswith("1") for answer in answers)
