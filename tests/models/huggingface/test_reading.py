"""Checkpoints come back as they were saved, in every layout, and damaged or foreign ones cost one sentence."""

import dataclasses
import io
import json
import os
import shutil
import stat
import sys
import time
import tracemalloc
from fnmatch import fnmatch
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from devft_jax.errors import InputError, RunError
from devft_jax.models.adapter import layer_scales
from devft_jax.models.architecture import PROJECTIONS, RopeScaling
from devft_jax.models.base import parameter_count
from devft_jax.models.huggingface import writing
from devft_jax.models.huggingface.folder import INDEX_FILE, WEIGHTS_FILE
from devft_jax.models.huggingface.model import Model
from devft_jax.models.huggingface.reading import load_pretrained, read_config
from devft_jax.models.huggingface.tokenizer import load_tokenizer
from devft_jax.models.huggingface.writing import save_pretrained
from devft_jax.models.llama import forward
from devft_jax.models.lora import init_lora
from devft_jax.models.quantization import quantize_base
from devft_jax.models.weights import dense_weight
from tests.models.conftest import CONFIG, interrupt_replacing, random_adapter, random_base

LLAMA3 = RopeScaling("llama3", 8.0, low_frequency_factor=1.0, high_frequency_factor=4.0, original_length=512)


@pytest.fixture
def folder(tmp_path, config, base):
    save_pretrained(tmp_path / "model", config, base, dtype="float32")
    return tmp_path / "model"


def edit_config(folder: Path, **fields) -> None:
    """Set fields of a saved config; those given as None are left out."""
    path = folder / "config.json"
    changed = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({name: value for name, value in changed.items() if value is not None}))


def edit_tensors(folder: Path, change) -> None:
    """Rewrite the weights after `change` has edited their dictionary in place."""
    tensors = load_file(folder / WEIGHTS_FILE)
    change(tensors)
    save_file(tensors, folder / WEIGHTS_FILE)


def split_into_shards(folder: Path) -> list[str]:
    """Replace the one file of weights by three that hold every third tensor each."""
    tensors = load_file(folder / WEIGHTS_FILE)
    names = sorted(tensors)
    shards = [f"model-{index + 1:05}-of-00003.safetensors" for index in range(3)]
    for index, shard in enumerate(shards):
        save_file({name: tensors[name] for name in names[index::3]}, folder / shard)
    weight_map = {name: shards[index % 3] for index, name in enumerate(names)}
    (folder / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / WEIGHTS_FILE).unlink()
    return shards


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


@pytest.mark.parametrize("stored", ["bfloat16", "float16", "float32"])
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


def test_inverse_frequencies_of_old_checkpoints_are_ignored(folder, base):
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(3, np.float32)}
    edit_tensors(folder, lambda tensors: tensors.update(extra))
    chex.assert_trees_all_equal(load_pretrained(folder).base, base)


def test_parameter_count(config, base):
    assert parameter_count(base) == 2 * 37 * 16 + 16 + config.layers * (2 * 16 + 2 * 16 * 24 + 2 * 16 * 12 + 3 * 16 * 20)


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


QUERY = "model.layers.1.self_attn.q_proj.weight"


def test_refuses_a_missing_tensor(folder):
    edit_tensors(folder, lambda tensors: tensors.pop(QUERY))
    with pytest.raises(InputError, match=f"lacks the tensor {QUERY} of a LLaMA with num_hidden_layers 3"):
        load_pretrained(folder)


def test_a_missing_head_suggests_tying(folder):
    edit_tensors(folder, lambda tensors: tensors.pop("lm_head.weight"))
    with pytest.raises(InputError, match=r"lm_head.weight .* set tie_word_embeddings"):
        load_pretrained(folder)


def test_refuses_fewer_or_more_layers_than_the_config_tells(folder):
    edit_config(folder, num_hidden_layers=4)
    with pytest.raises(InputError, match=r"lacks the tensor model\.layers\.3\."):
        load_pretrained(folder)
    edit_config(folder, num_hidden_layers=2)
    with pytest.raises(InputError, match=r"holds the tensor model\.layers\.2\..* num_hidden_layers 2 does not have"):
        load_pretrained(folder)


def test_refuses_a_bias_that_the_config_does_not_tell(folder):
    bias = "model.layers.0.self_attn.q_proj.bias"
    edit_tensors(folder, lambda tensors: tensors.update({bias: np.ones(24, np.float32)}))
    with pytest.raises(InputError, match=f"holds the tensor {bias}"):
        load_pretrained(folder)


