"""Models are written whole or not at all, in Hugging Face's names, and merged with their adapters."""

import dataclasses
import json
import os
import stat
import tracemalloc
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from devft_jax.errors import InputError, RunError
from devft_jax.models.adapter import layer_scales
from devft_jax.models.architecture import PROJECTIONS
from devft_jax.models.base import parameter_count
from devft_jax.models.huggingface import writing
from devft_jax.models.huggingface.folder import INDEX_FILE, WEIGHTS_FILE
from devft_jax.models.huggingface.reading import load_pretrained
from devft_jax.models.huggingface.writing import save_pretrained
from devft_jax.models.llama import forward
from devft_jax.models.lora import init_lora
from devft_jax.models.quantization import quantize_base
from devft_jax.models.weights import dense_weight
from tests.models.conftest import interrupt_replacing, random_adapter, random_base
from tests.models.huggingface.checkpoints import edit_config


def test_saving_again_gives_the_same_bytes(tmp_path, folder):
    model = load_pretrained(folder)
    save_pretrained(tmp_path / "again", model.config, model.base, dtype="float32")
    for file in folder.iterdir():
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes()


def test_tensors_have_hugging_face_names_and_lie_output_first(folder, config, base):
    tensors = load_file(folder / WEIGHTS_FILE)
    np.testing.assert_array_equal(tensors["model.layers.2.self_attn.q_proj.weight"], base.blocks.q[2].T)
    np.testing.assert_array_equal(tensors["model.layers.0.mlp.down_proj.weight"], base.blocks.down[0].T)
    np.testing.assert_array_equal(tensors["model.layers.1.post_attention_layernorm.weight"], base.blocks.norm_mlp[1])
    np.testing.assert_array_equal(tensors["model.embed_tokens.weight"], base.embed)
    np.testing.assert_array_equal(tensors["lm_head.weight"], base.head.T)
    assert len(tensors) == 3 + 9 * config.layers


@pytest.mark.parametrize("stored", ["bfloat16", pytest.param("float16", marks=pytest.mark.slow), "float32"])
def test_saves_in_the_weights_own_type_by_default(tmp_path, config, base, stored):
    base = jax.tree.map(lambda leaf: leaf.astype(stored), base)
    save_pretrained(tmp_path, config, base)
    chex.assert_trees_all_equal(load_pretrained(tmp_path).base, base)
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == stored
    packed = quantize_base(base, "int8")
    save_pretrained(tmp_path, config, packed)
    assert load_pretrained(tmp_path).base.blocks.q.dtype == stored


def test_saves_the_depth_of_the_leaves_and_the_ids(tmp_path, config, base):
    shallow = base.replace(blocks=jax.tree.map(lambda leaf: leaf[:2], base.blocks))
    save_pretrained(tmp_path, config, shallow, bos_id=5, eos_id=6)
    fields = json.loads((tmp_path / "config.json").read_text())
    assert (fields["num_hidden_layers"], fields["bos_token_id"], fields["eos_token_id"]) == (2, 5, 6)
    assert load_pretrained(tmp_path).config == config.with_layers(2)


@pytest.mark.parametrize("shard_bytes", [10**9, 4000])
@pytest.mark.parametrize("written", [0, 1, 29])
def test_a_failed_write_keeps_the_older_files(folder, config, base, monkeypatch, written, shard_bytes):
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    make, made = writing.dense_weight, []

    def fail(weight, dtype):
        if len(made) == written:
            raise OSError(28, "No space left on device")
        made.append(dtype)
        return make(weight, dtype)

    monkeypatch.setattr(writing, "dense_weight", fail)
    with pytest.raises(RunError, match=f"the folder {folder} cannot be written .No space left on device.; free space"):
        save_pretrained(folder, config, base, max_shard_bytes=shard_bytes)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


