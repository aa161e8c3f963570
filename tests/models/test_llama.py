"""The forward pass by its properties, and against a reference that loops over layers, heads and positions in numpy."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from hypothesis import given, settings
from hypothesis import strategies as st

from devft_jax.models import llama
from devft_jax.models.adapter import Adapter
from devft_jax.models.architecture import PROJECTIONS, RopeScaling
from devft_jax.models.base import init_base
from devft_jax.models.decoder import rms_norm, rotary_frequencies, rotary_table, rotate
from devft_jax.models.llama import REMAT_POLICIES, Compute, hidden_states
from devft_jax.models.lora import init_lora
from devft_jax.models.weights import dense_weight
from tests.models.conftest import CONFIG, random_adapter, random_base

forward = jax.jit(llama.forward, static_argnums=0, static_argnames="compute")


def reference_forward(config, base, tokens):
    """Logits in float64, one layer, one head and one position at a time."""
    base = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), base)
    blocks, half = base.blocks, config.head_size // 2
    turn = config.rope_theta ** (-np.arange(half) / half)

    def norm(x, weight):
        return x / np.sqrt(np.mean(x * x) + config.norm_epsilon) * weight

    def turned(vector, position):
        pairs = vector[:half] + 1j * vector[half:]
        pairs = pairs * np.exp(1j * position * turn)
        return np.concatenate([pairs.real, pairs.imag])

    def head_slice(vector, head):
        return vector[head * config.head_size : (head + 1) * config.head_size]

    logits = []
    for sequence in np.asarray(tokens):
        xs = [base.embed[token] for token in sequence]
        for layer in range(config.layers):
            weights = {name: getattr(blocks, name)[layer] for name in PROJECTIONS}
            normed = [norm(x, blocks.norm_attention[layer]) for x in xs]
            mixed = []
            for position, query_input in enumerate(normed):
                heads = []
                for head in range(config.heads):
                    kv_head = head // (config.heads // config.kv_heads)
                    query = turned(head_slice(query_input @ weights["q"], head), position)
                    seen = normed[: position + 1]
                    keys = [turned(head_slice(x @ weights["k"], kv_head), p) for p, x in enumerate(seen)]
                    values = [head_slice(x @ weights["v"], kv_head) for x in seen]
                    scores = np.exp([query @ key / np.sqrt(config.head_size) for key in keys])
                    heads.append((scores / scores.sum()) @ np.array(values))
                mixed.append(np.concatenate(heads) @ weights["o"])
            xs = [x + update for x, update in zip(xs, mixed, strict=True)]
            for position, x in enumerate(xs):
                inputs = norm(x, blocks.norm_mlp[layer])
                gate = inputs @ weights["gate"]
                hidden = gate / (1 + np.exp(-gate)) * (inputs @ weights["up"])
                xs[position] = x + hidden @ weights["down"]
        head = base.embed.T if base.head is None else base.head
        logits.append([norm(x, base.norm) @ head for x in xs])
    return np.array(logits)


@pytest.mark.parametrize("tied_head", [False, True])
def test_the_scan_equals_a_plain_loop_over_layers_heads_and_positions(tokens, tied_head):
    config = dataclasses.replace(CONFIG, tied_head=tied_head)
    base = random_base(config)
    assert (base.head is None) == tied_head
    logits = forward(config, base, None, tokens)
    chex.assert_shape(logits, (2, 7, config.vocabulary))
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, reference_forward(config, base, tokens), atol=2e-5)


@settings(max_examples=20)
@given(st.sampled_from((1, 4, 7)), st.integers(0, 36))
def test_right_padding_and_sequence_length_do_not_change_real_tokens(real, filler):
    base, adapter = random_base(CONFIG), random_adapter(CONFIG)
    tokens = jax.random.randint(jax.random.key(real), (2, real), 0, CONFIG.vocabulary)
    padded = jnp.pad(tokens, ((0, 0), (0, 8 - real)), constant_values=filler)
    short = forward(CONFIG, base, adapter, tokens)
    long = forward(CONFIG, base, adapter, padded)
    np.testing.assert_allclose(long[:, :real], short, atol=1e-5)


def test_remat_policies_agree_in_values_and_gradients(config, base, tokens):
    adapter = random_adapter(config, ("q", "down"))

    def loss(lora, remat):
        logits = llama.forward(config, base, adapter.replace(lora=lora), tokens, compute=Compute(remat=remat))
        return jnp.mean(jnp.square(logits))

    value_and_gradient = jax.jit(jax.value_and_grad(loss), static_argnums=1)
    expected = value_and_gradient(adapter.lora, "none")
    for remat in sorted(set(REMAT_POLICIES) - {"none"}):
        chex.assert_trees_all_close(value_and_gradient(adapter.lora, remat), expected, rtol=1e-4, atol=1e-6)


def test_remat_recomputes(config, base, adapter, tokens):
    def loss(lora, remat):
        return jnp.sum(forward(config, base, adapter.replace(lora=lora), tokens, compute=Compute(remat=remat)))

    programs = {
        remat: str(jax.make_jaxpr(jax.grad(loss), static_argnums=1)(adapter.lora, remat)) for remat in REMAT_POLICIES
    }
    products = {remat: program.count("dot_general") for remat, program in programs.items()}
    assert products["none"] < products["dots"] < products["full"]


def test_a_fresh_adapter_leaves_the_base_unchanged(config, base, tokens):
    fresh = init_lora(jax.random.key(0), config, rank=3, alpha=6.0, targets=PROJECTIONS)
    np.testing.assert_array_equal(forward(config, base, fresh, tokens), forward(config, base, None, tokens))


def test_merged_weights_give_the_same_logits(config, base, adapter, tokens):
    merged = base.blocks.replace(
        **{
            name: getattr(base.blocks, name) + adapter.scale * jnp.einsum("lir,lro->lio", factors.a, factors.b)
            for name, factors in adapter.lora.items()
        }
    )
    with_adapter = forward(config, base, adapter, tokens)
    np.testing.assert_allclose(forward(config, base.replace(blocks=merged), None, tokens), with_adapter, atol=3e-5)
    assert jnp.max(jnp.abs(with_adapter - forward(config, base, None, tokens))) > 0.1


def test_every_factor_of_every_projection_and_layer_learns(config, base, adapter, tokens):
    def loss(lora):
        return jnp.mean(jnp.square(forward(config, base, adapter.replace(lora=lora), tokens)))

    gradients = jax.jit(jax.grad(loss))(adapter.lora)
    assert set(gradients) == set(PROJECTIONS)
    for leaf in jax.tree.leaves(gradients):
        assert jnp.all(jnp.max(jnp.abs(leaf), axis=(1, 2)) > 1e-6)


def test_grouped_queries_equal_repeated_key_and_value_heads(config, base, tokens):
    def repeated(weight):
        grouped = weight.reshape(config.layers, config.width, config.kv_heads, config.head_size)
        groups = config.heads // config.kv_heads
        return jnp.repeat(grouped, groups, axis=2).reshape(config.layers, config.width, -1)

    blocks = base.blocks.replace(k=repeated(base.blocks.k), v=repeated(base.blocks.v))
    full = dataclasses.replace(config, kv_heads=config.heads)
    np.testing.assert_allclose(
        forward(full, base.replace(blocks=blocks), None, tokens), forward(config, base, None, tokens), atol=1e-5
    )


def test_depth_is_that_of_the_leaves(config, base, adapter, tokens):
    def first(tree):
        return jax.tree.map(lambda leaf: leaf[:2], tree)

    shallow = base.replace(blocks=first(base.blocks))
    expected = forward(config.with_layers(2), shallow, adapter.replace(lora=first(adapter.lora)), tokens)
    np.testing.assert_array_equal(forward(config, shallow, adapter.replace(lora=first(adapter.lora)), tokens), expected)
    with pytest.raises(ValueError, match="the adapter has 3 layers and the base 2"):
        forward(config, shallow, adapter, tokens)


@pytest.mark.parametrize("remat", ["none", "full"])
def test_an_adapter_of_the_last_layers_is_a_full_one_whose_lower_layers_do_nothing(config, base, adapter, tokens, remat):
    bare = 2
    upper = adapter.replace(lora=jax.tree.map(lambda leaf: leaf[bare:], adapter.lora))
    padded = adapter.replace(
        lora={name: factors.replace(b=factors.b.at[:bare].set(0)) for name, factors in adapter.lora.items()}
    )
    compute = Compute(remat=remat)

    def loss(adapter):
        logits = forward(config, base, adapter, tokens, compute=compute)
        return jnp.mean(jax.nn.log_softmax(logits)[..., 0])

    np.testing.assert_allclose(loss(upper), loss(padded), rtol=1e-6)
    gradient, full = jax.grad(loss)(upper), jax.grad(loss)(padded)
    for part, whole in zip(jax.tree.leaves(gradient.lora), jax.tree.leaves(full.lora), strict=True):
        np.testing.assert_allclose(part, whole[bare:], atol=1e-6)


def test_a_dense_correction_is_added_to_the_frozen_weight(config, base, adapter, tokens):
    shape = (config.layers, *config.projection_shape("v"))
    delta = {"v": 0.1 * jax.random.normal(jax.random.key(5), shape)}
    changed = base.replace(blocks=base.blocks.replace(v=base.blocks.v + delta["v"]))
    np.testing.assert_allclose(
        forward(config, base, adapter.replace(delta=delta), tokens), forward(config, changed, adapter, tokens), atol=1e-4
    )
    upper = Adapter(lora={}, scale=jnp.float32(1.0), delta={"v": delta["v"][2:]})
    above = base.replace(blocks=base.blocks.replace(v=base.blocks.v.at[2:].add(delta["v"][2:])))
    np.testing.assert_allclose(forward(config, base, upper, tokens), forward(config, above, None, tokens), atol=1e-5)


def test_dropout_needs_a_key_and_follows_it(config, base, adapter, tokens):
    dropping = adapter.replace(dropout=0.5)
    plain = forward(config, base, adapter, tokens)
    np.testing.assert_array_equal(forward(config, base, dropping, tokens), plain)
    np.testing.assert_array_equal(forward(config, base, adapter, tokens, key=jax.random.key(0)), plain)
    once, again, other = (forward(config, base, dropping, tokens, key=jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(once, again)
    assert jnp.max(jnp.abs(once - other)) > 1e-2
    assert jnp.max(jnp.abs(once - plain)) > 1e-2


def test_padding_does_not_change_the_dropout_of_real_tokens(config, base, adapter, tokens):
    dropping, key = adapter.replace(dropout=0.5), jax.random.key(0)
    padded = jnp.pad(tokens, ((0, 0), (0, 4)))
    short = forward(config, base, dropping, tokens, key=key)
    np.testing.assert_allclose(forward(config, base, dropping, padded, key=key)[:, :7], short, atol=1e-5)


def test_dropout_masks_differ_between_layers(config, base, tokens):
    """Where frozen layers add nothing, an update does the same in whichever layer it is, but for its mask."""
    silent = base.replace(blocks=jax.tree.map(lambda leaf: jnp.broadcast_to(leaf[:1], leaf.shape), base.blocks))
    silent = silent.replace(blocks=silent.blocks.replace(o=0 * base.blocks.o, down=0 * base.blocks.down))
    adapter = random_adapter(config, ("down",), dropout=0.5)

    def logits(layer, key):
        lora = jax.tree.map(lambda leaf: jnp.zeros_like(leaf).at[layer].set(leaf[0]), adapter.lora)
        return forward(config, silent, adapter.replace(lora=lora), tokens, key=key)

    np.testing.assert_allclose(logits(0, None), logits(1, None), atol=1e-5)
    assert jnp.max(jnp.abs(logits(0, jax.random.key(0)) - logits(1, jax.random.key(0)))) > 0.1


def test_dropout_preserves_the_mean_of_a_low_rank_product(config, tokens):
    """At a small scale logits are linear in the last layer's update, whose mean over masks is then visible."""
    shallow = config.with_layers(1)
    base = random_base(shallow)
    adapter = random_adapter(shallow, ("down",), dropout=0.4).replace(scale=jnp.float32(1e-3))
    bare = forward(shallow, base, None, tokens)
    keys = jax.random.split(jax.random.key(3), 3000)
    dropped = jax.vmap(lambda key: forward(shallow, base, adapter, tokens, key=key))(keys) - bare
    expected = forward(shallow, base, adapter, tokens) - bare
    error = jnp.abs(jnp.mean(dropped, axis=0) - expected)
    assert jnp.all(error < 6 * jnp.std(dropped, axis=0) / len(keys) ** 0.5 + 1e-6)
    assert jnp.max(jnp.abs(expected)) > 30 * jnp.max(jnp.std(dropped, axis=0)) / len(keys) ** 0.5


