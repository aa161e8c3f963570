"""Adapters survive PEFT's format unchanged, under PEFT's names and shapes; anything but plain LoRA is refused."""

import dataclasses
import json
import os
import re
import time
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
from devft_jax.models.adapter import Adapter, LoraFactors, layer_scales
from devft_jax.models.architecture import PROJECTIONS
from devft_jax.models.huggingface.peft import expressions
from devft_jax.models.huggingface.peft.names import ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE
from devft_jax.models.huggingface.peft.reading import import_peft
from devft_jax.models.huggingface.peft.writing import export_peft
from devft_jax.models.llama import forward
from tests.models.conftest import CONFIG, interrupt_replacing, random_adapter


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
        target_modules=["v_proj", "q_proj", "down_proj", "o_proj", "up_proj", "k_proj", "gate_proj"],
        use_dora=False,
        use_rslora=False,
    )
    chex.assert_trees_all_equal(import_peft(folder, config), adapter)


REFUSED = [
    ({"peft_type": "IA3"}, 'peft_type "IA3" in'),
    ({"use_dora": True}, "use_dora true in .* is not supported; give an adapter of plain LoRA"),
    ({"rank_pattern": {"q_proj": 4}}, r"shape \(3, 16\) but the model and the adapter's r and rank_pattern imply \(4, 16\)"),
    ({"rank_pattern": {"q_proj": 0}}, "rank_pattern of q_proj 0 in .* is not a positive number"),
    ({"rank_pattern": {"(": 3}}, r'rank_pattern "\(" in .* is not a regular expression'),
    ({"alpha_pattern": {"(?i)Q_PROJ": 3}}, r'alpha_pattern "\(\?i\)Q_PROJ" in .* is not a regular expression'),
    ({"rank_pattern": [3]}, r"rank_pattern \[3\] in .* does not map modules to numbers"),
    ({"alpha_pattern": {"q_proj": "much"}}, 'alpha_pattern of q_proj "much" in .* is not a finite number'),
    ({"lora_alpha": float("nan")}, "lora_alpha NaN in .* is not a finite number"),
    ({"layers_pattern": "blocks"}, 'layers_pattern "blocks"'),
    ({"layers_to_transform": [0, "1"]}, "layers_to_transform .* is not a list of layers"),
    ({"layers_to_transform": [0, 1]}, r"layers\.2\..* belongs to a module that target_modules, .* leave out"),
    ({"target_modules": ["q_proj"]}, "belongs to a module that target_modules, .* leave out"),
    ({"target_modules": "[qv"}, r'target_modules "\[qv" in .* is not a regular expression'),
    ({"target_modules": [1]}, "target_modules .* does not name modules"),
    ({"exclude_modules": "model.layers.1.*"}, r"layers\.1\..* belongs to a module that"),
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
    made_for = "the adapter was made for acme/tiny: give that model"
    with pytest.raises(InputError, match=f"of layer 2 but the model has 2 layers numbered from 0; {made_for}"):
        import_peft(folder, config.with_layers(2))
    with pytest.raises(InputError, match=made_for):
        import_peft(folder, dataclasses.replace(config, width=18))
    with pytest.raises(InputError, match=rf"lacks the tensor .*layers\.3\.self_attn\.q_proj\.lora_A\.weight.*{made_for}"):
        import_peft(folder, config.with_layers(4))
    edit_config(folder, base_model_name_or_path=None)
    with pytest.raises(InputError, match="give the model that the adapter was made for"):
        import_peft(folder, config.with_layers(4))


NAME = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        (NAME, np.ones((3, 17), np.float32), r"has shape \(3, 17\) but .* imply \(3, 16\)"),
        (NAME, np.ones((3, 16), np.int32), "has the type I32"),
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
    edit_tensors(folder, lambda tensors: [tensors.pop(name) for name in list(tensors) if "q_proj" in name])
    with pytest.raises(InputError, match=f"lacks the tensor {NAME}"):
        import_peft(folder, config)
    edit_config(folder, target_modules=None)
    assert "q" not in import_peft(folder, config).lora
    edit_tensors(folder, dict.clear)
    with pytest.raises(InputError, match="holds no LoRA factors"):
        import_peft(folder, config)


def test_refuses_damaged_and_absent_files(folder, config):
    weights = folder / ADAPTER_WEIGHTS_FILE
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(InputError, match="is damaged, truncated or not a safetensors file"):
        import_peft(folder, config)
    weights.rename(folder / "adapter_model.bin")
    with pytest.raises(InputError, match=r"holds no adapter_model.safetensors; save the adapter as safetensors"):
        import_peft(folder, config)
    with pytest.raises(InputError, match="cannot be read"):
        import_peft(folder / "absent", config)


def ragged_adapter(ranks: dict[str, list[int]], alphas: dict[str, list[float]], seed: int = 0) -> Adapter:
    """Factors whose rank and alpha are given for every layer, padded with zeros."""
    random = np.random.default_rng(seed)
    lora, scale = {}, {}
    for name, of_layers in ranks.items():
        fan_in, fan_out = CONFIG.projection_shape(name)
        a = random.standard_normal((CONFIG.layers, fan_in, max(of_layers)))
        b = random.standard_normal((CONFIG.layers, max(of_layers), fan_out))
        for layer, rank in enumerate(of_layers):
            a[layer, :, rank:] = 0
            b[layer, rank:] = 0
        lora[name] = LoraFactors(a=jnp.asarray(a, jnp.float32), b=jnp.asarray(b, jnp.float32))
        scale[name] = jnp.asarray(np.array(alphas[name]) / np.array(of_layers), jnp.float32)
    return Adapter(lora=lora, scale=scale)


def logits(adapter: Adapter, base, tokens) -> np.ndarray:
    return np.asarray(forward(CONFIG, base, adapter, tokens))


@settings(max_examples=25)
@given(data=st.data(), targets=st.sets(st.sampled_from(PROJECTIONS), min_size=1), seed=st.integers(0, 9))
def test_ranks_and_alphas_that_vary_come_back(tmp_path_factory, data, targets, seed):
    def of_layers(values):
        return data.draw(st.lists(values, min_size=CONFIG.layers, max_size=CONFIG.layers))

    targets = sorted(targets)
    ranks = {name: of_layers(st.integers(1, 4)) for name in targets}
    alphas = {name: of_layers(st.sampled_from((0.3, 1.0, 8.0, -2.0))) for name in targets}
    adapter = ragged_adapter(ranks, alphas, seed)
    folder = tmp_path_factory.mktemp("adapter")
    export_peft(adapter, folder / "one")
    imported = import_peft(folder / "one", CONFIG)
    chex.assert_trees_all_equal(imported.lora, adapter.lora)
    chex.assert_trees_all_equal(layer_scales(imported, CONFIG.layers), adapter.scale)
    export_peft(imported, folder / "two")
    for file in (ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE):
        assert (folder / "one" / file).read_bytes() == (folder / "two" / file).read_bytes()


def test_patterns_name_projections_where_uniform_and_modules_where_not(tmp_path, base, tokens):
    ranks = {"q": [2, 2, 2], "v": [4, 4, 4], "up": [2, 1, 2]}
    adapter = ragged_adapter(ranks, {"q": [4.0] * 3, "v": [8.0] * 3, "up": [4.0, 4.0, 6.0]})
    export_peft(adapter, tmp_path, base_model="acme/tiny")
    fields = json.loads((tmp_path / ADAPTER_CONFIG_FILE).read_text())
    assert (fields["r"], fields["lora_alpha"]) == (2, 4)
    assert fields["rank_pattern"] == {"v_proj": 4, "model.layers.1.mlp.up_proj": 1}
    assert fields["alpha_pattern"] == {"v_proj": 8, "model.layers.2.mlp.up_proj": 6}
    shapes = {name: tensor.shape for name, tensor in load_file(tmp_path / ADAPTER_WEIGHTS_FILE).items()}
    assert shapes["base_model.model.model.layers.1.mlp.up_proj.lora_A.weight"] == (1, 16)
    assert shapes["base_model.model.model.layers.0.mlp.up_proj.lora_B.weight"] == (20, 2)
    np.testing.assert_array_equal(logits(import_peft(tmp_path, CONFIG), base, tokens), logits(adapter, base, tokens))


def test_only_trailing_columns_that_are_zero_in_both_factors_are_trimmed(tmp_path, config, adapter):
    factors = adapter.lora["q"]
    fresh = factors.replace(b=jnp.zeros_like(factors.b))
    inner = factors.replace(a=factors.a.at[:, :, 0].set(0), b=factors.b.at[:, 0].set(0))
    half = factors.replace(a=factors.a.at[:, :, 2].set(0))
    nothing = jax.tree.map(jnp.zeros_like, factors)
    chosen = adapter.replace(lora={"q": fresh, "o": nothing, "k": inner, "v": half})
    chosen = chosen.replace(lora={name: resize(factors, name, config) for name, factors in chosen.lora.items()})
    export_peft(chosen, tmp_path)
    fields = json.loads((tmp_path / ADAPTER_CONFIG_FILE).read_text())
    assert (fields["r"], fields["rank_pattern"]) == (3, {"o_proj": 1})
    imported = import_peft(tmp_path, config)
    assert imported.lora["o"].a.shape == (config.layers, 24, 1)
    assert imported.scale == adapter.scale
    for name in "qkv":
        chex.assert_trees_all_equal(imported.lora[name], chosen.lora[name])


def resize(factors: LoraFactors, name: str, config) -> LoraFactors:
    """The same pattern of zeros in another projection's shape."""
    fan_in, fan_out = config.projection_shape(name)
    layers, _, rank = factors.a.shape
    return LoraFactors(
        a=jnp.broadcast_to(factors.a[:, :1], (layers, fan_in, rank)),
        b=jnp.broadcast_to(factors.b[:, :, :1], (layers, rank, fan_out)),
    )


def test_patterns_are_regular_expressions_for_the_end_of_a_path(folder, config, adapter):
    edit_config(
        folder,
        alpha_pattern={"layers.1.self_attn.q_proj": 3, r".*\.0\..*(gate|up)_proj": 9, "roj": 100, "q_pro": 100},
    )
    scale = layer_scales(import_peft(folder, config), config.layers)
    expected = {name: np.full(config.layers, 2.0, np.float32) for name in PROJECTIONS}
    expected["q"][1] = 1.0
    expected["gate"][0] = expected["up"][0] = 3.0
    chex.assert_trees_all_equal(scale, expected)


def test_the_first_key_that_matches_wins(folder, config):
    edit_config(folder, alpha_pattern={"q_proj": 3, "model.layers.1.self_attn.q_proj": 9})
    np.testing.assert_array_equal(layer_scales(import_peft(folder, config), config.layers)["q"], np.ones(3))


def test_rank_stabilised_scales_divide_by_the_root(folder, config, adapter):
    edit_config(folder, use_rslora=True)
    imported = import_peft(folder, config)
    assert float(imported.scale) == np.float32(6 / np.sqrt(3))
    export_peft(imported, folder.parent / "again")
    assert not json.loads((folder.parent / "again" / ADAPTER_CONFIG_FILE).read_text()).get("use_rslora")
    chex.assert_trees_all_equal(import_peft(folder.parent / "again", config), imported)


@pytest.mark.parametrize(
    "fields",
    [
        {"layers_to_transform": [0, 2]},
        {"layers_to_transform": [0, 2], "layers_pattern": "layers"},
        {"exclude_modules": r"model\.layers\.1\..*"},
        {"target_modules": r".*\.[02]\..*_proj"},
        {"target_modules": [f"layers.{layer}.self_attn.{name}_proj" for layer in (0, 2) for name in "qkvo"]},
    ],
    ids=str,
)
def test_layers_that_are_left_out_have_zero_factors(folder, config, adapter, fields):
    names = "qkvo" if isinstance(fields.get("target_modules"), list) else PROJECTIONS

    def leave_out(tensors):
        for name in list(tensors):
            if ".layers.1." in name or ("mlp" in name and "gate" not in names):
                del tensors[name]

    edit_tensors(folder, leave_out)
    edit_config(folder, **fields)
    imported = import_peft(folder, config)
    expected = {
        name: jax.tree.map(lambda leaf: leaf.at[1].set(0), factors)
        for name, factors in adapter.lora.items()
        if name in names
    }
    chex.assert_trees_all_equal(imported, adapter.replace(lora=expected))
    export_peft(imported, folder.parent / "again")
    chex.assert_trees_all_equal(import_peft(folder.parent / "again", config), imported)


def test_one_layer_may_be_given_as_a_number(folder, config):
    edit_tensors(folder, lambda t: [t.pop(name) for name in list(t) if ".layers.1." not in name])
    edit_config(folder, layers_to_transform=1)
    assert np.flatnonzero(np.asarray(import_peft(folder, config).lora["q"].b).any(axis=(1, 2))).tolist() == [1]


# ---- names of tensors, and what an adapter from outside may do -------------------------------------------------------


PEFT_NAME = "base_model.model.model.layers."


def rename(folder, change):
    def edit(tensors):
        renamed = {change(name): tensor for name, tensor in tensors.items()}
        tensors.clear()
        tensors.update(renamed)

    edit_tensors(folder, edit)


@pytest.mark.parametrize(
    "change",
    [
        lambda name: name.replace(PEFT_NAME, "base_model.model.layers."),
        lambda name: name.replace(PEFT_NAME, "model.layers."),
        lambda name: name.replace(PEFT_NAME, "layers."),
        lambda name: name.replace(PEFT_NAME, "base_model.model.model.model.layers."),
        lambda name: f"module.{name}",
        lambda name: f"module._orig_mod.{name}",
        lambda name: name.replace(".layers.", "._fsdp_wrapped_module.layers.").replace(".mlp", "._orig_mod.mlp"),
        lambda name: name.replace(".weight", ".default.weight"),
        lambda name: "_orig_mod." + name.replace(PEFT_NAME, "model.layers.").replace(".weight", ".mine.weight"),
    ],
    ids=range(9),
)
def test_well_known_names_of_factors_are_read(folder, config, adapter, change):
    rename(folder, change)
    edit_config(folder, target_modules=r".*model\.layers\.\d+\..*_proj", rank_pattern={r"layers\.0\.mlp\.up_proj": 3})
    chex.assert_trees_all_equal(import_peft(folder, config), adapter)


@pytest.mark.parametrize("prefix", ["transformer.", "base_model.model.language_model.model.", "model.\x1b[2J."])
def test_another_prefix_is_named(folder, config, prefix):
    rename(folder, lambda name: name.replace("base_model.model.model.", prefix))
    shown = re.escape(prefix.replace("\x1b", r"\x1b"))
    with pytest.raises(InputError, match=rf"has the prefix '{shown}' before its layers, which is unknown"):
        import_peft(folder, config)


def test_one_factor_is_stored_once_and_of_one_adapter(folder, config):
    other = NAME.replace("base_model.model.model", "model")
    edit_tensors(folder, lambda tensors: tensors.update({other: tensors[NAME]}))
    with pytest.raises(InputError, match=f"has both .*{NAME}.*, which are the same factor"):
        import_peft(folder, config)
    edit_tensors(folder, lambda tensors: tensors.pop(other))
    rename(folder, lambda name: name.replace(".weight", ".one.weight" if "q_proj" in name else ".two.weight"))
    with pytest.raises(InputError, match=r"holds several adapters \(.*one\.weight, .*two\.weight|.*two.*, .*one.*\)"):
        import_peft(folder, config)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_adapter_that_is_not_finite_is_refused_by_tensor_and_layer(folder, config, value):
    name = NAME.replace("layers.0", "layers.1")

    def spoil(tensors):
        tensors[name][2, 5] = value

    edit_tensors(folder, spoil)
    with pytest.raises(InputError, match=rf"{name} in .* \(layer 1, counted from 0\) has NaN or infinite values"):
        import_peft(folder, config)


CATASTROPHIC = r"((a|m|o|d|e|l|\w|\.)*)*!"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"target_modules": CATASTROPHIC}, "target_modules .* takes longer than"),
        ({"exclude_modules": CATASTROPHIC}, "exclude_modules .* takes longer than"),
        ({"rank_pattern": {CATASTROPHIC: 2}}, "rank_pattern .* takes longer than"),
        ({"alpha_pattern": {"(" * 20_000 + ")" * 20_000: 2}}, "alpha_pattern .* is not a regular expression"),
        ({"r": 10**7}, r"has shape \(3, 16\) but .* imply \(10000000, 16\)"),
        ({"rank_pattern": {"q_proj": 10**12}}, r"has shape \(3, 16\) but .* imply \(1000000000000, 16\)"),
        ({"lora_alpha": 10**400}, r"lora_alpha 1000.*\.\.\. in .* is not a finite number"),
        ({"layers_to_transform": list(range(10**5))}, None),
        ({"target_modules": [f"{name}_proj" for name in PROJECTIONS] + [f"x{i}" for i in range(10**5)]}, None),
    ],
    ids=range(9),
)
def test_what_an_adapter_claims_costs_no_time_or_memory(folder, config, adapter, fields, message, monkeypatch):
    monkeypatch.setattr(expressions, "SECONDS", 0.5)
    edit_config(folder, **fields)
    began = time.perf_counter()
    if message is None:
        chex.assert_trees_all_equal(import_peft(folder, config), adapter)
    else:
        with pytest.raises(InputError, match=message):
            import_peft(folder, config)
    assert time.perf_counter() - began < 5


