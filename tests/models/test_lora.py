"""Adapters begin as PEFT's do and refuse what is none."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from devft_jax.errors import InputError
from devft_jax.federated.adapters import adapter_of, initial_adapter
from devft_jax.models.adapter import Adapter
from devft_jax.models.architecture import PROJECTIONS
from devft_jax.models.lora import adapter_norms, as_low_rank, check_rank, init_lora
from devft_jax.models.options import LoraOptions, lora_scale, resolve_alpha
from devft_jax.options import check_options
from tests.tiny import CONFIG, random_adapter


def test_shapes_scale_and_zero_b(config):
    adapter = init_lora(jax.random.key(0), config, rank=3, alpha=12.0, targets=("down", "q"), dropout=0.1)
    assert list(adapter.lora) == ["q", "down"]
    for name, factors in adapter.lora.items():
        fan_in, fan_out = config.projection_shape(name)
        chex.assert_shape(factors.a, (config.layers, fan_in, 3))
        chex.assert_shape(factors.b, (config.layers, 3, fan_out))
        assert factors.a.dtype == factors.b.dtype == jnp.float32
        assert not factors.b.any()
    assert adapter.scale == 4.0
    assert adapter.dropout == 0.1


@pytest.mark.parametrize("name", PROJECTIONS)
def test_a_is_uniform_within_the_inverse_root_of_the_input_size(config, name):
    a = np.asarray(init_lora(jax.random.key(1), config, rank=64, alpha=1.0, targets=(name,)).lora[name].a)
    bound = config.projection_shape(name)[0] ** -0.5
    assert 0.98 * bound < np.max(a) <= bound
    assert -bound <= np.min(a) < -0.98 * bound
    # A uniform variable on [-bound, bound] has the deviation bound / sqrt(3).
    np.testing.assert_allclose(a.std(), bound / 3**0.5, rtol=0.05)
    assert abs(a.mean()) < 0.05 * bound


def test_each_layer_and_target_draws_its_own_factors_whatever_the_other_targets(config):
    alone = init_lora(jax.random.key(2), config, rank=3, alpha=1.0, targets=("k",)).lora["k"].a
    together = init_lora(jax.random.key(2), config, rank=3, alpha=1.0, targets=PROJECTIONS).lora
    np.testing.assert_array_equal(alone, together["k"].a)
    assert not np.allclose(alone[0], alone[1])
    assert not np.allclose(together["q"].a, together["k"].a)


def test_alpha_follows_the_rank_unless_it_is_given():
    assert [resolve_alpha(LoraOptions(rank=rank)) for rank in (8, 32)] == [16.0, 64.0]
    assert [lora_scale(LoraOptions(rank=rank)) for rank in (8, 32)] == [2.0, 2.0]
    assert lora_scale(LoraOptions(rank=8, alpha=64.0)) == 8.0
    check_options(LoraOptions(alpha="auto"))


def test_rank_stabilised_scales_divide_by_the_root_of_the_rank(config):
    assert [lora_scale(LoraOptions(rank=rank, alpha=16.0, rslora=True)) for rank in (1, 4, 16)] == [16.0, 8.0, 4.0]
    # Without an alpha the scale is 2 with either divisor.
    assert lora_scale(LoraOptions(rank=9, rslora=True)) == lora_scale(LoraOptions(rank=9)) == 2.0
    options = LoraOptions(rank=4, alpha=6.0, rslora=True, targets=("v",))
    for adapter in (initial_adapter(jax.random.key(0), config, options), adapter_of({}, options)):
        assert adapter.scale == 3.0


def test_a_rank_beyond_the_narrowest_target_is_refused():
    # k and v are [16, 8]; q and o [16, 16].
    check_rank(CONFIG, ("q", "v"), 8)
    check_rank(CONFIG, ("q", "o"), 16)
    with pytest.raises(InputError) as caught:
        check_rank(CONFIG, ("q", "v"), 9)
    assert str(caught.value) == (
        "rank 9 exceeds 8, the largest rank that projection 'v' [16 x 8] can have; use 8 or less, or adapt other targets."
    )


def test_default_options_are_valid():
    check_options(LoraOptions())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank 0 is not positive"),
        ({"alpha": 0.0}, "alpha 0.0 is not positive"),
        ({"alpha": -1.0}, "alpha -1.0 is not positive"),
        ({"dropout": 1.0}, r"dropout 1.0 is outside \[0, 1\)"),
        ({"dropout": -0.1}, "dropout -0.1 is outside"),
        ({"targets": ()}, "targets is empty; give one value or more of q, k"),
        ({"targets": ("q", "query")}, "targets 'query' is unknown; choose from q, k"),
        ({"targets": ("q", "q")}, "targets q,q holds q twice; give each once"),
    ],
)
def test_refuses_what_is_no_adapter(config, options, message):
    with pytest.raises(InputError, match=message):
        check_options(LoraOptions(**options))
    with pytest.raises(InputError, match=message):
        init_lora(jax.random.key(0), config, **({"rank": 3, "alpha": 6.0} | options))


@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.sampled_from([("q",), ("q", "v"), PROJECTIONS]), st.booleans())
def test_norms_are_those_of_the_products(seed, rank, targets, scaled):
    adapter = random_adapter(LoraOptions(rank=rank, alpha=3.0, targets=targets), CONFIG, seed)
    scale = dict.fromkeys(targets, adapter.scale)
    if scaled:
        scale = {name: jnp.linspace(0.0, 2.0, CONFIG.layers) * (index + 1) for index, name in enumerate(targets)}
        adapter = adapter.replace(scale=scale)
    squares = sum(
        np.linalg.norm(np.broadcast_to(scale[name], CONFIG.layers)[:, None, None] * np.asarray(part.a @ part.b), axis=(1, 2))
        ** 2
        for name, part in adapter.lora.items()
    )
    np.testing.assert_allclose(adapter_norms(adapter), np.sqrt(squares), rtol=1e-4)


def test_an_untrained_adapter_has_norm_zero(config):
    np.testing.assert_array_equal(adapter_norms(init_lora(jax.random.key(0), config, rank=4, alpha=8.0, targets=("q",))), 0)


def corrected(seed: int) -> Adapter:
    """An adapter on q and v with a dense correction of v and of down."""
    adapter = random_adapter(LoraOptions(rank=3, alpha=4.0, targets=("q", "v")), CONFIG, seed)
    rng = np.random.default_rng(seed)
    delta = {
        name: jnp.asarray(rng.normal(size=(CONFIG.layers, *CONFIG.projection_shape(name))), jnp.float32)
        for name in ("v", "down")
    }
    return adapter.replace(delta=delta)


def update(adapter: Adapter, name: str) -> np.ndarray:
    """What an adapter adds to a projection, [L, in, out]."""
    total = np.zeros((CONFIG.layers, *CONFIG.projection_shape(name)))
    if name in adapter.lora:
        total = total + float(adapter.scale) * np.asarray(adapter.lora[name].a @ adapter.lora[name].b, float)
    return total + np.asarray(adapter.delta.get(name, 0.0), float)


@pytest.mark.parametrize("seed", [0, 1])
def test_norms_count_dense_corrections(seed):
    adapter = corrected(seed)
    squares = sum(np.sum(update(adapter, name) ** 2, axis=(1, 2)) for name in ("q", "v", "down"))
    np.testing.assert_allclose(adapter_norms(adapter), np.sqrt(squares), rtol=1e-4)


def test_a_correction_becomes_factors_of_the_rank_it_needs():
    adapter = corrected(2)
    low = jnp.einsum("lir,lro->lio", adapter.lora["q"].a, adapter.lora["q"].b)
    adapter = adapter.replace(delta={**adapter.delta, "q": 0.5 * low})
    plain = as_low_rank(adapter)
    assert not plain.delta
    assert float(plain.scale) == 1.0
    for name in ("q", "v", "down"):
        np.testing.assert_allclose(update(plain, name), update(adapter, name), atol=1e-4)
    assert plain.lora["q"].a.shape[-1] == 3
    assert plain.lora["v"].a.shape[-1] == min(CONFIG.projection_shape("v"))
    assert as_low_rank(plain) is plain
