"""Every family by the command line: loaded, packed, trained in growing stages, exported and asked.

The base is packed throughout; float bases are trained in tests/test_run.py, and every family's floats are compared with
transformers in tests/parity.
"""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from devft_jax.cli import run_command
from devft_jax.config import RunConfig
from devft_jax.models.llama import ModelConfig, forward, init_base
from devft_jax.models.peft_format import import_peft
from devft_jax.models.pretrained import load_pretrained, save_pretrained
from devft_jax.models.quantization import is_quantized
from tests.test_run import flags

SMALL = ModelConfig(vocabulary=64, width=16, feed_forward=24, layers=4, heads=4, kv_heads=2, head_size=4, max_length=64)
FAMILIES = {
    "llama": dataclasses.replace(SMALL, family="llama"),
    "mistral": dataclasses.replace(SMALL, family="mistral", sliding_window=6),
    "qwen2": dataclasses.replace(SMALL, family="qwen2", biases=("q", "k", "v"), tied_head=True),
    "qwen3": dataclasses.replace(SMALL, family="qwen3", qk_norm=True),
}


@pytest.fixture(scope="module", params=FAMILIES)
def model(request, tmp_path_factory, word_tokenizer):
    """A random model of the family with a tokenizer, in Hugging Face's layout."""
    folder = tmp_path_factory.mktemp(request.param) / "model"
    config = FAMILIES[request.param]
    base = init_base(jax.random.key(0), config)
    # Fresh weights are too small for an adapter to make anything likely.
    grown = {"embed": 20 * base.embed, "head": None if base.head is None else 20 * base.head}
    base = base.replace(**grown, blocks=jax.tree.map(lambda leaf: 3 * leaf if leaf.ndim == 3 else leaf, base.blocks))
    save_pretrained(folder, config, base, dtype="float32")
    word_tokenizer(words=tuple("abcdefghijklmnopqrstuvwxyz0123456789")).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clients(tmp_path_factory):
    """Two clients' files of letters to say again, and held-out ones."""
    folder = tmp_path_factory.mktemp("letters")
    generator = np.random.default_rng(0)
    for name in ("client_0", "client_1", "test"):
        letters = ["abcdefgh"[int(index)] for index in generator.integers(0, 8, 16)]
        (folder / f"{name}.json").write_text(json.dumps([{"instruction": one, "output": f"{one} 1"} for one in letters]))
    return folder


@pytest.fixture(scope="module")
def run(model, clients, tmp_path_factory):
    """A finished run of two stages on the packed base."""
    config = RunConfig(
        model=str(model),
        data=str(clients / "client_*.json"),
        test_data=str(clients / "test.json"),
        template="completion",
        quantization="nf4",
        capacities=(2, 4),
        rounds=10,
        stage_rounds=(2, 8),
        clients_per_round=2,
        local_steps=4,
        batch_size=4,
        max_length=16,
        rank=4,
        alpha=8.0,
        targets=("q", "k", "v", "o", "gate", "up", "down"),
        learning_rate=(0.05,),
        devices=1,
        out=str(tmp_path_factory.mktemp("run") / "run"),
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


def test_it_is_packed(run, model):
    loaded = load_pretrained(model, quantization=run.quantization)
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
    np.testing.assert_allclose(forward(merged.config, merged.base, None, tokens), together, atol=1e-4)
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
