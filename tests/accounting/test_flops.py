"""Counted operations against the compiler's count, and against the paper's figure."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from devft_jax.accounting import training_flops
from devft_jax.models.llama import PROJECTIONS, Adapter, ModelConfig, init_base
from devft_jax.models.lora import init_lora
from devft_jax.models.loss import completion_loss

# XLA counts the body of a scan once, so only one layer can be compared.
ONE_LAYER = ModelConfig(vocabulary=1000, width=256, feed_forward=704, layers=1, heads=4, kv_heads=2, head_size=64)
LLAMA2_13B = ModelConfig(vocabulary=32000, width=5120, feed_forward=13824, layers=40, heads=40, kv_heads=40, head_size=128)


@pytest.mark.parametrize(
    ("targets", "rank", "rows", "length"),
    [(PROJECTIONS, 16, 2, 128), (("q", "v"), 8, 1, 512)],
)
def test_the_count_is_the_compilers(targets, rank, rows, length):
    def step(base, lora, tokens, mask):
        def loss(lora):
            adapter = Adapter(lora=lora, scale=jnp.float32(2.0))
            return completion_loss(ONE_LAYER, base, adapter, tokens, mask)

        return jax.value_and_grad(loss)(lora)

    key = jax.random.key(0)
    base = jax.eval_shape(lambda: init_base(key, ONE_LAYER))
    lora = jax.eval_shape(lambda: init_lora(key, ONE_LAYER, rank=rank, alpha=1.0, targets=targets)).lora
    shape = (rows, length)
    lowered = jax.jit(step).lower(base, lora, jax.ShapeDtypeStruct(shape, "int32"), jax.ShapeDtypeStruct(shape, "bool"))
    counted = training_flops(ONE_LAYER, layers=1, rank=rank, targets=targets, length=length)
    # The rest is norms, activations and softmax, which the count leaves out.
    assert lowered.cost_analysis()["flops"] == pytest.approx(counted * rows * length, rel=0.03)


def test_layers_add_and_the_head_is_counted_once():
    choices = {"rank": 8, "targets": ("q", "v"), "length": 64}
    one, two, five = (training_flops(ONE_LAYER, layers=layers, **choices) for layers in (1, 2, 5))
    assert five - one == 4 * (two - one)
    assert one - (two - one) == 4 * ONE_LAYER.width * ONE_LAYER.vocabulary


def test_a_low_rank_update_costs_three_products_and_a_frozen_weight_two():
    without = training_flops(ONE_LAYER, layers=1, rank=0, targets=(), length=0)
    weights = sum(fan_in * fan_out for fan_in, fan_out in map(ONE_LAYER.projection_shape, PROJECTIONS))
    assert without == 4 * (weights + ONE_LAYER.width * ONE_LAYER.vocabulary)
    adapted = training_flops(ONE_LAYER, layers=1, rank=8, targets=("k",), length=0)
    assert adapted - without == 6 * 8 * sum(ONE_LAYER.projection_shape("k"))


def test_a_step_of_llama2_13b_is_the_papers_415_tflops():
    # The paper gives 415.2 TFLOPs for one step of 16 x 512 tokens. That is four operations per token and weight of the
    # layers: forward and the gradient of the inputs, nothing for low rank, attention scores or the head.
    frozen = training_flops(LLAMA2_13B, layers=40, rank=0, targets=(), length=0)
    head = training_flops(dataclasses.replace(LLAMA2_13B), layers=0, rank=0, targets=(), length=0)
    assert (frozen - head) * 16 * 512 == pytest.approx(415.2e12, rel=0.002)
    assert frozen * 16 * 512 == pytest.approx(415.2e12, rel=0.02)
    # What is reported counts the rest too.
    whole = training_flops(LLAMA2_13B, layers=40, rank=32, targets=("q", "v"), length=512)
    assert 1.02 < whole / frozen < 1.06
