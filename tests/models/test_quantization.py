"""Packed weights: error bounds, packing, qwix as the oracle, and that training through them is exact."""

import dataclasses
import re
import subprocess
import sys
import textwrap

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devft_jax.developmental import LayerMap, fuse, fusion_matrix, layer_similarity
from devft_jax.errors import InputError
from devft_jax.models.architecture import PROJECTIONS, ModelConfig
from devft_jax.models.base import init_base, parameter_count
from devft_jax.models.huggingface.reading import load_pretrained
from devft_jax.models.huggingface.writing import save_pretrained
from devft_jax.models.llama import Compute, forward
from devft_jax.models.loss import completion_loss
from devft_jax.models.options import BITS, QuantizationOptions, validate_quantization
from devft_jax.models.quantization import (
    NF4_VALUES,
    QTensor,
    block_size,
    is_quantized,
    quantize,
    quantize_base,
    quantize_projection,
)
from devft_jax.models.weights import dense_weight
from tests.models.conftest import CONFIG, random_adapter, random_base

# One bucket reaches half the distance to the next value; of NF4's the widest lies between -1 and -0.696.
HALF_BUCKET = {"int8": 0.5, "int4": 0.5, "nf4": float(np.diff(NF4_VALUES).max() / 2)}
BOUND = {"int8": 127.5, "int4": 7.5, "nf4": 1.0}

# Wide enough that blocks of 64, 32 and 4 inputs occur.
WIDE = ModelConfig(vocabulary=37, width=128, feed_forward=96, layers=3, heads=5, kv_heads=5, head_size=4)


