"""Families: what config.json says of each, and that saving and loading one is the identity."""

import dataclasses
import json
import os
import time

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from devft_jax.errors import InputError
from devft_jax.models.architecture import ModelConfig, RopeScaling
from devft_jax.models.base import parameter_count
from devft_jax.models.huggingface.families import FAMILIES, config_fields, read_config
from devft_jax.models.huggingface.reading import load_pretrained
from devft_jax.models.huggingface.writing import save_pretrained
from devft_jax.models.llama import Compute, forward
from tests.models.conftest import CONFIG, random_base
from tests.models.huggingface.checkpoints import LLAMA3, edit_config

SMALL = {
    "vocab_size": 37,
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}

EXAMPLES = {
    "llama": CONFIG,
    "llama with biases": dataclasses.replace(CONFIG, biases=("q", "k", "v", "o", "gate", "up", "down")),
    "mistral": dataclasses.replace(CONFIG, family="mistral", sliding_window=3),
    "mistral without a window": dataclasses.replace(CONFIG, family="mistral"),
    "qwen2": dataclasses.replace(CONFIG, family="qwen2", biases=("q", "k", "v"), tied_head=True),
    "qwen2 with a window": dataclasses.replace(CONFIG, family="qwen2", biases=("q", "k", "v"), sliding_window=5),
    "qwen3": dataclasses.replace(CONFIG, family="qwen3", qk_norm=True, rope_scaling=RopeScaling("linear", 2.0)),
    "qwen3 with biases": dataclasses.replace(CONFIG, family="qwen3", qk_norm=True, biases=("q", "k", "v", "o")),
}


def written(path, **fields):
    path.write_text(json.dumps(fields))
    return path


@pytest.mark.parametrize("config", EXAMPLES.values(), ids=EXAMPLES)
def test_a_config_survives_its_file(tmp_path, config):
    assert (
        read_config(written(tmp_path / "config.json", **config_fields(config), tie_word_embeddings=config.tied_head))
        == config
    )


@pytest.mark.parametrize("config", EXAMPLES.values(), ids=EXAMPLES)
def test_saving_and_loading_is_the_identity(tmp_path, config):
    base = random_base(config)
    save_pretrained(tmp_path, config, base, dtype="float32")
    loaded = load_pretrained(tmp_path)
    assert loaded.config == config
    chex.assert_trees_all_equal(loaded.base, base)
    assert parameter_count(loaded.base) == sum(leaf.size for leaf in jax.tree.leaves(base))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_read_with_its_own_defaults(tmp_path, family):
    config = read_config(written(tmp_path / "config.json", model_type=family, **SMALL))
    assert config.family == family
    assert config.head_size == (128 if family == "qwen3" else 4)
    assert config.biases == (("q", "k", "v") if family == "qwen2" else ())
    assert config.qk_norm == (family == "qwen3")
    assert config.sliding_window == (4096 if family == "mistral" else None)
    assert config.norm_epsilon == 1e-6


