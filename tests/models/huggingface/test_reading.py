"""Checkpoints come back as they were saved, in every layout."""

import dataclasses
import tracemalloc

import chex
import jax
import jax.numpy as jnp
import pytest

from devft_jax.errors import InputError
from devft_jax.models.architecture import PROJECTIONS, RopeScaling
from devft_jax.models.huggingface.folder import INDEX_FILE
from devft_jax.models.huggingface.names import places
from devft_jax.models.huggingface.reading import load_pretrained
from devft_jax.models.huggingface.writing import save_pretrained
from devft_jax.models.llama import forward
from tests.models.conftest import CONFIG, random_base
from tests.models.huggingface.checkpoints import LLAMA3, split_into_shards


@pytest.mark.parametrize("scaling", [None, RopeScaling("linear", 2.0), LLAMA3])
@pytest.mark.parametrize("tied_head", [False, True])
def test_what_is_saved_is_loaded(tmp_path, tied_head, scaling):
    config = dataclasses.replace(CONFIG, tied_head=tied_head, rope_scaling=scaling, rope_theta=500_000.0)
    base = random_base(config)
    save_pretrained(tmp_path, config, base, dtype="float32")
    model = load_pretrained(tmp_path)
    assert model.config == config
    assert model.path == str(tmp_path)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(model.base))
    chex.assert_trees_all_equal(model.base, base)


def test_shards_load_as_one_file_does(folder, base):
    split_into_shards(folder)
    chex.assert_trees_all_equal(load_pretrained(folder).base, base)


def test_one_file_is_preferred_over_an_index(folder, base):
    (folder / INDEX_FILE).write_text("not read")
    chex.assert_trees_all_equal(load_pretrained(folder).base, base)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtype_converts_and_none_keeps(tmp_path, config, base, dtype):
    save_pretrained(tmp_path, config, base, dtype=dtype)
    kept = load_pretrained(tmp_path).base
    chex.assert_trees_all_equal(kept, jax.tree.map(lambda leaf: leaf.astype(dtype), base))
    for other in ("float32", "bfloat16"):
        converted = load_pretrained(tmp_path, dtype=other).base
        chex.assert_trees_all_equal(converted, jax.tree.map(lambda leaf, other=other: leaf.astype(other), kept))


def test_loading_needs_the_model_and_one_tensor(tmp_path):
    config = dataclasses.replace(CONFIG, width=256, feed_forward=512, layers=12, vocabulary=300)
    base = random_base(config)
    model_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(base))
    largest = 256 * 512 * 4
    save_pretrained(tmp_path, config, base, dtype="float32")
    tracemalloc.start()
    try:
        model = load_pretrained(tmp_path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert model_bytes < peak < model_bytes + 1.5 * largest
    # On the CPU the leaves stay where they were read to.
    assert {leaf.unsafe_buffer_pointer() % 64 for leaf in jax.tree.leaves(model.base)} == {0}


def test_every_tensor_that_is_read_is_noted(folder, config):
    noted = []
    load_pretrained(folder, note=lambda done, total: noted.append((done, total)))
    count = len(list(places(config)))
    assert noted == [(number, count) for number in range(1, count + 1)]


def test_refuses_unknown_options(folder, config, base):
    with pytest.raises(InputError, match=r"quantization 'int3' is unknown; choose from none, int8, int4, nf4"):
        load_pretrained(folder, quantization="int3")
    with pytest.raises(InputError, match="dtype 'int8' is unknown; choose from float32, bfloat16, float16"):
        load_pretrained(folder, dtype="int8")
    with pytest.raises(InputError, match="dtype 'int8' is unknown"):
        save_pretrained(folder, config, base, dtype="int8")


def test_a_really_pretrained_model_predicts_words(shared):
    model = load_pretrained(shared / "models" / "proxy-16l", dtype="float32")
    assert model.config.layers == 16
    assert {getattr(model.base.blocks, name).shape[0] for name in PROJECTIONS} == {16}
    text = "Once upon a time, there was a king who had"
    tokens = jnp.array([[1, *model.tokenizer(text, add_special_tokens=False)["input_ids"]]])
    logits = jax.nn.log_softmax(forward(model.config, model.base, None, tokens))
    nll = -jnp.take_along_axis(logits[:, :-1], tokens[:, 1:, None], axis=-1).mean()
    # Held-out loss was 3.71 nats per token by its card, and ln 4096 is 8.32.
    assert nll < 5.0
