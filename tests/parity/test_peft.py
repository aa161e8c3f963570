"""Adapters written here load in PEFT, PEFT's load here, and both compute the same logits within 1e-4 in float32."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("torch", reason="parity needs torch: pip install 'devft-jax[parity]'")
pytest.importorskip("peft", reason="parity needs peft: pip install 'devft-jax[parity]'")

import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from devft_jax.models.adapter import Adapter
from devft_jax.models.architecture import PROJECTIONS, ModelConfig
from devft_jax.models.base import init_base
from devft_jax.models.huggingface.peft.reading import import_peft
from devft_jax.models.huggingface.peft.writing import export_peft
from devft_jax.models.huggingface.writing import save_pretrained
from devft_jax.models.llama import forward
from devft_jax.models.lora import init_lora

pytestmark = pytest.mark.parity

# Queries are 40 wide and the model 32, so that q and o are not square and cannot be swapped.
CONFIG = ModelConfig(vocabulary=101, width=32, feed_forward=48, layers=3, heads=4, kv_heads=2, head_size=10)
TOKENS = np.random.default_rng(0).integers(0, CONFIG.vocabulary, (2, 12))


def torch_logits(model: torch.nn.Module) -> np.ndarray:
    with torch.no_grad():
        return model.eval()(torch.from_numpy(TOKENS)).logits.numpy()


def trained_adapter(config: ModelConfig, targets: tuple[str, ...]) -> Adapter:
    adapter = init_lora(jax.random.key(1), config, rank=4, alpha=12.0, targets=targets, dropout=0.05)
    # Larger factors make attention so sharp that float32 rounding alone, torch's as well as ours, nears the tolerance.
    noise = jax.random.normal(jax.random.key(2), (256,))
    lora = {name: factors.replace(b=0.1 * jnp.resize(noise, factors.b.shape)) for name, factors in adapter.lora.items()}
    return adapter.replace(lora=lora)


@pytest.fixture
def base(tmp_path):
    base = jax.tree.map(lambda leaf: 4 * leaf, init_base(jax.random.key(0), CONFIG))
    save_pretrained(tmp_path / "base", CONFIG, base, dtype="float32")
    return base


@pytest.mark.parametrize("targets", [("q", "v"), ("o",), ("gate", "down"), PROJECTIONS], ids=",".join)
def test_exported_adapters_load_in_peft(tmp_path, base, targets):
    adapter = trained_adapter(CONFIG, targets)
    export_peft(adapter, tmp_path / "adapter", base_model=str(tmp_path / "base"))
    bare = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    plain = torch_logits(bare)
    model = PeftModel.from_pretrained(bare, tmp_path / "adapter")
    expected = forward(CONFIG, base, adapter, jnp.asarray(TOKENS))
    assert np.abs(expected - plain).max() > 0.1
    np.testing.assert_allclose(torch_logits(model), expected, atol=1e-4)
    np.testing.assert_allclose(torch_logits(model.merge_and_unload()), expected, atol=1e-4)


def test_peft_finds_the_base_by_itself(tmp_path, base):
    adapter = trained_adapter(CONFIG, ("q", "v"))
    export_peft(adapter, tmp_path / "adapter", base_model=str(tmp_path / "base"))
    model = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    np.testing.assert_allclose(torch_logits(model), forward(CONFIG, base, adapter, jnp.asarray(TOKENS)), atol=1e-4)


@pytest.mark.parametrize("initialisation", [False, "gaussian", "orthogonal"])
def test_adapters_of_peft_load_here(tmp_path, base, initialisation):
    torch.manual_seed(0)
    settings = LoraConfig(
        r=4,
        lora_alpha=10,
        lora_dropout=0.1,
        target_modules=[f"{name}_proj" for name in PROJECTIONS],
        init_lora_weights=initialisation,
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), settings)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(tmp_path / "adapter")
    adapter = import_peft(tmp_path / "adapter", CONFIG)
    assert adapter.scale == 2.5
    assert adapter.dropout == 0.1
    np.testing.assert_allclose(forward(CONFIG, base, adapter, jnp.asarray(TOKENS)), torch_logits(model), atol=1e-4)


FAMILIES = {
    "llama": {},
    "llama with biases": {"biases": PROJECTIONS},
    "mistral": {"family": "mistral", "sliding_window": 8},
    "qwen2": {"family": "qwen2", "biases": ("q", "k", "v"), "tied_head": True},
    "qwen3": {"family": "qwen3", "qk_norm": True},
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("varied", [False, True], ids=["one rank", "patterns"])
def test_adapters_of_every_family_on_all_targets(tmp_path, family, varied):
    config = dataclasses.replace(CONFIG, **FAMILIES[family])
    base = jax.tree.map(lambda leaf: 4 * leaf if leaf.ndim > 2 else leaf, init_base(jax.random.key(0), config))
    save_pretrained(tmp_path / "base", config, base, dtype="float32")
    adapter = trained_adapter(config, PROJECTIONS)
    if varied:
        adapter = with_ranks_of_layers(adapter)
    export_peft(adapter, tmp_path / "adapter", base_model=str(tmp_path / "base"))
    model = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    expected = np.asarray(forward(config, base, adapter, jnp.asarray(TOKENS)))
    assert np.abs(expected - forward(config, base, None, jnp.asarray(TOKENS))).max() > 0.05
    np.testing.assert_allclose(torch_logits(model), expected, atol=1e-4)
    np.testing.assert_array_equal(
        forward(config, base, import_peft(tmp_path / "adapter", config), jnp.asarray(TOKENS)), expected
    )


def with_ranks_of_layers(adapter: Adapter) -> Adapter:
    """Ranks and scales that differ by layer and by projection, and for one projection not by layer."""
    lora, scale = {}, {}
    for index, (name, factors) in enumerate(adapter.lora.items()):
        ranks = [2, 2, 2] if name == "v" else [1 + (index + layer) % 4 for layer in range(3)]
        keep = jnp.arange(4) < jnp.array(ranks)[:, None]
        lora[name] = factors.replace(a=factors.a * keep[:, None, :], b=factors.b * keep[:, :, None])
        scale[name] = jnp.array([3.0, 3.0, 3.0 + index % 2])
    return adapter.replace(lora=lora, scale=scale)


IMPORTED = {
    "rank and alpha patterns": {
        "rank_pattern": {"q_proj": 2, r".*\.1\.mlp\.(up|gate)_proj": 6, "model.layers.2.self_attn.v_proj": 1},
        "alpha_pattern": {"layers.0.mlp.down_proj": 30, "o_proj": 3},
    },
    # A smaller alpha: at scale 5 attention is so sharp that float32 rounding alone nears the tolerance.
    "rank-stabilised": {"use_rslora": True, "lora_alpha": 5},
    "rank-stabilised with patterns": {
        "use_rslora": True,
        "rank_pattern": {"layers.1.*": 2},
        "alpha_pattern": {r"model\.layers\.[02].*": 5},
    },
    "some layers": {"layers_to_transform": [0, 2]},
    "one layer": {"layers_to_transform": 1, "layers_pattern": "layers"},
    "without some modules": {"exclude_modules": ["layers.1.mlp.up_proj", "model.layers.0.self_attn.k_proj"]},
    "a regular expression": {"target_modules": r".*layers\.[01]\.(self_attn\.[qv]|mlp\.down)_proj"},
    "all linear": {"target_modules": "all-linear"},
    "a negative alpha": {"lora_alpha": -10},
}


@pytest.mark.parametrize("name", IMPORTED)
def test_adapters_of_peft_whose_modules_differ(tmp_path, base, name):
    torch.manual_seed(0)
    fields = {"target_modules": [f"{projection}_proj" for projection in PROJECTIONS], "lora_alpha": 10, **IMPORTED[name]}
    settings = LoraConfig(r=4, task_type="CAUSAL_LM", **fields)
    bare = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    plain = torch_logits(bare)
    model = get_peft_model(bare, settings)
    for parameter_name, parameter in model.named_parameters():
        if "lora_B" in parameter_name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(tmp_path / "adapter")
    adapter = import_peft(tmp_path / "adapter", CONFIG)
    ours = np.asarray(forward(CONFIG, base, adapter, jnp.asarray(TOKENS)))
    assert np.abs(ours - plain).max() > 0.05
    np.testing.assert_allclose(ours, torch_logits(model), atol=1e-4)
    # Out again, in the plain scale and the full names, and PEFT still computes the same.
    export_peft(adapter, tmp_path / "again", base_model=str(tmp_path / "base"))
    again = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "again")
    np.testing.assert_allclose(torch_logits(again), ours, atol=1e-4)
    np.testing.assert_array_equal(forward(CONFIG, base, import_peft(tmp_path / "again", CONFIG), jnp.asarray(TOKENS)), ours)


def test_fresh_adapters_are_drawn_as_peft_draws_them(tmp_path):
    """Same bounds and spread for every projection, and a zero b; the generators differ, so the draws do."""
    config = dataclasses.replace(CONFIG, width=64, heads=8, feed_forward=96)
    base = init_base(jax.random.key(0), config)
    save_pretrained(tmp_path, config, base, dtype="float32")
    torch.manual_seed(0)
    targets = [f"{name}_proj" for name in PROJECTIONS]
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tmp_path), LoraConfig(r=64, target_modules=targets, task_type="CAUSAL_LM")
    )
    ours = init_lora(jax.random.key(0), config, rank=64, alpha=8.0, targets=PROJECTIONS).lora
    theirs = {name: parameter.detach().numpy() for name, parameter in model.named_parameters() if "lora_" in name}
    for projection, factors in ours.items():
        drawn = np.stack([value for name, value in theirs.items() if f"{projection}_proj.lora_A" in name])
        assert drawn.size == factors.a.size
        np.testing.assert_allclose(np.abs(drawn).max(), jnp.abs(factors.a).max(), rtol=0.01)
        np.testing.assert_allclose(drawn.std(), factors.a.std(), rtol=0.03)
    assert not any(value.any() for name, value in theirs.items() if "lora_B" in name)
