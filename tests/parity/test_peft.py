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

from devft_jax.models.llama import PROJECTIONS, Adapter, ModelConfig, forward, init_base
from devft_jax.models.lora import init_lora
from devft_jax.models.peft_format import export_peft, import_peft
from devft_jax.models.pretrained import save_pretrained

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