def test_gradients_agree_with_finite_differences(config, base, adapter, tokens):
    def loss(scale):
        return jnp.mean(jnp.square(forward(config, base, adapter.replace(scale=scale), tokens)))

    above, below = loss(adapter.scale + 1e-3), loss(adapter.scale - 1e-3)
    np.testing.assert_allclose(jax.jit(jax.grad(loss))(adapter.scale), (above - below) / 2e-3, rtol=2e-2)


class Halves(struct.PyTreeNode):
    """A stand-in for a quantised weight: whatever knows how to expand itself."""

    half: jax.Array
    divisions = ((-2,), (-1,))

    def dequantize(self, dtype):
        return (self.half + self.half).astype(dtype)


def test_opaque_weights_are_expanded_inside_the_scan(config, base, adapter, tokens):
    opaque = base.replace(blocks=base.blocks.replace(q=Halves(base.blocks.q / 2), down=Halves(base.blocks.down / 2)))
    np.testing.assert_allclose(forward(config, opaque, adapter, tokens), forward(config, base, adapter, tokens), atol=1e-6)
    assert dense_weight(Halves(base.blocks.q), jnp.bfloat16).dtype == jnp.bfloat16


def test_bfloat16_computes_the_same_within_its_precision(config, base, adapter, tokens):
    compute = Compute(dtype="bfloat16")
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), base)
    assert hidden_states(config, half, adapter, tokens, compute=compute).dtype == jnp.bfloat16
    logits = forward(config, half, adapter, tokens, compute=compute)
    assert logits.dtype == jnp.float32
    expected = forward(config, base, adapter, tokens)
    assert jnp.linalg.norm(logits - expected) < 0.05 * jnp.linalg.norm(expected)