def test_refuses_a_shape_that_disagrees_with_the_config(folder):
    edit_tensors(folder, lambda tensors: tensors.update({QUERY: np.ones((24, 17), np.float32)}))
    with pytest.raises(InputError, match=rf"{QUERY} in .* has shape \(24, 17\) but config.json implies \(24, 16\)"):
        load_pretrained(folder)


def test_refuses_integer_weights(folder):
    edit_tensors(folder, lambda tensors: tensors.update({QUERY: np.ones((24, 16), np.int8)}))
    with pytest.raises(InputError, match=f"{QUERY} in .* has the type I8; give weights in F32, BF16, F16"):
        load_pretrained(folder)


def test_layers_of_different_types_need_a_dtype(folder, base):
    edit_tensors(folder, lambda tensors: tensors.update({QUERY: tensors[QUERY].astype(np.float16)}))
    with pytest.raises(InputError, match=f"{QUERY} in .* has the type F16 where earlier layers have F32; give dtype"):
        load_pretrained(folder)
    chex.assert_trees_all_close(load_pretrained(folder, dtype="float32").base, base, atol=1e-3)


@pytest.mark.parametrize("kept", [0, 4, 50, -1])
def test_refuses_truncated_weights(folder, kept):
    whole = (folder / WEIGHTS_FILE).read_bytes()
    (folder / WEIGHTS_FILE).write_bytes(whole[:kept])
    with pytest.raises(InputError, match=r"model\.safetensors is damaged, truncated or no safetensors file"):
        load_pretrained(folder)


def test_refuses_an_absent_or_truncated_shard(folder):
    shards = split_into_shards(folder)
    whole = (folder / shards[1]).read_bytes()
    (folder / shards[1]).write_bytes(whole[:-10])
    with pytest.raises(InputError, match=f"{shards[1]} is damaged, truncated"):
        load_pretrained(folder)
    (folder / shards[1]).unlink()
    with pytest.raises(InputError, match=f"the shard {shards[1]} that .*{INDEX_FILE} names is absent"):
        load_pretrained(folder)


def test_refuses_a_shard_without_a_promised_tensor(folder):
    shards = split_into_shards(folder)
    shutil.copy(folder / shards[0], folder / shards[1])
    with pytest.raises(InputError, match=f"the shard {shards[1]} lacks the tensor .* that .* promises"):
        load_pretrained(folder)


@pytest.mark.parametrize("text", ["{", "{}", '{"weight_map": ["x"]}', '{"weight_map": {"x": 1}}'])
def test_refuses_a_damaged_index(folder, text):
    split_into_shards(folder)
    (folder / INDEX_FILE).write_text(text)
    with pytest.raises(InputError, match=rf"{INDEX_FILE}(:1 is not valid JSON| holds no weight_map)"):
        load_pretrained(folder)


def test_pickles_are_never_read(folder):
    (folder / WEIGHTS_FILE).rename(folder / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"pickle \(pytorch_model.bin\).* convert them to safetensors"):
        load_pretrained(folder)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(InputError, match=r"holds neither model.safetensors nor"):
        load_pretrained(folder)


def test_a_tied_checkpoint_may_repeat_its_head_but_not_change_it(tmp_path):
    config = dataclasses.replace(CONFIG, tied_head=True)
    base = random_base(config)
    save_pretrained(tmp_path, config, base, dtype="float32")
    head = {"lm_head.weight": np.array(base.embed)}
    edit_tensors(tmp_path, lambda tensors: tensors.update(head))
    chex.assert_trees_all_equal(load_pretrained(tmp_path).base, base)
    head["lm_head.weight"][0, 0] += 1
    edit_tensors(tmp_path, lambda tensors: tensors.update(head))
    with pytest.raises(InputError, match=r"tie_word_embeddings is true .* differs from the embedding"):
        load_pretrained(tmp_path)


def test_refuses_what_is_no_model_folder(tmp_path):
    with pytest.raises(InputError, match=r"the model folder .*/absent/x does not exist"):
        load_pretrained(tmp_path / "absent" / "x")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file; give the folder"):
        load_pretrained(tmp_path / "file")