def gaussian(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def dequantized(base):
    blocks = {name: dense_weight(getattr(base.blocks, name), jnp.float32) for name in PROJECTIONS}
    return base.replace(blocks=base.blocks.replace(**blocks))


@pytest.mark.parametrize("kind", BITS)
@settings(max_examples=30)
@given(
    # Few shapes: each is compiled anew.
    fan_in=st.sampled_from([6, 96, 192]),
    fan_out=st.sampled_from([1, 4]),
    scale=st.floats(1e-3, 1e3),
    seed=st.integers(0, 2**16),
)
def test_the_error_is_at_most_half_a_bucket(kind, fan_in, fan_out, scale, seed):
    weight = scale * gaussian(2, fan_in, fan_out, seed=seed)
    packed = quantize_projection("q", weight, kind)
    assert packed.shape == weight.shape
    size = block_size(fan_in)
    largest = np.abs(weight).reshape(2, fan_in // size, size, fan_out).max(axis=2, keepdims=True)
    # Storing the scale in float16 moves it by up to 2^-11 of itself, or half of its smallest step.
    moved = largest * 2.0**-11 + BOUND[kind] * 2.0**-25
    allowed = np.broadcast_to(HALF_BUCKET[kind] / BOUND[kind] * largest + moved, (2, fan_in // size, size, fan_out))
    error = np.abs(np.asarray(packed.dequantize(jnp.float32)) - weight)
    assert (error <= 1.001 * allowed.reshape(weight.shape)).all()


@pytest.mark.parametrize("kind", BITS)
def test_quantising_what_was_expanded_costs_nothing_more(kind):
    """NF4 holds its largest value exactly, so packing again is the identity; integers keep codes but may move the scale."""
    once = quantize(jnp.asarray(gaussian(128, 8)), kind)
    again = quantize(once.dequantize(jnp.float32), kind)
    if kind == "nf4":
        chex.assert_trees_all_equal(again, once)
    else:
        step = np.asarray(once.scale, np.float32).max()
        np.testing.assert_allclose(again.dequantize(jnp.float32), once.dequantize(jnp.float32), atol=1.1 * step)


@pytest.mark.parametrize(("kind", "bits"), [("int8", 8.25), ("int4", 4.25), ("nf4", 4.25)])
def test_a_weight_takes_its_bits(kind, bits):
    packed = quantize(jnp.asarray(gaussian(3, 256, 40)), kind)
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(packed)) == 3 * 256 * 40 * bits / 8


@pytest.mark.parametrize(("fan_in", "size"), [(64, 64), (4096, 64), (11008, 64), (96, 32), (20, 4), (6, 2), (7, 1)])
def test_blocks_are_64_inputs_or_the_largest_power_of_two_that_divides(fan_in, size):
    assert block_size(fan_in) == size


def test_a_block_shares_inputs_of_one_output_only():
    """A large weight costs precision in its own block and nowhere else."""
    weight = 0.01 * gaussian(192, 3)
    spoiled = weight.copy()
    spoiled[70, 1] = 100.0
    before, after = (np.asarray(quantize(jnp.asarray(w), "nf4").dequantize(jnp.float32)) for w in (weight, spoiled))
    same = before == after
    assert same[:, [0, 2]].all()
    assert same[:64].all()
    assert same[128:].all()
    assert (after[64:128, 1] == 0).sum() > 40


@pytest.mark.parametrize("kind", BITS)
def test_zero_stays_zero(kind):
    np.testing.assert_array_equal(quantize(jnp.zeros((64, 3)), kind).dequantize(jnp.float32), 0)
    tiny = quantize(jnp.full((64, 3), 1e-20), kind).dequantize(jnp.float32)
    np.testing.assert_allclose(tiny, 0, atol=1e-7)


@pytest.mark.parametrize("kind", BITS)
def test_codes_agree_with_qwix(kind):
    """With block maxima whose scale float16 holds exactly, values equal qwix's up to its rounding of that scale.

    The maxima themselves lie on the border of a bucket, where that rounding decides: they may differ by one code.
    """
    qwix = pytest.importorskip("qwix", reason="qwix is the oracle: pip install 'devft-jax[dev]'")
    weight = gaussian(4, 3, 64, 10)
    weight *= BOUND[kind] / np.abs(weight).max(axis=2, keepdims=True)
    weight = jnp.asarray(weight.reshape(4, 192, 10))
    qtype = {"int8": jnp.int8, "int4": jnp.int4, "nf4": "nf4"}[kind]
    theirs = qwix.dequantize(qwix.quantize(weight, qtype=qtype, channelwise_axes=[0, 2], tiled_axes={1: 64}))
    ours = quantize(weight, kind).dequantize(jnp.float32)
    border = jnp.abs(weight) > 0.9999 * BOUND[kind]
    assert 0 < border.sum() < 0.05 * weight.size
    np.testing.assert_allclose(jnp.where(border, 0, ours), jnp.where(border, 0, theirs), rtol=1e-6)
    np.testing.assert_allclose(ours, theirs, atol=1.001)


@pytest.mark.parametrize("kind", BITS)
def test_the_error_on_gaussian_weights_is_qwixs(kind):
    qwix = pytest.importorskip("qwix", reason="qwix is the oracle: pip install 'devft-jax[dev]'")
    weight = jnp.asarray(0.02 * gaussian(512, 256))
    qtype = {"int8": jnp.int8, "int4": jnp.int4, "nf4": "nf4"}[kind]
    theirs = qwix.dequantize(qwix.quantize(weight, qtype=qtype, channelwise_axes=[1], tiled_axes={0: 64}))
    ours = quantize(weight, kind).dequantize(jnp.float32)
    errors = [float(jnp.linalg.norm(values - weight) / jnp.linalg.norm(weight)) for values in (ours, theirs)]
    np.testing.assert_allclose(errors[0], errors[1], rtol=0.01)


@pytest.mark.parametrize("kind", BITS)
@pytest.mark.parametrize("remat", ["none", "full"])
def test_gradients_equal_those_through_the_expanded_base_exactly(kind, remat):
    base = quantize_base(random_base(WIDE), kind)
    adapter = random_adapter(WIDE)
    tokens = jax.random.randint(jax.random.key(5), (2, 9), 0, WIDE.vocabulary)
    mask = jnp.ones(tokens.shape, bool)

    def loss(lora, base):
        return completion_loss(WIDE, base, adapter.replace(lora=lora), tokens, mask, compute=Compute(remat=remat))

    gradient = jax.jit(jax.value_and_grad(loss))
    packed, expanded = gradient(adapter.lora, base), gradient(adapter.lora, dequantized(base))
    assert float(packed[0]) == float(expanded[0])
    chex.assert_trees_all_equal(packed[1], expanded[1])
    assert all(jnp.abs(leaf).max() > 0 for leaf in jax.tree.leaves(packed[1]))


@pytest.mark.parametrize("kind", BITS)
def test_a_packed_base_stays_near_the_float_one(kind, tokens):
    base = init_base(jax.random.key(0), WIDE)
    plain = forward(WIDE, base, None, tokens)
    packed = forward(WIDE, quantize_base(base, kind), None, tokens)
    error = jnp.linalg.norm(packed - plain) / jnp.linalg.norm(plain)
    assert 0 < error < (0.02 if kind == "int8" else 0.2)


def test_clients_share_the_packed_base_and_backward_expands_it_again():
    """Under a vmap over clients no weight is expanded once a client, and no stack of expanded layers is kept."""
    config = dataclasses.replace(WIDE, layers=6)
    base = quantize_base(random_base(config), "nf4")
    adapter = random_adapter(config, ("q", "v"))
    tokens = jnp.zeros((5, 2, 8), jnp.int32)
    mask = jnp.ones(tokens.shape, bool)

    def loss(lora, tokens, mask, base):
        return completion_loss(config, base, adapter.replace(lora=lora), tokens, mask)

    gradient = jax.jit(jax.vmap(jax.grad(loss), in_axes=(None, 0, 0, None)))
    text = gradient.lower(adapter.lora, tokens, mask, base).compile().as_text()
    assert "f32[128,96]" in text
    assert not re.search(r"f32\[5,(128,96|96,128|128,20)\]", text)
    assert not re.search(r"f32\[6,(128,96|96,128|128,20)\]", text)


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
@pytest.mark.parametrize("kind", BITS)
def test_training_through_packed_weights_lowers_for_accelerators(kind, platform):
    base = quantize_base(random_base(WIDE), kind)
    adapter = random_adapter(WIDE, ("q", "v"))
    tokens = jnp.zeros((3, 2, 8), jnp.int32)

    def loss(lora, tokens, base):
        compute = Compute(dtype="bfloat16", remat="full")
        mask = jnp.ones(tokens.shape, bool)
        return completion_loss(WIDE, base, adapter.replace(lora=lora), tokens, mask, compute=compute)

    gradient = jax.jit(jax.vmap(jax.grad(loss), in_axes=(None, 0, None)))
    assert jax.export.export(gradient, platforms=[platform])(adapter.lora, tokens, base).platforms == (platform,)
    packed = jax.export.export(jax.jit(quantize, static_argnums=1), platforms=[platform])(jnp.ones((64, 8)), kind)
    assert packed.platforms == (platform,)


@pytest.mark.parametrize("kind", BITS)
def test_layers_are_compared_and_fused_as_their_expanded_weights(kind):
    blocks = quantize_base(random_base(WIDE), kind).blocks
    expanded = dequantized(quantize_base(random_base(WIDE), kind)).blocks
    np.testing.assert_allclose(layer_similarity(blocks), layer_similarity(expanded), atol=1e-6)
    assign = jnp.array([0, 1, 0])
    halves = LayerMap(fusion_matrix(assign, beta=0.3), assign)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), fuse(halves, blocks), fuse(halves, expanded))
    prefix = LayerMap(jnp.eye(2, 3), jnp.array([0, 1, -1]))
    picked = fuse(prefix, blocks)
    assert isinstance(picked.q, QTensor)
    np.testing.assert_array_equal(picked.q.code, blocks.q.code[:2])


@pytest.mark.parametrize("kind", BITS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loading_packed_equals_packing_what_was_loaded(tmp_path, kind, dtype):
    base = random_base(WIDE)
    save_pretrained(tmp_path, WIDE, base, dtype="bfloat16")
    plain = load_pretrained(tmp_path, dtype=dtype)
    packed = load_pretrained(tmp_path, quantization=kind, dtype=dtype)
    assert is_quantized(packed.base)
    assert not is_quantized(plain.base)
    chex.assert_trees_all_equal(packed.base, quantize_base(plain.base, kind))
    assert packed.base.embed.dtype == dtype
    assert parameter_count(packed.base) == parameter_count(plain.base)


def test_packing_twice_changes_nothing():
    base = quantize_base(random_base(WIDE), "nf4")
    assert quantize_base(base, "int8").blocks.q is base.blocks.q


def test_loading_needs_the_packed_model_and_one_tensor(tmp_path):
    """Peak memory in a process of its own, against one that packs one tensor; floats would be 7 times the packed."""
    config = ModelConfig(vocabulary=64, width=512, feed_forward=2048, layers=24, heads=8, kv_heads=8, head_size=64)
    shapes = {name: (config.layers, *config.projection_shape(name)) for name in PROJECTIONS}
    base = random_base(dataclasses.replace(config, layers=1))
    # The same layer many times: what counts is how much there is.
    blocks = jax.tree.map(lambda leaf: np.broadcast_to(np.asarray(leaf), (config.layers, *leaf.shape[1:])), base.blocks)
    save_pretrained(tmp_path, config, base.replace(blocks=blocks), dtype="bfloat16")
    weights = sum(int(np.prod(shape)) for shape in shapes.values())
    program = textwrap.dedent(
        f"""
        import resource, sys
        import numpy as np
        from devft_jax.models.huggingface.reading import load_pretrained
        from devft_jax.models.quantization import quantize_projection
        for shape in {[config.projection_shape(name) for name in PROJECTIONS]}:
            quantize_projection("q", np.ones(shape[::-1], "float32").T.astype("bfloat16"), "nf4")
        peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        before = peak()
        model = load_pretrained(sys.argv[1], quantization="nf4")
        print(peak() - before)
        """
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    packed, tensor = weights * 4.25 / 8, 512 * 2048 * 4
    # The file is memory-mapped, and pages of it that were read count as resident until they are wanted elsewhere.
    mapped = (tmp_path / "model.safetensors").stat().st_size
    assert int(done.stdout) < packed + mapped + 4 * tensor + 2**24
    assert packed + mapped + 4 * tensor + 2**24 < weights * 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantization": "int3"}, "quantization 'int3' is unknown; choose from none, int8, int4, nf4"),
        ({"quantization": "nf4", "fused_precision": "half"}, "fused_precision 'half' is unknown; choose from packed, float"),
        ({"quantization": "nf4", "fuse_from": "disk"}, "fuse_from 'disk' is unknown; choose from packed, original"),
        ({"fuse_from": "original"}, "fuse_from 'original' needs a quantised base and quantization is none; name one, or"),
    ],
)
def test_refuses_unknown_choices(options, message):
    with pytest.raises(InputError, match=message):
        validate_quantization(QuantizationOptions(**options))


def test_refuses_what_cannot_be_packed():
    with pytest.raises(
        InputError, match=r"v: quantization 'nf4' packs pairs of inputs and a weight has 7; use int8 or none"
    ):
        quantize_projection("v", np.ones((7, 4), np.float32), "nf4")
    for bad in (np.nan, np.inf, 1e9):
        weight = np.ones((8, 4), np.float32)
        weight[3, 2] = bad
        with pytest.raises(InputError, match="v has a value that is not finite or too large for quantization 'nf4'"):
            quantize_projection("v", weight, "nf4")
    with pytest.raises(ValueError, match="quantization 'int2' is unknown"):
        quantize(jnp.ones((8, 4)), "int2")


def test_a_config_that_only_int8_can_pack(tokens):
    config = dataclasses.replace(CONFIG, feed_forward=21)
    base = random_base(config)
    assert jnp.isfinite(forward(config, quantize_base(base, "int8"), None, tokens)).all()
    with pytest.raises(InputError, match="down: quantization 'int4' packs pairs"):
        quantize_base(base, "int4")
