"""Counted operations against the compiler's count, and against the paper's figure."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest

from devft_jax.accounting import evaluation_flops, forward_breakdown, training_breakdown, training_flops
from devft_jax.models.llama import PROJECTIONS, Adapter, ModelConfig, init_base
from devft_jax.models.lora import init_lora
from devft_jax.models.loss import completion_loss, completion_statistics

# XLA counts the body of a scan once, so only one layer can be compared.
ONE_LAYER = ModelConfig(vocabulary=1000, width=256, feed_forward=704, layers=1, heads=4, kv_heads=2, head_size=64)
LLAMA2_13B = ModelConfig(vocabulary=32000, width=5120, feed_forward=13824, layers=40, heads=40, kv_heads=40, head_size=128)


def shapes_of(config, targets, rank, rows, length):
    """Base, factors, tokens and mask of one step."""
    key = jax.random.key(0)
    base = jax.eval_shape(lambda: init_base(key, config))
    lora = jax.eval_shape(lambda: init_lora(key, config, rank=rank, alpha=1.0, targets=targets)).lora
    return base, lora, jax.ShapeDtypeStruct((rows, length), "int32"), jax.ShapeDtypeStruct((rows, length), "bool")


def training_step(config):
    def step(base, lora, tokens, mask):
        def loss(lora):
            return completion_loss(config, base, Adapter(lora=lora, scale=jnp.float32(2.0)), tokens, mask)

        return jax.value_and_grad(loss)(lora)

    return step


CASES = pytest.mark.parametrize(
    ("targets", "rank", "rows", "length"),
    [(PROJECTIONS, 16, 2, 128), (("q", "v"), 8, 1, 512)],
)


@CASES
def test_the_count_is_the_compilers(targets, rank, rows, length):
    lowered = jax.jit(training_step(ONE_LAYER)).lower(*shapes_of(ONE_LAYER, targets, rank, rows, length))
    counted = training_flops(ONE_LAYER, layers=1, rank=rank, targets=targets, length=length)
    # The rest is norms, activations and softmax, which the count leaves out.
    assert lowered.cost_analysis()["flops"] == pytest.approx(counted * rows * length, rel=0.03)


@CASES
def test_the_count_of_several_layers_is_the_compilers_where_they_are_unrolled(monkeypatch, targets, rank, rows, length):
    monkeypatch.setattr(jax.lax, "scan", functools.partial(jax.lax.scan, unroll=True))
    config = ONE_LAYER.with_layers(3)
    lowered = jax.jit(training_step(config)).lower(*shapes_of(config, targets, rank, rows, length))
    counted = training_flops(config, layers=3, rank=rank, targets=targets, length=length)
    assert lowered.cost_analysis()["flops"] == pytest.approx(counted * rows * length, rel=0.03)


@CASES
def test_the_count_of_an_evaluation_is_the_compilers(targets, rank, rows, length):
    def score(base, lora, tokens, mask):
        return completion_statistics(ONE_LAYER, base, Adapter(lora=lora, scale=jnp.float32(2.0)), tokens, mask)

    lowered = jax.jit(score).lower(*shapes_of(ONE_LAYER, targets, rank, rows, length))
    counted = evaluation_flops(ONE_LAYER, layers=1, rank=rank, targets=targets, length=length)
    assert lowered.cost_analysis()["flops"] == pytest.approx(counted * rows * length, rel=0.05)


def test_the_breakdown_adds_up_and_names_what_training_adds():
    choices = {"layers": 3, "rank": 8, "targets": ("q", "down"), "length": 64}
    forward, training = forward_breakdown(ONE_LAYER, **choices), training_breakdown(ONE_LAYER, **choices)
    assert sum(training.values()) == training_flops(ONE_LAYER, **choices)
    assert sum(forward.values()) == evaluation_flops(ONE_LAYER, **choices)
    ratios = {name: training[name] / forward[name] for name in forward}
    assert ratios == {"frozen": 2, "low_rank": 3, "attention": 3, "head": 2}


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


def test_layers_below_the_lowest_that_learns_have_a_forward_pass_alone():
    shape = {"rank": 4, "targets": ("q", "v"), "length": 8}
    whole = training_breakdown(LLAMA2_13B, layers=6, **shape)
    forward = forward_breakdown(LLAMA2_13B, layers=4, **shape)
    top = training_breakdown(LLAMA2_13B, layers=2, **shape)
    frozen = training_breakdown(LLAMA2_13B, layers=6, frozen=4, **shape)
    bare = training_breakdown(LLAMA2_13B, layers=2, bare=4, **shape)
    for name in ("frozen", "attention", "low_rank"):
        assert frozen[name] == top[name] + forward[name] < whole[name]
    assert (bare["frozen"], bare["attention"]) == (frozen["frozen"], frozen["attention"])
    assert bare["low_rank"] == top["low_rank"]
    assert {frozen["head"], bare["head"]} == {whole["head"]}
    assert training_flops(LLAMA2_13B, layers=6, frozen=4, **shape) == sum(frozen.values())