def test_a_name_that_hugging_face_does_not_give(monkeypatch):
    import huggingface_hub

    asked = []

    def refuse(name, **options):
        asked.append((name, options))
        raise OSError("no network\nand more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(InputError, match=r"acme/tiny is not a local folder .* \(no network\); check the name"):
        load_pretrained("acme/tiny")
    [(name, options)] = asked
    assert name == "acme/tiny"
    wanted = ("model.safetensors.index.json", "config.json", "tokenizer.model", "merges.txt", "chat_template.jinja")
    fetched = [name for name in wanted if any(fnmatch(name, pattern) for pattern in options["allow_patterns"])]
    assert fetched == list(wanted)
    others = ("pytorch_model.bin", "model.pth", "modeling_custom.py", "consolidated.safetensors")
    assert not [name for name in others if any(fnmatch(name, pattern) for pattern in options["allow_patterns"])]


def test_a_hugging_face_name_loads_its_snapshot(monkeypatch, folder, base):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **options: str(folder))
    model = load_pretrained("acme/tiny")
    assert model.path == "acme/tiny"
    chex.assert_trees_all_equal(model.base, base)


@pytest.mark.parametrize("shards", [False, True])
def test_exactly_the_weights_that_the_index_names_are_fetched(monkeypatch, tmp_path, folder, base, shards):
    """From a repository that holds its weights in other forms too, through links like those of Hugging Face's cache."""
    import huggingface_hub

    names = split_into_shards(folder) if shards else [WEIGHTS_FILE]
    for other in ("consolidated.safetensors", "model.fp16.safetensors", "pytorch_model.bin"):
        (folder / other).write_bytes(b"twice the size")
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot, blobs = tmp_path / "hub" / "snapshots" / commit, tmp_path / "hub" / "blobs"
    snapshot.mkdir(parents=True)
    shutil.copytree(folder, blobs)
    revisions = []

    def fetch(name, allow_patterns, ignore_patterns, revision=None):
        revisions.append(revision)
        for file in folder.iterdir():
            if any(fnmatch(file.name, pattern) for pattern in allow_patterns) and not (snapshot / file.name).exists():
                (snapshot / file.name).symlink_to(Path("..") / ".." / "blobs" / file.name)
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    chex.assert_trees_all_equal(load_pretrained("acme/tiny").base, base)
    assert revisions == [None, commit]
    assert sorted(file.name for file in snapshot.glob("*.safetensors")) == sorted(names)


# ---- names of tensors ------------------------------------------------------------------------------------------------


def rename(change):
    """An edit that renames every tensor."""

    def edit(tensors):
        renamed = {change(name): tensor for name, tensor in tensors.items()}
        tensors.clear()
        tensors.update(renamed)

    return edit


@pytest.mark.parametrize(
    "change",
    [
        lambda name: name.removeprefix("model."),
        lambda name: name if name.startswith("model.") else f"model.{name}",
        lambda name: name.removeprefix("model.") if "layers.1." in name else name,
    ],
    ids=["without model.", "all with model.", "mixed"],
)
@pytest.mark.parametrize("shards", [False, True])
def test_the_prefix_of_tensors_may_be_there_or_not(folder, base, change, shards):
    edit_tensors(folder, rename(change))
    if shards:
        split_into_shards(folder)
    chex.assert_trees_all_equal(load_pretrained(folder).base, base)


def test_one_tensor_under_two_names_is_refused(folder):
    edit_tensors(folder, lambda tensors: tensors.update({"norm.weight": tensors["model.norm.weight"]}))
    with pytest.raises(InputError, match=r"holds both \S*norm\.weight and \S*norm\.weight, which are one tensor"):
        load_pretrained(folder)
    split_into_shards(folder)
    with pytest.raises(InputError, match=r"names both \S*norm\.weight and \S*norm\.weight, which are one tensor"):
        load_pretrained(folder)


@pytest.mark.parametrize("quantization", [None, "int8"])
@pytest.mark.parametrize("kept", ["embed_tokens", "lm_head", "both"])
def test_a_tied_matrix_may_be_stored_under_either_name_or_both(tmp_path, kept, quantization):
    config = dataclasses.replace(CONFIG, tied_head=True)
    base = random_base(config)
    save_pretrained(tmp_path, config, base, dtype="float32")
    embedding = "model.embed_tokens.weight"
    edit_tensors(tmp_path, lambda tensors: tensors.update({"lm_head.weight": tensors[embedding].copy()}))
    if kept != "both":
        edit_tensors(tmp_path, lambda tensors: tensors.pop(embedding if kept == "lm_head" else "lm_head.weight"))
    loaded = load_pretrained(tmp_path, quantization=quantization).base
    assert loaded.head is None
    np.testing.assert_array_equal(loaded.embed, base.embed)