def test_rotary_scores_depend_on_distance_only(config):
    query, key = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, config.head_size))
    table = rotary_table(config, jnp.arange(20))
    queries = rotate(jnp.broadcast_to(query, (1, 20, 1, config.head_size)), table)[0, :, 0]
    keys = rotate(jnp.broadcast_to(key, (1, 20, 1, config.head_size)), table)[0, :, 0]
    scores = queries @ keys.T
    for distance in (0, 3, 11):
        np.testing.assert_allclose(np.diagonal(scores, distance), scores[0, distance], atol=1e-5)
    np.testing.assert_allclose(jnp.linalg.norm(queries, axis=-1), jnp.linalg.norm(query), rtol=1e-5)


def test_linear_scaling_stretches_positions(config):
    scaled = dataclasses.replace(config, rope_scaling=RopeScaling("linear", 4.0))
    np.testing.assert_allclose(rotary_frequencies(scaled) * 4, rotary_frequencies(config), rtol=1e-6)


def test_llama3_scaling_keeps_short_waves_divides_long_ones_and_ramps_between(config):
    config = dataclasses.replace(config, head_size=64, rope_theta=500_000.0)
    scaling = RopeScaling("llama3", 8.0, low_frequency_factor=1.0, high_frequency_factor=4.0, original_length=8192)
    plain = np.asarray(rotary_frequencies(config), np.float64)
    scaled = np.asarray(rotary_frequencies(dataclasses.replace(config, rope_scaling=scaling)), np.float64)
    wavelengths = 2 * np.pi / plain
    short, long = wavelengths < 8192 / 4, wavelengths > 8192
    between = ~short & ~long
    assert short.any()
    assert long.any()
    assert between.any()
    np.testing.assert_allclose(scaled[short], plain[short], rtol=1e-6)
    np.testing.assert_allclose(scaled[long], plain[long] / 8, rtol=1e-6)
    smooth = (8192 / wavelengths[between] - 1) / (4 - 1)
    np.testing.assert_allclose(scaled[between], (1 - smooth) * plain[between] / 8 + smooth * plain[between], rtol=1e-5)