@pytest.mark.parametrize("kept", [0, 1, 2, 5])
@pytest.mark.parametrize(("old", "new"), [(10**9, 4000), (4000, 10**9), (4000, 9000), (10**9, 10**9)])
def test_a_half_replaced_model_does_not_load(tmp_path, config, base, monkeypatch, old, new, kept):
    """Weights of one model are never read with the configuration, or the other shards, of another."""
    save_pretrained(tmp_path, config, base, dtype="float32", max_shard_bytes=old)
    other = dataclasses.replace(config, rope_theta=77.0)
    changed = jax.tree.map(lambda leaf: leaf + 1, base)
    files = len(weight_files(tmp_path / "alone", other, changed, new)) + 1
    after = min(kept, files - 1)
    interrupt_replacing(monkeypatch, after=after)
    with pytest.raises(KeyboardInterrupt):
        save_pretrained(tmp_path, other, changed, dtype="float32", max_shard_bytes=new)
    monkeypatch.undo()
    with pytest.raises(InputError, match=r"config\.json cannot be read"):
        load_pretrained(tmp_path)
    save_pretrained(tmp_path, other, changed, dtype="float32", max_shard_bytes=new)
    assert load_pretrained(tmp_path).config == other
    chex.assert_trees_all_equal(load_pretrained(tmp_path).base, changed)
    alone = {path.name for path in (tmp_path / "alone").iterdir()}
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == alone


def weight_files(folder, config, base, shard_bytes) -> list[Path]:
    """The files of weights that a save leaves, index included."""
    save_pretrained(folder, config, base, dtype="float32", max_shard_bytes=shard_bytes)
    return [path for path in folder.iterdir() if path.name.startswith("model")]


@pytest.mark.parametrize("shard_bytes", [1, 1500, 4000, 20_000])
def test_shards_hold_the_model_within_the_limit(tmp_path, config, base, shard_bytes):
    total = save_pretrained(tmp_path, config, base, dtype="float32", max_shard_bytes=shard_bytes)
    assert total == 4 * parameter_count(base)
    index = json.loads((tmp_path / INDEX_FILE).read_text())
    assert index["metadata"] == {"total_size": total}
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    count = len(shards)
    assert count > 1
    assert [path.name for path in shards] == [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
    held = {path.name: load_file(path) for path in shards}
    assert {name: file for file, tensors in held.items() for name in tensors} == index["weight_map"]
    for tensors in held.values():
        assert len(tensors) == 1 or sum(tensor.nbytes for tensor in tensors.values()) <= shard_bytes
    chex.assert_trees_all_equal(load_pretrained(tmp_path).base, base)


def test_shards_are_filled_in_order(tmp_path, config, base):
    total = save_pretrained(tmp_path / "one", config, base, dtype="float32")
    whole = save_pretrained(tmp_path / "fits", config, base, dtype="float32", max_shard_bytes=total)
    assert whole == total
    assert not (tmp_path / "fits" / INDEX_FILE).exists()
    save_pretrained(tmp_path / "two", config, base, dtype="float32", max_shard_bytes=total - 1)
    assert len(list((tmp_path / "two").glob("model-*"))) == 2
    with pytest.raises(InputError, match="max_shard_bytes 0 is not positive"):
        save_pretrained(tmp_path / "none", config, base, max_shard_bytes=0)


def test_saving_holds_one_tensor_at_a_time(tmp_path, config):
    config = dataclasses.replace(config, width=256, feed_forward=512, layers=12, vocabulary=300)
    shapes = jax.eval_shape(lambda: (random_base(config), random_adapter(config, rank=4)))
    base, adapter = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes)
    largest = 256 * 512 * 4
    tracemalloc.start()
    try:
        save_pretrained(tmp_path, config, base, adapter=adapter, dtype="float32")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 * largest < sum(leaf.nbytes for leaf in jax.tree.leaves(base)) / 3


def test_other_files_stay(folder, config, base):
    for name in ("README.md", "model.bin", "tokenizer.json", "model-1.safetensors"):
        (folder / name).write_text(name)
    save_pretrained(folder, config, base, max_shard_bytes=4000)
    for name in ("README.md", "model.bin", "tokenizer.json", "model-1.safetensors"):
        assert (folder / name).read_text() == name