# ---- what a folder from outside may do -------------------------------------------------------------------------------


FOREIGN_SHARDS = ["../secret.safetensors", "/etc/secret.safetensors", "sub/x.safetensors", "a\\b.safetensors", "..", ""]
NO_SHARDS = [".x.safetensors", "model.bin", "*.safetensors", "a\nb.safetensors", "a\0.safetensors", "a\x1b[2J.safetensors"]


@pytest.mark.parametrize("shard", FOREIGN_SHARDS + NO_SHARDS)
def test_an_index_names_nothing_outside_the_folder(tmp_path, folder, shard):
    shutil.copy(folder / WEIGHTS_FILE, tmp_path / "secret.safetensors")
    names = sorted(load_file(folder / WEIGHTS_FILE))
    (folder / WEIGHTS_FILE).unlink()
    (folder / INDEX_FILE).write_text(json.dumps({"weight_map": dict.fromkeys(names, shard)}))
    with pytest.raises(InputError, match="which is no name of a safetensors file beside it; nothing") as raised:
        load_pretrained(folder)
    assert "\x1b" not in str(raised.value)


@pytest.mark.parametrize(
    "names", [["../tokenizer.4.0.0.json"], ["tokenizer.4.0.0.json", "/tmp/tokenizer.4.0.json"], "a", [5]]
)
def test_a_tokenizer_names_nothing_outside_the_folder(tmp_path, folder, word_tokenizer, names):
    word_tokenizer().save_pretrained(folder)
    shutil.copy(folder / "tokenizer.json", tmp_path / "tokenizer.4.0.0.json")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"fast_tokenizer_files": names}))
    with pytest.raises(
        InputError, match=r"fast_tokenizer_files .* in .*tokenizer_config.json are no names of files beside it"
    ):
        load_tokenizer(folder)
    shutil.copy(folder / "tokenizer.json", folder / "tokenizer.4.0.0.json")
    named = {"fast_tokenizer_files": ["tokenizer.4.0.0.json"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | named))
    assert load_tokenizer(folder)("a b")["input_ids"]


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "generation_config.json", INDEX_FILE, "x.jinja"])
def test_links_out_of_the_folder_are_not_followed(tmp_path, folder, name):
    secret = tmp_path / "secret"
    if (folder / name).exists():
        shutil.move(folder / name, secret)
    else:
        secret.write_text("{}")
    (folder / name).symlink_to(secret)
    with pytest.raises(InputError, match=rf"{name} is a link to {secret}, outside the folder, where nothing but weights is"):
        load_pretrained(folder)


@pytest.mark.parametrize("shards", [False, True])
def test_weights_may_be_links_to_another_disk_and_those_that_lead_nowhere_are_named(tmp_path, folder, config, base, shards):
    if shards:
        save_pretrained(folder, config, base, max_shard_bytes=2000)
    (tmp_path / "disk").mkdir()
    names = [path.name for path in folder.glob("*.safetensors")]
    assert (len(names) > 1) == shards
    for number, name in enumerate(names):
        # As stores name them that keep files by their content.
        shutil.move(folder / name, tmp_path / "disk" / str(number))
        (folder / name).symlink_to(tmp_path / "disk" / str(number))
    chex.assert_trees_all_equal(load_pretrained(folder).base, base)
    (tmp_path / "disk" / "0").unlink()
    with pytest.raises(InputError, match=rf"{names[0]} is a link to \S+disk/0, which cannot be read \(No such file"):
        load_pretrained(folder)


def test_links_within_the_folder_and_to_it_are_followed(tmp_path, folder, base):
    shutil.move(folder / WEIGHTS_FILE, folder / "own.safetensors")
    (folder / WEIGHTS_FILE).symlink_to("own.safetensors")
    (tmp_path / "link").symlink_to(folder)
    # What is not read may lead anywhere.
    (folder / "data").symlink_to("/etc")
    chex.assert_trees_all_equal(load_pretrained(tmp_path / "link").base, base)


def test_a_pipe_is_no_configuration(folder):
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    with pytest.raises(InputError, match=r"config\.json is no regular file"):
        load_pretrained(folder)


TRAP = "import pathlib\npathlib.Path(__file__).with_name('ran').touch()\nclass Trap: ...\n"


