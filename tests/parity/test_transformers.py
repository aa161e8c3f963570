"""Logits equal those of transformers on the same checkpoint, within 1e-4 in float32."""

import dataclasses
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("torch", reason="parity needs torch: pip install 'devft-jax[parity]'")

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from devft_jax.models.architecture import PROJECTIONS, ModelConfig, RopeScaling
from devft_jax.models.base import init_base
from devft_jax.models.huggingface.reading import load_pretrained
from devft_jax.models.huggingface.writing import save_pretrained
from devft_jax.models.llama import forward

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
    "llama with biases": {"attention_bias": True, "mlp_bias": True},
    "tinyllama": {"num_key_value_heads": 1, "rms_norm_eps": 1e-5, "max_position_embeddings": 2048},
    "mistral": {"model_type": "mistral", "num_key_value_heads": 2, "sliding_window": 8},
    "mistral without a window": {"model_type": "mistral", "num_key_value_heads": 2, "sliding_window": None},
    "qwen2": {"model_type": "qwen2", "num_key_value_heads": 2, "tie_word_embeddings": True},
    "qwen2.5": {
        "model_type": "qwen2",
        "num_key_value_heads": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    },
    "qwen2 with a window": {
        "model_type": "qwen2",
        "num_key_value_heads": 2,
        "use_sliding_window": True,
        "sliding_window": 8,
        "max_window_layers": 0,
    },
    "qwen3": {"model_type": "qwen3", "num_key_value_heads": 2, "head_dim": 14, "tie_word_embeddings": True},
    "qwen3 with biases": {"model_type": "qwen3", "num_key_value_heads": 2, "head_dim": 10, "attention_bias": True},
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


def random_model(**fields) -> torch.nn.Module:
    """A model of transformers in which no parameter is one or zero, so that every norm and bias matters."""
    torch.manual_seed(0)
    fields = {"model_type": "llama", **TINY, **fields, "initializer_range": 0.08}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**fields))
    for parameter in model.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_checkpoints_of_transformers(tmp_path, name):
    model = random_model(**ARCHITECTURES[name])
    model.save_pretrained(tmp_path)
    assert_same_logits(model, tmp_path)


def test_sharded_checkpoints_of_transformers(tmp_path):
    model = random_model()
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
        dataclasses.replace(OURS, biases=PROJECTIONS),
        dataclasses.replace(OURS, family="mistral", sliding_window=8),
        dataclasses.replace(OURS, family="qwen2", biases=("q", "k", "v"), tied_head=True),
        dataclasses.replace(OURS, family="qwen2", biases=("q", "k", "v"), sliding_window=8),
        dataclasses.replace(OURS, family="qwen3", qk_norm=True),
    ],
    ids=["plain", "tied", "linear", "llama3", "biases", "mistral", "qwen2", "qwen2 window", "qwen3"],
)
def test_our_checkpoints_load_in_transformers(tmp_path, config, dtype):
    # Weights large enough to matter, biases and norms unequal, and attention not so sharp that float32 rounding shows.
    ramp = lambda leaf: 0.3 * jnp.arange(leaf.shape[-1]) / leaf.shape[-1]  # noqa: E731
    init = init_base(jax.random.key(0), config)
    base = jax.tree.map(lambda leaf: leaf + ramp(leaf) if leaf.shape[-2:-1] in ((), (config.layers,)) else 4 * leaf, init)
    save_pretrained(tmp_path, config, base, dtype=dtype, bos_id=1, eos_id=2)
    model, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.dtype == getattr(torch, dtype)
    assert (model.config.bos_token_id, model.config.eos_token_id) == (1, 2)
    assert_same_logits(model, tmp_path)


def test_a_really_pretrained_model(shared):
    folder = shared / "models" / "proxy-16l"
    assert_same_logits(AutoModelForCausalLM.from_pretrained(folder), folder)