@pytest.mark.parametrize(
    ("kind", "varied"),
    [
        (None, False),
        ("nf4", True),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in ((None, True), ("int8", False), ("int8", True), ("nf4", False))
        ),
    ],
)
def test_an_adapter_is_merged_in_float32(tmp_path, config, base, tokens, kind, varied):
    adapter = random_adapter(config)
    if varied:
        scale = {name: jnp.arange(1.0, 4.0) * (index + 1) / 8 for index, name in enumerate(adapter.lora)}
        adapter = adapter.replace(scale=scale)
    stored = base if kind is None else quantize_base(base, kind)
    save_pretrained(tmp_path, config, stored, adapter=adapter, dtype="float32")
    merged = load_pretrained(tmp_path).base
    for name in PROJECTIONS:
        factors, scale = adapter.lora[name], np.asarray(layer_scales(adapter, config.layers)[name])
        wide = [np.asarray(part, np.float64) for part in (factors.a, factors.b)]
        dense = np.asarray(dense_weight(getattr(stored.blocks, name), jnp.float32), np.float64)
        expected = dense + scale[:, None, None] * (wide[0] @ wide[1])
        np.testing.assert_allclose(getattr(merged.blocks, name), expected, atol=2e-6)
    together = forward(config, stored, adapter, tokens)
    np.testing.assert_allclose(forward(config, merged, None, tokens), together, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_an_adapter_of_zeros_merges_to_the_base_bit_for_bit(tmp_path, config, base, dtype):
    base = jax.tree.map(lambda leaf: leaf.astype(dtype), base)
    base = base.replace(blocks=base.blocks.replace(q=base.blocks.q.at[0].set(-0.0)))
    zero = init_lora(jax.random.key(3), config, rank=2, alpha=4.0, targets=PROJECTIONS)
    save_pretrained(tmp_path / "merged", config, base, adapter=zero, dtype=dtype)
    save_pretrained(tmp_path / "base", config, base, dtype=dtype)
    for name in (WEIGHTS_FILE, "config.json"):
        assert (tmp_path / "merged" / name).read_bytes() == (tmp_path / "base" / name).read_bytes()


def test_an_adapter_that_does_not_fit_is_refused(tmp_path, config, base):
    adapter = random_adapter(config, ("q",))
    shallow = jax.tree.map(lambda leaf: leaf[:2], adapter.lora)
    narrow = {name: factors.replace(a=factors.a[:, 1:]) for name, factors in adapter.lora.items()}
    for lora in (shallow, narrow):
        with pytest.raises(
            InputError, match=r"factors of q_proj have the shapes .* but the base of 3 layers needs \(3, 16, 3"
        ):
            save_pretrained(tmp_path / "model", config, base, adapter=adapter.replace(lora=lora))
    assert not (tmp_path / "model").exists()


def test_the_sources_tokenizer_and_ids_come_along(tmp_path, source, config, base):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "merges.txt").write_text("of another tokenizer")
    save_pretrained(tmp_path / "out", config, base, source=source)
    names = {path.name for path in source.iterdir()}
    assert {"tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"} <= names
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    for name in names - {"config.json"}:
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()
    fields = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (fields["bos_token_id"], fields["eos_token_id"], fields["pad_token_id"]) == (5, [6, 7], 3)
    assert load_pretrained(tmp_path / "out").tokenizer("a")["input_ids"] == [1, 3]
    save_pretrained(tmp_path / "out", config, base, source=source, eos_id=2)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["eos_token_id"] == 2


def test_ids_come_from_the_tokenizer_where_the_config_has_none(tmp_path, source, config, base):
    edit_config(source, bos_token_id=None, eos_token_id=None)
    save_pretrained(tmp_path / "out", config, base, source=source)
    fields = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (fields["bos_token_id"], fields["eos_token_id"]) == (1, 2)


def test_without_a_source_there_are_no_ids(folder):
    assert not {"bos_token_id", "eos_token_id"} & json.loads((folder / "config.json").read_text()).keys()


def test_a_model_may_be_saved_over_its_source(source, config, base):
    before = {path.name for path in source.iterdir()}
    save_pretrained(source, config, base, source=source, dtype="float32")
    assert {path.name for path in source.iterdir()} == before
    assert json.loads((source / "config.json").read_text())["bos_token_id"] == 5


def test_a_folder_that_cannot_be_made(tmp_path, config, base):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        save_pretrained(tmp_path / "file", config, base)


def test_files_are_readable_as_other_new_files_are(folder):
    other = folder / "other"
    other.touch()
    modes = {stat.S_IMODE(os.stat(file).st_mode) for file in folder.iterdir()}
    assert len(modes) == 1