@pytest.mark.parametrize("auto_map", [["trap.Trap", None], {"AutoTokenizer": ["trap.Trap", None]}, "trap.Trap", 5], ids=str)
@pytest.mark.parametrize("answer", ["y\n", "\n"])
def test_no_code_from_a_folder_is_run_and_nobody_asked(folder, word_tokenizer, monkeypatch, auto_map, answer):
    word_tokenizer().save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text()) | {"auto_map": auto_map}
    (folder / "trap.py").write_text(TRAP)
    (folder / "tokenization_trap.py").write_text(TRAP)
    edit_config(folder, auto_map={"AutoConfig": "trap.Trap", "AutoModelForCausalLM": "trap.Trap"})
    monkeypatch.setattr("sys.stdin", io.StringIO(answer))
    for kind in ("TrapTokenizer", settings["tokenizer_class"]):
        (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"tokenizer_class": kind}))
        try:
            load_pretrained(folder).tokenizer("a b")
        except InputError as error:
            assert "(auto_map), and no code from a model's folder is ever run" in str(error)  # noqa: PT017
    assert sys.stdin.read() == answer
    assert not (folder / "ran").exists()


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


@pytest.mark.parametrize("layers", [4, 4096])
def test_more_layers_than_the_file_holds_are_missed_at_once(folder, layers):
    edit_config(folder, num_hidden_layers=layers)
    with pytest.raises(InputError, match=r"lacks the tensor model\.layers\.3\.self_attn\.q_proj\.weight"):
        load_pretrained(folder)


@pytest.mark.parametrize("size", [0, 1, 2**31, 2**63, 2**64 - 1])
def test_a_header_that_lies_about_its_size(folder, size):
    file = folder / WEIGHTS_FILE
    file.write_bytes(size.to_bytes(8, "little") + file.read_bytes()[8:])
    with pytest.raises(InputError, match="is damaged, truncated or no safetensors file"):
        load_pretrained(folder)


def test_refuses_unknown_options(folder, config, base):
    with pytest.raises(InputError, match=r"quantization 'int3' is unknown; choose from none, int8, int4, nf4"):
        load_pretrained(folder, quantization="int3")
    with pytest.raises(InputError, match="dtype 'int8' is unknown; choose from float32, bfloat16, float16"):
        load_pretrained(folder, dtype="int8")
    with pytest.raises(InputError, match="dtype 'int8' is unknown"):
        save_pretrained(folder, config, base, dtype="int8")


def test_a_model_without_tokenizer_says_so_when_asked(folder, config, base):
    with pytest.raises(InputError, match=f"{folder} holds no tokenizer; add the tokenizer.json"):
        _ = load_pretrained(folder).tokenizer
    with pytest.raises(InputError, match="the model has no tokenizer; give Model one"):
        _ = Model(config, base).tokenizer
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match=f"the tokenizer in {folder} cannot be read"):
        load_tokenizer(folder)


def test_the_tokenizer_is_read_once_and_when_asked(folder):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<unk>": 0, "grow": 1, "deep": 2}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    model = load_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>").save_pretrained(folder)
    assert model.tokenizer("grow deep wide")["input_ids"] == [1, 2, 0]
    assert model.tokenizer is model.tokenizer
    given = object()
    assert Model(model.config, model.base, given).tokenizer is given


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


@pytest.mark.parametrize("kind", [None, "int8", "nf4"])
@pytest.mark.parametrize("varied", [False, True])
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


@pytest.fixture
def source(tmp_path, config, base, word_tokenizer):
    """A model with a tokenizer and settings of generation, and ids of its own."""
    save_pretrained(tmp_path / "source", config, base, bos_id=5, eos_id=6)
    word_tokenizer().save_pretrained(tmp_path / "source")
    (tmp_path / "source" / "generation_config.json").write_text('{"top_p": 0.5}')
    (tmp_path / "source" / "chat_template.jinja").write_text("{{ messages }}")
    edit_config(tmp_path / "source", eos_token_id=[6, 7], pad_token_id=3)
    return tmp_path / "source"


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


def test_a_loaded_model_knows_its_folder(source):
    model = load_pretrained(source)
    assert model.tokenizer is not None
    assert model.folder == source
    assert Model(model.config, model.base, object()).folder is None


def test_a_folder_that_cannot_be_made(tmp_path, config, base):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        save_pretrained(tmp_path / "file", config, base)


def test_files_are_readable_as_other_new_files_are(folder):
    other = folder / "other"
    other.touch()
    modes = {stat.S_IMODE(os.stat(file).st_mode) for file in folder.iterdir()}
    assert len(modes) == 1


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