def test_a_link_of_an_adapters_configuration_out_of_its_folder_is_not_followed(folder, config, tmp_path):
    moved(folder / ADAPTER_CONFIG_FILE, tmp_path / "secret")
    with pytest.raises(InputError, match=f"{ADAPTER_CONFIG_FILE} is a link to {tmp_path / 'secret'}, outside the folder"):
        import_peft(folder, config)


def test_an_adapters_weights_may_lie_on_another_disk(folder, config, tmp_path):
    before = import_peft(folder, config)
    moved(folder / ADAPTER_WEIGHTS_FILE, tmp_path / "weights.safetensors")
    chex.assert_trees_all_equal(import_peft(folder, config), before)


def moved(file, to):
    """Put a file elsewhere and a link in its place."""
    file.rename(to)
    file.symlink_to(to)


def test_planted_links_are_not_written_through(folder, adapter, tmp_path):
    (tmp_path / "precious").write_text("mine")
    for name in (f"{ADAPTER_WEIGHTS_FILE}.new", f"{ADAPTER_CONFIG_FILE}.new"):
        (folder / name).symlink_to(tmp_path / "precious")
    (folder / ADAPTER_WEIGHTS_FILE).unlink()
    (folder / ADAPTER_WEIGHTS_FILE).symlink_to(tmp_path / "precious")
    export_peft(adapter, folder)
    assert (tmp_path / "precious").read_text() == "mine"
    assert not (folder / ADAPTER_WEIGHTS_FILE).is_symlink()


def test_a_half_replaced_adapter_does_not_load(folder, config, adapter, monkeypatch):
    """Weights of one adapter are never read with the scale of another."""
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    other = adapter.replace(scale=jnp.float32(7.0))
    for calls in range(2):
        interrupt_replacing(monkeypatch, after=calls)
        with pytest.raises(KeyboardInterrupt):
            export_peft(other, folder)
        monkeypatch.undo()
        with pytest.raises(InputError, match=f"{ADAPTER_CONFIG_FILE} cannot be read"):
            import_peft(folder, config)
    export_peft(other, folder)
    assert import_peft(folder, config).scale == 7.0
    assert {file.name for file in folder.iterdir()} == before.keys()


def test_an_adapter_of_nothing_is_refused(tmp_path, adapter):
    with pytest.raises(InputError, match="the adapter adapts no projection"):
        export_peft(adapter.replace(lora={}), tmp_path / "adapter")


def test_an_unwritable_folder_fails_with_one_sentence(tmp_path, adapter):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"the folder .*file cannot be written"):
        export_peft(adapter, tmp_path / "file")