def test_rms_norm_by_hand():
    x = jnp.array([3.0, 4.0])
    np.testing.assert_allclose(rms_norm(x, jnp.array([1.0, 2.0]), 0.0), np.array([3.0, 8.0]) / np.sqrt(12.5), rtol=1e-6)
    assert rms_norm(x.astype(jnp.bfloat16), jnp.ones(2), 1e-5).dtype == jnp.bfloat16


def test_rms_norm_has_the_gradients_of_its_definition():
    x, weight, up = (
        jax.random.normal(jax.random.key(seed), shape) for seed, shape in enumerate([(2, 3, 5), (5,), (2, 3, 5)])
    )

    def plainly(x, weight):
        return x * weight / jnp.sqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 0.1)

    found, wanted = (
        jax.grad(lambda *given, norm=norm: jnp.sum(up * norm(*given)), argnums=(0, 1))(x, weight)
        for norm in (lambda x, weight: rms_norm(x, weight, 0.1), plainly)
    )
    chex.assert_trees_all_close(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", PROJECTIONS)
def test_projections_have_the_shapes_that_the_config_tells(config, name):
    assert getattr(init_base(jax.random.key(0), config).blocks, name).shape == (
        config.layers,
        *config.projection_shape(name),
    )


def test_initial_weights_have_their_deviations():
    config = dataclasses.replace(CONFIG, width=64, feed_forward=96, layers=8)
    base = init_base(jax.random.key(0), config, dtype="bfloat16")
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(base))
    for name in PROJECTIONS:
        deviation = 0.02 / 4 if name in ("o", "down") else 0.02
        np.testing.assert_allclose(jnp.std(getattr(base.blocks, name).astype(jnp.float32)), deviation, rtol=0.05)
    assert init_base(jax.random.key(0), dataclasses.replace(config, tied_head=True)).head is None


def test_an_adapters_scale_is_exact_in_half_precision(config, base, adapter, tokens):
    """0.7 has no form in bfloat16, where it would be taken for 0.69921875."""
    silent = jax.tree.map(jnp.zeros_like, base.blocks).replace(
        norm_attention=base.blocks.norm_attention, norm_mlp=base.blocks.norm_mlp
    )
    only = adapter.replace(lora={"down": adapter.lora["down"]}, scale=jnp.float32(0.7))
    pushed = base.replace(blocks=silent.replace(gate=base.blocks.gate, up=base.blocks.up))
    compute = Compute(dtype="bfloat16")
    low, high = (
        hidden_states(config, pushed, only.replace(scale=jnp.float32(s)), tokens, compute=compute) for s in (0.69921875, 0.7)
    )
    assert (low != high).any()
