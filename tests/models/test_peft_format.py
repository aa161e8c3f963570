"""Adapters survive PEFT's format unchanged, under PEFT's names and shapes; anything but plain LoRA is refused."""

import json
import os
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from devft_jax.errors import InputError, RunError
from devft_jax.models.llama import PROJECTIONS, Adapter, LoraFactors
from devft_jax.models.peft_format import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_WEIGHTS_FILE,
    export_peft,
    import_peft,
)
from tests.models.conftest import CONFIG, random_adapter


@pytest.fixture
def folder(tmp_path, adapter):
    export_peft(adapter, tmp_path / "adapter", base_model="acme/tiny")
    return tmp_path / "adapter"


def edit_config(folder: Path, **fields) -> None:
    path = folder / ADAPTER_CONFIG_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def edit_tensors(folder: Path, change) -> None:
    """Rewrite the factors after `change` has edited their dictionary in place."""
    tensors = load_file(folder / ADAPTER_WEIGHTS_FILE)
    change(tensors)
    save_file(tensors, folder / ADAPTER_WEIGHTS_FILE)


@settings(max_examples=25)
@given(
    targets=st.sets(st.sampled_from(PROJECTIONS), min_size=1),
    rank=st.integers(1, 5),
    alpha=st.floats(0.01, 200.0),
    dropout=st.sampled_from((0.0, 0.05)),
    seed=st.integers(0, 9),
)
def test_export_then_import_is_the_identity(tmp_path_factory, targets, rank, alpha, dropout, seed):
    random = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(random.standard_normal(shape), jnp.float32)

    lora = {}
    for name in targets:
        fan_in, fan_out = CONFIG.projection_shape(name)
        lora[name] = LoraFactors(a=normal(CONFIG.layers, fan_in, rank), b=normal(CONFIG.layers, rank, fan_out))
    adapter = Adapter(lora=lora, scale=jnp.float32(alpha / rank), dropout=dropout)
    folder = tmp_path_factory.mktemp("adapter")
    export_peft(adapter, folder)
    chex.assert_trees_all_equal(import_peft(folder, CONFIG), adapter)


def test_names_shapes_and_values_are_those_of_peft(folder, config, adapter):
    tensors = load_file(folder / ADAPTER_WEIGHTS_FILE)
    modules = {
        "q": "self_attn.q_proj",
        "k": "self_attn.k_proj",
        "v": "self_attn.v_proj",
        "o": "self_attn.o_proj",
        "gate": "mlp.gate_proj",
        "up": "mlp.up_proj",
        "down": "mlp.down_proj",
    }
    assert len(tensors) == 2 * 7 * config.layers
    for name, module in modules.items():
        fan_in, fan_out = config.projection_shape(name)
        for layer in range(config.layers):
            prefix = f"base_model.model.model.layers.{layer}.{module}"
            a, b = tensors[f"{prefix}.lora_A.weight"], tensors[f"{prefix}.lora_B.weight"]
            assert (a.shape, b.shape) == ((3, fan_in), (fan_out, 3))
            assert a.dtype == b.dtype == np.float32
            np.testing.assert_array_equal(a, adapter.lora[name].a[layer].T)
            np.testing.assert_array_equal(b, adapter.lora[name].b[layer].T)


def test_the_config_holds_what_peft_needs(folder):
    assert json.loads((folder / ADAPTER_CONFIG_FILE).read_text()) == {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "acme/tiny",
        "r": 3,
        "lora_alpha": 6,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    }
    assert sorted(os.listdir(folder)) == [ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE]


@pytest.mark.parametrize(("alpha", "rank", "written"), [(64.0, 32, 64), (64.0, 3, 64), (0.1, 1, float(np.float32(0.1)))])
def test_alpha_is_whole_where_it_was(tmp_path, config, alpha, rank, written):
    adapter = random_adapter(config, ("q",), rank=rank).replace(scale=jnp.float32(alpha / rank))
    export_peft(adapter, tmp_path)
    found = json.loads((tmp_path / ADAPTER_CONFIG_FILE).read_text())["lora_alpha"]
    assert (found, type(found)) == (written, type(written))


@pytest.mark.parametrize("stored", [ml_dtypes.bfloat16, np.float16])
def test_half_precision_adapters_come_back_in_float32(folder, config, adapter, stored):
    edit_tensors(folder, lambda tensors: tensors.update({name: t.astype(stored) for name, t in tensors.items()}))
    expected = jax.tree.map(lambda leaf: leaf.astype(stored).astype(jnp.float32), adapter)
    chex.assert_trees_all_equal(import_peft(folder, config), expected.replace(scale=adapter.scale))


def test_a_bfloat16_adapter_is_written_in_float32(tmp_path, config, adapter):
    half = adapter.replace(lora=jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), adapter.lora))
    export_peft(half, tmp_path)
    expected = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), half)
    chex.assert_trees_all_equal(import_peft(tmp_path, config), expected)


