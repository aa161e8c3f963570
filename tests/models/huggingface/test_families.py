"""Families: what config.json says of each, and that saving and loading one is the identity."""

import dataclasses
import json

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
