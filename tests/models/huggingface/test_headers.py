"""A checkpoint that does not hold what its config says costs one sentence and no time."""

import dataclasses
import shutil

import chex
import numpy as np
import pytest

from devft_jax.errors import InputError
from devft_jax.models.huggingface.folder import INDEX_FILE, WEIGHTS_FILE
from devft_jax.models.huggingface.reading import load_pretrained
from devft_jax.models.huggingface.writing import save_pretrained
from tests.models.conftest import CONFIG, random_base
from tests.models.huggingface.checkpoints import edit_config, edit_tensors, split_into_shards

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
    with pytest.raises(InputError, match=r"model\.safetensors is damaged, truncated or not a safetensors file"):
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
    with pytest.raises(InputError, match=r"has both \S*norm\.weight and \S*norm\.weight, which are the same tensor"):
        load_pretrained(folder)
    split_into_shards(folder)
    with pytest.raises(InputError, match=r"names both \S*norm\.weight and \S*norm\.weight, which are the same tensor"):
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


@pytest.mark.parametrize("layers", [4, 4096])
def test_more_layers_than_the_file_holds_are_missed_at_once(folder, layers):
    edit_config(folder, num_hidden_layers=layers)
    with pytest.raises(InputError, match=r"lacks the tensor model\.layers\.3\.self_attn\.q_proj\.weight"):
        load_pretrained(folder)


@pytest.mark.parametrize("size", [0, 1, 2**31, 2**63, 2**64 - 1])
def test_a_header_that_lies_about_its_size(folder, size):
    file = folder / WEIGHTS_FILE
    file.write_bytes(size.to_bytes(8, "little") + file.read_bytes()[8:])
    with pytest.raises(InputError, match="is damaged, truncated or not a safetensors file"):
        load_pretrained(folder)


def test_inverse_frequencies_of_old_checkpoints_are_ignored(folder, base):
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(3, np.float32)}
    edit_tensors(folder, lambda tensors: tensors.update(extra))
    chex.assert_trees_all_equal(load_pretrained(folder).base, base)