def test_other_peft_defaults_are_accepted(folder, config, adapter):
    """Fields as peft 0.21 writes them for an ordinary adapter."""
    edit_config(
        folder,
        alpha_pattern={},
        rank_pattern={},
        init_lora_weights=True,
        layers_to_transform=None,
        loftq_config={},
        megatron_core="megatron.core",
        modules_to_save=None,
        peft_version="0.21.2",
        qalora_group_size=16,
        target_modules=["v_proj", "q_proj"],
        use_dora=False,
        use_rslora=False,
    )
    chex.assert_trees_all_equal(import_peft(folder, config), adapter)


REFUSED = [
    ({"peft_type": "IA3"}, 'peft_type "IA3" in'),
    ({"use_rslora": True}, "use_rslora true in .* is not supported; give an adapter of plain LoRA"),
    ({"use_dora": True}, "use_dora true"),
    ({"rank_pattern": {"q_proj": 4}}, "rank_pattern"),
    ({"alpha_pattern": {"q_proj": 4}}, "alpha_pattern"),
    ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    ({"bias": "all"}, 'bias "all"'),
    ({"fan_in_fan_out": True}, "fan_in_fan_out true"),
    ({"layer_replication": [[0, 2], [1, 3]]}, "layer_replication"),
    ({"init_lora_weights": "pissa"}, 'init_lora_weights "pissa"'),
    ({"r": 0}, "r 0 in .* is not a positive number"),
    ({"r": 3.5}, "r 3.5 in"),
    ({"lora_alpha": None}, "lora_alpha null in"),
    ({"lora_dropout": 1.0}, "lora_dropout 1.0 in .* is outside"),
    ({"lora_dropout": "some"}, 'lora_dropout "some" in'),
    ({"r": 4}, r"has shape \(3, 16\) but the model and the adapter's r imply \(4, 16\)"),
]


@pytest.mark.parametrize(("fields", "message"), REFUSED, ids=[str(fields) for fields, _ in REFUSED])
def test_refuses_what_it_would_compute_otherwise(folder, config, fields, message):
    edit_config(folder, **fields)
    with pytest.raises(InputError, match=message):
        import_peft(folder, config)


def test_refuses_other_depths(folder, config):
    with pytest.raises(InputError, match=r"of layer 2 but the model has 2 layers numbered from 0"):
        import_peft(folder, config.with_layers(2))
    with pytest.raises(InputError, match=r"lacks the tensor .*layers\.3\.self_attn\.q_proj\.lora_A\.weight"):
        import_peft(folder, config.with_layers(4))


NAME = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        (NAME, np.ones((3, 17), np.float32), r"has shape \(3, 17\) but .* imply \(3, 16\)"),
        (NAME, np.ones((3, 16), np.int32), "has the type int32"),
        ("base_model.model.lm_head.lora_A.weight", np.ones((3, 16), np.float32), "is not a LoRA factor"),
        (NAME.replace("self_attn.q_proj", "mlp.q_proj"), np.ones((3, 16), np.float32), "is not a LoRA factor"),
        (NAME.replace("lora_A.weight", "lora_magnitude_vector"), np.ones(3, np.float32), "is not a LoRA factor"),
    ],
)
def test_refuses_tensors_that_do_not_fit(folder, config, name, tensor, message):
    edit_tensors(folder, lambda tensors: tensors.update({name: tensor}))
    with pytest.raises(InputError, match=message):
        import_peft(folder, config)


def test_refuses_a_missing_factor_and_an_empty_file(folder, config):
    edit_tensors(folder, lambda tensors: tensors.pop(NAME))
    with pytest.raises(InputError, match=f"lacks the tensor {NAME}"):
        import_peft(folder, config)
    edit_tensors(folder, dict.clear)
    with pytest.raises(InputError, match="holds no LoRA factors"):
        import_peft(folder, config)


def test_refuses_damaged_and_absent_files(folder, config):
    weights = folder / ADAPTER_WEIGHTS_FILE
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(InputError, match="is damaged, truncated or no safetensors file"):
        import_peft(folder, config)
    weights.rename(folder / "adapter_model.bin")
    with pytest.raises(InputError, match=r"holds no adapter_model.safetensors; save the adapter as safetensors"):
        import_peft(folder, config)
    with pytest.raises(InputError, match="cannot be read"):
        import_peft(folder / "absent", config)


def test_refuses_to_export_several_ranks(tmp_path, config):
    one, other = random_adapter(config, ("q",), rank=2), random_adapter(config, ("v",), rank=3)
    with pytest.raises(InputError, match=r"ranks \{'q': 2, 'v': 3\} differ"):
        export_peft(one.replace(lora=one.lora | other.lora), tmp_path)


def test_an_unwritable_folder_fails_with_one_sentence(tmp_path, adapter):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"the folder .*file cannot be written"):
        export_peft(adapter, tmp_path / "file")
