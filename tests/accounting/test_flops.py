"""Counted operations against the compiler's count, and against the paper's figure."""

import functools

import jax
import jax.numpy as jnp
import pytest

from devft_jax.accounting.flops import (
    Adaptation,
    evaluation_flops,
    forward_breakdown,
    prefix_flops,
    training_breakdown,
    training_flops,
)
from devft_jax.models.adapter import Adapter
from devft_jax.models.architecture import PROJECTIONS, ModelConfig
from devft_jax.models.base import init_base
from devft_jax.models.llama import Compute
from devft_jax.models.lora import init_lora
from devft_jax.models.loss import completion_loss, completion_statistics

# XLA counts the body of a scan once, so only one layer can be compared.
ONE_LAYER = ModelConfig(vocabulary=1000, width=256, feed_forward=704, layers=1, heads=4, kv_heads=2, head_size=64)
# The whole square of scores, and every token's logits at once: what the count counts.
COMPUTE = Compute(attention="xla", head_rows=4096)
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
            adapter = Adapter(lora=lora, scale=jnp.float32(2.0))
            return completion_loss(config, base, adapter, tokens, mask, compute=COMPUTE)

        return jax.value_and_grad(loss)(lora)

    return step


def adapted(config, layers, rank, targets, depth=None):
    """Low-rank factors of a rank on these projections in the last `depth` layers, all of which train."""
    depth = layers if depth is None else depth
    factors = depth * rank * sum(sum(config.projection_shape(name)) for name in targets)
    return {"layers": layers, "adaptation": Adaptation(depth, factors, factors)}


CASES = pytest.mark.parametrize(
    ("targets", "rank", "rows", "length"),
    [(PROJECTIONS, 16, 2, 128), (("q", "v"), 8, 1, 512)],
)


@CASES
def test_the_count_is_the_compilers(targets, rank, rows, length):
    lowered = jax.jit(training_step(ONE_LAYER)).lower(*shapes_of(ONE_LAYER, targets, rank, rows, length))
    counted = training_flops(ONE_LAYER, **adapted(ONE_LAYER, 1, rank, targets), length=length)
    # The rest is norms, activations and softmax, which the count leaves out.
    assert lowered.cost_analysis()["flops"] == pytest.approx(counted * rows * length, rel=0.03)


@CASES
def test_the_count_of_several_layers_is_the_compilers_where_they_are_unrolled(monkeypatch, targets, rank, rows, length):
    monkeypatch.setattr(jax.lax, "scan", functools.partial(jax.lax.scan, unroll=True))
    config = ONE_LAYER.with_layers(3)
    lowered = jax.jit(training_step(config)).lower(*shapes_of(config, targets, rank, rows, length))
    counted = training_flops(config, **adapted(config, 3, rank, targets), length=length)
    assert lowered.cost_analysis()["flops"] == pytest.approx(counted * rows * length, rel=0.03)


@CASES
def test_the_count_of_an_evaluation_is_the_compilers(targets, rank, rows, length):
    def score(base, lora, tokens, mask):
        adapter = Adapter(lora=lora, scale=jnp.float32(2.0))
        return completion_statistics(ONE_LAYER, base, adapter, tokens, mask, compute=COMPUTE)

    lowered = jax.jit(score).lower(*shapes_of(ONE_LAYER, targets, rank, rows, length))
    counted = evaluation_flops(ONE_LAYER, **adapted(ONE_LAYER, 1, rank, targets), length=length)
    assert lowered.cost_analysis()["flops"] == pytest.approx(counted * rows * length, rel=0.05)


def test_the_breakdown_adds_up_and_names_what_training_adds():
    choices = {**adapted(ONE_LAYER, 3, 8, ("q", "down")), "length": 64}
    forward, training = forward_breakdown(ONE_LAYER, **choices), training_breakdown(ONE_LAYER, **choices)
    assert sum(training.values()) == training_flops(ONE_LAYER, **choices)
    assert sum(forward.values()) == evaluation_flops(ONE_LAYER, **choices)
    ratios = {name: training[name] / forward[name] for name in forward}
    assert ratios == {"frozen": 2, "low_rank": 3, "attention": 3, "head": 2}


