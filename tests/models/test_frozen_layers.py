"""The scan in two parts: the same gradients, no backward pass below the cut, no copy of the weights."""

import dataclasses
import functools

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest

from devft_jax.models.llama import REMAT_POLICIES, Compute
from devft_jax.models.loss import completion_loss
from devft_jax.models.quantization import base_shapes, quantize_base
from tests.models.conftest import CONFIG, random_adapter, random_base

DEPTH = 5
DEEP = dataclasses.replace(CONFIG, layers=DEPTH, head_size=8)


@pytest.fixture(scope="module")
def parts():
    tokens = jnp.asarray(np.random.default_rng(0).integers(1, DEEP.vocabulary, (3, 9)), jnp.int32)
    mask = jnp.arange(9) >= jnp.array([[2], [4], [5]])
    return random_base(DEEP), random_adapter(DEEP), tokens, mask


def losses(config, compute, base, adapter, tokens, mask, key=None):
    def loss(lora):
        return completion_loss(config, base, adapter.replace(lora=lora), tokens, mask, compute=compute, key=key)

    return jax.value_and_grad(loss)(adapter.lora)


CASES = [(remat, cut) for remat in REMAT_POLICIES for cut in (1, 3, DEPTH - 1)]


@pytest.mark.parametrize(
    ("remat", "cut"),
    [case if case in (("none", 1), ("full", 3)) else pytest.param(*case, marks=pytest.mark.slow) for case in CASES],
)
def test_gradients_above_the_cut_are_those_of_the_whole_and_none_lie_below(parts, remat, cut):
    base, adapter, tokens, mask = parts
    adapter = adapter.replace(dropout=0.3)
    run = jax.jit(losses, static_argnums=(0, 1))
    key = jax.random.key(3)
    plain, whole = run(DEEP, Compute(remat=remat), base, adapter, tokens, mask, key)
    split, above = run(DEEP, Compute(remat=remat, frozen_layers=cut), base, adapter, tokens, mask, key)
    np.testing.assert_allclose(split, plain, rtol=1e-6)
    for left, right in zip(jax.tree.leaves(above), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(left[cut:], right[cut:], rtol=2e-4, atol=1e-6)
        assert not left[:cut].any()
        assert right[:cut].any()


def test_packed_weights_are_read_alike(parts):
    base, adapter, tokens, mask = parts
    packed = quantize_base(base, "int8")
    plain, whole = losses(DEEP, Compute(), packed, adapter, tokens, mask)
    split, above = losses(DEEP, Compute(frozen_layers=2), packed, adapter, tokens, mask)
    np.testing.assert_allclose(split, plain, rtol=1e-6)
    for left, right in zip(jax.tree.leaves(above), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(left[2:], right[2:], rtol=2e-4, atol=1e-6)


def products(jaxpr) -> int:
    """Matrix products of a program, those in a scan as often as it runs them."""
    count = 0
    for equation in jaxpr.eqns:
        times = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        count += equation.primitive.name == "dot_general"
        count += times * sum(products(inner) for inner in jax.extend.core.jaxprs_in_params(equation.params))
    return count


def test_the_backward_pass_ends_at_the_cut(parts):
    base, adapter, tokens, mask = parts

    def counted(cut, function):
        run = functools.partial(function, DEEP, Compute(frozen_layers=cut))
        return products(jax.make_jaxpr(run)(base, adapter, tokens, mask).jaxpr)

    def forward(config, compute, base, adapter, tokens, mask):
        return completion_loss(config, base, adapter, tokens, mask, compute=compute)

    whole, ahead = counted(0, losses), counted(0, forward)
    assert ahead == counted(2, forward)
    backward_of_a_layer, rest = divmod(whole - ahead, DEPTH)
    assert rest < backward_of_a_layer
    for cut in (1, 3):
        assert counted(cut, losses) == whole - cut * backward_of_a_layer


@pytest.mark.parametrize("remat", REMAT_POLICIES)
def test_the_weights_are_not_copied(remat):
    wide = dataclasses.replace(DEEP, width=256, feed_forward=640, heads=4, kv_heads=2, head_size=64, layers=8)
    base = base_shapes(wide, dtype="float32")
    adapter = jax.eval_shape(lambda: random_adapter(wide))
    layer = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(base.blocks)) / wide.layers
    shapes = [jax.ShapeDtypeStruct((1, 4), kind) for kind in ("int32", "bool")]
    used = []
    for cut in (1, 5):
        run = jax.jit(losses, static_argnums=(0, 1))
        compiled = run.lower(wide, Compute(remat=remat, frozen_layers=cut), base, adapter, *shapes).compile()
        used.append(compiled.memory_analysis().temp_size_in_bytes)
    # A few layers may be in work at once; a copy would hold the seven or three above the cut.
    assert used[0] - used[1] < layer
    assert used[0] < 3 * layer