@pytest.mark.parametrize(
    ("fields", "window"),
    [
        ({"model_type": "mistral", "sliding_window": None}, None),
        ({"model_type": "mistral", "sliding_window": 7}, 7),
        ({"model_type": "qwen2", "sliding_window": 7}, None),
        ({"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 7}, None),
        ({"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 7, "max_window_layers": 3}, None),
        ({"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 7, "max_window_layers": 0}, 7),
        ({"model_type": "qwen3", "use_sliding_window": True, "layer_types": ["sliding_attention"] * 3}, 4096),
        ({"model_type": "qwen3", "use_sliding_window": True, "layer_types": ["full_attention"] * 3}, None),
    ],
    ids=str,
)
def test_when_a_window_slides(tmp_path, fields, window):
    assert read_config(written(tmp_path / "config.json", **SMALL, **fields)).sliding_window == window


def test_a_mixture_of_sliding_and_full_layers_is_refused(tmp_path):
    fields = {"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 1}
    with pytest.raises(InputError, match=r"mixes full_attention and sliding_attention.*set use_sliding_window to false"):
        read_config(written(tmp_path / "config.json", **SMALL, **fields))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layer_types": 5}, "layer_types 5 in .* does not name the kind of each of the 3 layers"),
        ({"layer_types": []}, r"layer_types \[\] in .* does not name"),
        ({"layer_types": ["sliding_attention"]}, "does not name the kind of each of the 3 layers; correct the config"),
        ({"layer_types": [["full_attention"]] * 3}, "does not name the kind of each"),
        ({"max_window_layers": "x"}, 'max_window_layers "x" in .* is not a whole number'),
    ],
    ids=str,
)
def test_kinds_of_layers_that_say_nothing_are_refused(tmp_path, fields, message):
    with pytest.raises(InputError, match=message):
        read_config(written(tmp_path / "config.json", **SMALL, model_type="qwen2", use_sliding_window=True, **fields))


def naive_window(config: ModelConfig, base, tokens: np.ndarray) -> np.ndarray:
    """Logits of the last position when the model is shown only what a one-layer model's window holds."""
    return np.asarray(forward(config, base, None, jnp.asarray(tokens[:, -config.sliding_window :])))[:, -1]


def test_a_window_hides_what_lies_before_it():
    """One layer sees its window alone: cutting the text in front of it changes nothing, since rotation is relative."""
    config = dataclasses.replace(CONFIG, layers=1, sliding_window=4)
    base = random_base(config)
    tokens = np.random.default_rng(0).integers(0, config.vocabulary, (2, 9))
    windowed = forward(config, base, None, jnp.asarray(tokens))[:, -1]
    np.testing.assert_allclose(windowed, naive_window(config, base, tokens), atol=1e-5)
    full = forward(dataclasses.replace(config, sliding_window=None), base, None, jnp.asarray(tokens))[:, -1]
    assert np.abs(full - windowed).max() > 1e-2


@pytest.mark.parametrize("name", ["mistral", "qwen2", "qwen3", "llama with biases"])
def test_padding_on_the_right_changes_no_real_token(name):
    config = EXAMPLES[name]
    base = random_base(config)
    tokens = np.random.default_rng(0).integers(0, config.vocabulary, (2, 9))
    padded = np.pad(tokens, ((0, 0), (0, 6)))
    expected = forward(config, base, None, jnp.asarray(tokens), compute=Compute(remat="full"))
    np.testing.assert_allclose(forward(config, base, None, jnp.asarray(padded))[:, :9], expected, atol=1e-5)


@pytest.mark.parametrize("name", ["qwen2", "qwen3"])
def test_every_leaf_of_a_family_matters(name):
    """Biases and head norms take part in the forward pass: changing any one leaf changes the logits."""
    config = EXAMPLES[name]
    base = random_base(config)
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, config.vocabulary, (1, 6)))
    logits = forward(config, base, None, tokens)
    leaves, structure = jax.tree.flatten(base.blocks)
    for index, leaf in enumerate(leaves):
        moved = structure.unflatten(
            [*leaves[:index], leaf + jnp.linspace(0, 0.5, leaf[0].size).reshape(leaf[0].shape), *leaves[index + 1 :]]
        )
        change = np.abs(forward(config, base.replace(blocks=moved), None, tokens) - logits).max()
        # A key's bias shifts every score of a query alike before rotation; rotation makes it matter.
        assert change > 1e-4, structure


ROPE_LAYOUTS = {
    "theta only": ({"rope_theta": 5000.0}, None),
    "neither": ({}, None),
    "null scaling": ({"rope_theta": 5000.0, "rope_scaling": None}, None),
    "old, linear, by type": ({"rope_theta": 5000.0, "rope_scaling": {"type": "linear", "factor": 2}}, "linear"),
    "old, linear": ({"rope_theta": 5000.0, "rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "linear"),
    "old, default": ({"rope_theta": 5000.0, "rope_scaling": {"rope_type": "default"}}, None),
    "new, default": ({"rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}}, None),
    "new, linear": ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0}}, "linear"),
}


@pytest.mark.parametrize("name", ROPE_LAYOUTS)
def test_both_rope_layouts(folder, config, name):
    fields, kind = ROPE_LAYOUTS[name]
    edit_config(folder, **({"rope_theta": None, "rope_scaling": None} | fields))
    read = read_config(folder / "config.json")
    theta = 10_000.0 if name == "neither" else 5000.0
    scaling = None if kind is None else RopeScaling("linear", 2.0)
    assert read == dataclasses.replace(config, rope_theta=theta, rope_scaling=scaling)


@pytest.mark.parametrize("layout", ["rope_scaling", "rope_parameters"])
def test_llama3_scaling_in_both_layouts(folder, config, layout):
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 512,
    }
    edit_config(folder, rope_theta=5e5, rope_scaling=None)
    edit_config(folder, **{layout: scaling})
    expected = dataclasses.replace(config, rope_theta=5e5, rope_scaling=LLAMA3)
    assert read_config(folder / "config.json") == expected


def test_absent_fields_have_hugging_face_defaults(tmp_path):
    required = {
        "model_type": "llama",
        "vocab_size": 37,
        "hidden_size": 16,
        "intermediate_size": 20,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
    }
    (tmp_path / "config.json").write_text(json.dumps(required))
    config = read_config(tmp_path / "config.json")
    assert (config.kv_heads, config.head_size, config.norm_epsilon) == (4, 4, 1e-6)
    assert (config.rope_theta, config.tied_head, config.max_length) == (10_000.0, False, 2048)


BAD_CONFIGS = [
    (
        {"model_type": "gpt2"},
        r'model_type "gpt2" in .* is not supported; choose .* "llama" \(LLaMA\), "mistral" \(Mistral\), "qwen2"',
    ),
    ({"model_type": None}, "model_type null in"),
    ({"hidden_act": "gelu"}, 'hidden_act "gelu" .* where it is "silu"'),
    ({"attention_bias": "yes"}, 'attention_bias "yes" .* a LLaMA model where it is false or true or absent'),
    ({"attention_bias": True}, r"lacks the tensor model.layers.0.self_attn.q_proj.bias of a LLaMA"),
    ({"tie_word_embeddings": "yes"}, 'tie_word_embeddings "yes"'),
    ({"quantization_config": {"quant_method": "gptq"}}, 'stored quantised by "gptq", .* give the model.s 16-bit weights'),
    ({"vocab_size": None}, "vocab_size is missing from .*config.json; add it"),
    ({"num_hidden_layers": 0}, "num_hidden_layers 0 in .* is not a positive whole number"),
    ({"hidden_size": "16"}, 'hidden_size "16" in .* is not a positive whole number'),
    ({"intermediate_size": 20.5}, "intermediate_size 20.5 in .* is not a positive whole number"),
    ({"num_attention_heads": True}, "num_attention_heads true"),
    ({"rms_norm_eps": -1e-5}, "rms_norm_eps -1e-05 in .* is not a positive number"),
    ({"num_key_value_heads": 3}, "num_key_value_heads 3 in .* does not divide num_attention_heads 4"),
    ({"head_dim": None, "hidden_size": 18}, "hidden_size 18 in .* is not a multiple of num_attention_heads 4"),
    ({"head_dim": 5}, "head_dim 5 in .* is odd"),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, 'rope_type "yarn" in .* "default", "linear" or "llama3"'),
    ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, 'rope_type "dynamic"'),
    ({"rope_scaling": {"type": "linear"}}, "factor is missing from"),
    ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor is missing from"),
    ({"rope_scaling": "linear"}, 'rope_scaling "linear" in .* is not an object'),
    ({"rope_theta": 0}, "rope_theta 0 in"),
    ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor 0.5 in"),
]


@pytest.mark.parametrize(("fields", "message"), BAD_CONFIGS, ids=[str(fields) for fields, _ in BAD_CONFIGS])
def test_refuses_what_it_would_compute_wrongly(folder, fields, message):
    edit_config(folder, **fields)
    with pytest.raises(InputError, match=message):
        load_pretrained(folder)


@pytest.mark.parametrize(
    ("text", "message"), [("{", ":1 is not valid JSON"), ("[1]", " does not hold a JSON object"), (None, " cannot be read")]
)
def test_refuses_an_unreadable_config(folder, text, message):
    (folder / "config.json").unlink()
    if text is not None:
        (folder / "config.json").write_text(text)
    with pytest.raises(InputError, match=f"config.json{message}"):
        load_pretrained(folder)


NO_NUMBERS = (-1, 0, True, "7", [], {}, float("inf"), float("nan"))


COUNTS = ("num_hidden_layers", "hidden_size", "intermediate_size", "vocab_size", "num_attention_heads", "head_dim")


@pytest.mark.parametrize("name", [*COUNTS, "num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "rope_theta"])
def test_sizes_are_checked_before_they_are_believed(folder, name):
    fields = json.loads((folder / "config.json").read_text())
    values = [*NO_NUMBERS, 10**40]
    values += [10**6, 10**9, 10**12] if name in COUNTS else []
    values += [2.5] if name not in ("rms_norm_eps", "rope_theta") else []
    for value in values:
        (folder / "config.json").write_text(json.dumps(fields | {name: value}))
        began = time.perf_counter()
        with pytest.raises(InputError, match="config"):
            load_pretrained(folder)
        assert time.perf_counter() - began < 2, value


def test_a_pipe_is_no_configuration(folder):
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    with pytest.raises(InputError, match=r"config\.json is not a regular file"):
        load_pretrained(folder)
