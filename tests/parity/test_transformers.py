"""Logits equal those of transformers on the same checkpoint, within 1e-4 in float32."""

import dataclasses
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("torch", reason="parity needs torch: pip install 'devft-jax[parity]'")

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from devft_jax.models.llama import ModelConfig, RopeScaling, forward, init_base
from devft_jax.models.pretrained import load_pretrained, save_pretrained

pytestmark = pytest.mark.parity

TINY = {
    "vocab_size": 101,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
ARCHITECTURES = {
    "llama 2": {"rms_norm_eps": 1e-5},
    "llama 3": {"num_key_value_heads": 2, "rope_parameters": LLAMA3_ROPE, "tie_word_embeddings": True},
    "llama 3, untied, one kv head": {"num_key_value_heads": 1, "rope_parameters": LLAMA3_ROPE},
    "linear scaling": {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10_000.0}},
    "own head size": {"head_dim": 14, "num_key_value_heads": 2},
    "32 layers": {"num_hidden_layers": 32, "num_key_value_heads": 2},
}


def token_ids(vocabulary: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, vocabulary, (2, 40))


def assert_same_logits(model: torch.nn.Module, folder) -> None:
    loaded = load_pretrained(folder, dtype="float32")
    tokens = token_ids(loaded.config.vocabulary)
    with torch.no_grad():
        expected = model.float().eval()(torch.from_numpy(tokens)).logits.numpy()
    logits = forward(loaded.config, loaded.base, None, jnp.asarray(tokens))
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(logits, expected, atol=1e-4)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_checkpoints_of_transformers(tmp_path, name):
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**(TINY | ARCHITECTURES[name]), initializer_range=0.08))
    model.save_pretrained(tmp_path)
    assert_same_logits(model, tmp_path)


def test_sharded_checkpoints_of_transformers(tmp_path):
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**TINY, initializer_range=0.08))
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    assert sum(file.endswith(".safetensors") for file in os.listdir(tmp_path)) > 2
    assert_same_logits(model, tmp_path)


OURS = ModelConfig(vocabulary=101, width=32, feed_forward=48, layers=3, heads=4, kv_heads=2, head_size=10, rope_theta=5e5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "config",
    [
        OURS,
        dataclasses.replace(OURS, tied_head=True),
        dataclasses.replace(OURS, rope_scaling=RopeScaling("linear", 4.0)),
        dataclasses.replace(OURS, rope_scaling=RopeScaling("llama3", 8.0, 1.0, 4.0, 16), max_length=64),
    ],
    ids=["plain", "tied", "linear", "llama3"],
)
def test_our_checkpoints_load_in_transformers(tmp_path, config, dtype):
    base = jax.tree.map(lambda leaf: 4 * leaf, init_base(jax.random.key(0), config))
    save_pretrained(tmp_path, config, base, dtype=dtype)
    model, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.dtype == getattr(torch, dtype)
    assert (model.config.bos_token_id, model.config.eos_token_id) == (1, 2)
    assert_same_logits(model, tmp_path)


def test_a_really_pretrained_model(shared):
    folder = shared / "models" / "proxy-16l"
    assert_same_logits(AutoModelForCausalLM.from_pretrained(folder), folder)