def test_layers_add_and_the_head_is_counted_once():
    one, two, five = (
        training_flops(ONE_LAYER, **adapted(ONE_LAYER, layers, 8, ("q", "v")), length=64) for layers in (1, 2, 5)
    )
    assert five - one == 4 * (two - one)
    assert one - (two - one) == 4 * ONE_LAYER.width * ONE_LAYER.vocabulary


def test_a_low_rank_update_costs_three_products_and_a_frozen_weight_two():
    without = training_flops(ONE_LAYER, **adapted(ONE_LAYER, 1, 0, ()), length=0)
    weights = sum(fan_in * fan_out for fan_in, fan_out in map(ONE_LAYER.projection_shape, PROJECTIONS))
    assert without == 4 * (weights + ONE_LAYER.width * ONE_LAYER.vocabulary)
    with_factors = training_flops(ONE_LAYER, **adapted(ONE_LAYER, 1, 8, ("k",)), length=0)
    assert with_factors - without == 6 * 8 * sum(ONE_LAYER.projection_shape("k"))


def test_a_step_of_llama2_13b_is_the_papers_415_tflops():
    # The paper gives 415.2 TFLOPs for one step of 16 x 512 tokens. That is four operations per token and weight of the
    # layers: forward and the gradient of the inputs, nothing for low rank, attention scores or the head.
    frozen = training_flops(LLAMA2_13B, **adapted(LLAMA2_13B, 40, 0, ()), length=0)
    head = training_flops(LLAMA2_13B, **adapted(LLAMA2_13B, 0, 0, ()), length=0)
    assert (frozen - head) * 16 * 512 == pytest.approx(415.2e12, rel=0.002)
    assert frozen * 16 * 512 == pytest.approx(415.2e12, rel=0.02)
    # What is reported counts the rest too.
    whole = training_flops(LLAMA2_13B, **adapted(LLAMA2_13B, 40, 32, ("q", "v")), length=512)
    assert 1.02 < whole / frozen < 1.06


def test_layers_below_the_adapter_are_only_run_forward(monkeypatch):
    monkeypatch.setattr(jax.lax, "scan", functools.partial(jax.lax.scan, unroll=True))
    config = ONE_LAYER.with_layers(3)
    base, lora, tokens, mask = shapes_of(config, ("q", "v"), 8, 1, 256)
    upper = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape[1:]), leaf.dtype), lora)
    lowered = jax.jit(training_step(config)).lower(base, upper, tokens, mask)
    counted = training_flops(config, **adapted(config, 3, 8, ("q", "v"), depth=1), length=256)
    assert lowered.cost_analysis()["flops"] == pytest.approx(counted * 256, rel=0.03)


def test_a_factor_that_does_not_train_costs_one_product_less():
    whole = Adaptation(1, 1000, 1000)
    half = Adaptation(1, 1000, 400)
    choices = {"layers": 1, "length": 8}
    difference = training_flops(ONE_LAYER, adaptation=whole, **choices) - training_flops(
        ONE_LAYER, adaptation=half, **choices
    )
    assert difference == 2 * 600


def test_frozen_layers_of_an_adapter_are_only_run_forward():
    top, whole = Adaptation(2, 2_000, 1_600), Adaptation(6, 6_000, 4_800)
    below = forward_breakdown(ONE_LAYER, layers=4, adaptation=Adaptation(4, 4_000, 0), length=8)
    learning = training_breakdown(ONE_LAYER, layers=2, adaptation=top, length=8)
    frozen = training_breakdown(ONE_LAYER, layers=6, adaptation=whole, frozen=4, length=8)
    for name in ("frozen", "attention", "low_rank"):
        assert frozen[name] == learning[name] + below[name]
    assert frozen["head"] == learning["head"]


def test_stored_hidden_states_save_the_forward_pass_below_them():
    adaptation = Adaptation(depth=2, factors=10, trained=10)
    whole, above = (training_flops(ONE_LAYER, layers=layers, adaptation=adaptation, length=8) for layers in (6, 2))
    assert whole - above == prefix_flops(ONE_LAYER, layers=4, length=8) > 0
