"""The hypernetwork's adapters: their mathematics, what they may depend on, and their size."""

from functools import partial
from math import erf

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from devft_jax.errors import InputError
from devft_jax.models.adapter import Adapter
from devft_jax.models.decoder import decoder_layer, rms_norm, rotary_table
from devft_jax.models.generation.generate import generate
from devft_jax.models.generation.options import GenerationOptions
from devft_jax.models.huggingface.peft.writing import export_peft
from devft_jax.models.huggingface.writing import save_pretrained
from devft_jax.models.hypernetwork import (
    TOKEN_WIDTH,
    HyperAdapter,
    adapt,
    bottleneck_weights,
    generated_norms,
    generator_of,
    init_hypernetwork,
    products,
    prompt_shares,
)
from devft_jax.models.llama import Compute, causal_attention, forward, logits_of
from devft_jax.models.lora import adapter_norms
from devft_jax.models.loss import completion_loss, completion_statistics

CLUSTERS, RANK, INNER = 4, 3, 5


def hyper(config, *, layers=None, gate=True, seed=0):
    """A hypernetwork in the middle of training: no leaf is zero."""
    depth = config.layers if layers is None else layers
    key = jax.random.key(seed)
    fresh = init_hypernetwork(key, width=config.width, layers=depth, rank=RANK, inner=INNER, clusters=CLUSTERS, gate=gate)
    leaves, structure = jax.tree.flatten(fresh)
    noise = [0.5 * jax.random.normal(jax.random.fold_in(key, n), leaf.shape) for n, leaf in enumerate(leaves)]
    network = jax.tree.map(jnp.add, fresh, structure.unflatten(noise))
    return HyperAdapter(network, jnp.array([0.1, 0.2, 0.3, 0.4]))


def adapter_of(config, **options):
    return Adapter(lora={}, scale=jnp.float32(1), hyper=hyper(config, **options))


def plain_adapt(adapter, layer, prompt_lengths, x):
    """The module's equations in float64, one example after the other."""
    net = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), adapter.network)
    rank, width = net.shift.shape
    rows = (net.left.reshape(TOKEN_WIDTH * rank, -1) @ net.right).reshape(TOKEN_WIDTH, rank * width)
    rows = rows + net.shift.reshape(1, -1)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    label = np.asarray(adapter.histogram, np.float64) @ net.label_weight + net.label_bias
    outputs = []
    for example, prompt in zip(np.asarray(x, np.float64), prompt_lengths, strict=True):
        mean = example[:prompt].mean(axis=0)
        context = mean / np.linalg.norm(mean) @ net.context_weight + net.context_bias
        vector = (label + context + net.layer_tokens[layer]) @ rows
        low = example @ vector.reshape(width, rank) + net.inner_bias
        low = 0.5 * low * (1 + np.vectorize(erf)(low / 2**0.5))
        gate = 1.0 if net.gate is None else net.gate
        outputs.append(example + gate * (low @ vector.reshape(rank, width) + net.outer_bias))
    return np.stack(outputs)


@pytest.mark.parametrize("gate", [True, False])
def test_an_adapter_is_what_the_equations_say(config, gate):
    adapter = hyper(config, gate=gate)
    x = jax.random.normal(jax.random.key(5), (3, 6, config.width))
    lengths = jnp.array([2, 6, 1])
    found = adapt(generator_of(adapter), prompt_shares(lengths, 6), adapter.network.layer_tokens[1], x)
    np.testing.assert_allclose(found, plain_adapt(adapter, 1, lengths, x), atol=1e-5)
    assert np.abs(found - x).max() > 0.1


def test_half_precision_stays_half_and_near(config):
    adapter = hyper(config)
    x = jax.random.normal(jax.random.key(5), (3, 6, config.width))
    arguments = generator_of(adapter), prompt_shares(jnp.array([2, 6, 1]), 6), adapter.network.layer_tokens[1]
    half = adapt(*arguments, x.astype("bfloat16"))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype("float32"), adapt(*arguments, x), atol=0.05)


def test_both_weights_are_one_vector_in_two_shapes(config):
    inwards, outwards = bottleneck_weights(generator_of(hyper(config)), jnp.ones((2, TOKEN_WIDTH)))
    chex.assert_shape(inwards, (2, config.width, RANK))
    chex.assert_shape(outwards, (2, RANK, config.width))
    np.testing.assert_array_equal(inwards.reshape(2, -1), outwards.reshape(2, -1))


def test_the_gate_leaves_the_untuned_model_intact(config, base, tokens):
    bare = forward(config, base, None, tokens)
    for gate in (True, False):
        fresh = init_hypernetwork(
            jax.random.key(0), width=config.width, layers=config.layers, rank=RANK, inner=INNER, clusters=CLUSTERS, gate=gate
        )
        adapter = Adapter(lora={}, scale=jnp.float32(1), hyper=HyperAdapter(fresh, jnp.full(CLUSTERS, 0.25)))
        logits = forward(config, base, adapter, tokens, prompt_lengths=jnp.array([3, 4]))
        assert np.array_equal(logits, bare) == gate


def test_what_comes_after_the_prompt_changes_nothing_before_it(config, base, tokens):
    adapter = adapter_of(config)
    lengths = jnp.array([3, 2])
    logits = forward(config, base, adapter, tokens, prompt_lengths=lengths)
    for place in range(3, tokens.shape[1]):
        other = tokens.at[:, place:].set((tokens[:, place:] + 5) % config.vocabulary)
        changed = forward(config, base, adapter, other, prompt_lengths=lengths)
        np.testing.assert_allclose(changed[:, :place], logits[:, :place], atol=1e-5)
        assert np.abs(changed[:, place:] - logits[:, place:]).max() > 0.1
    # A prompt's own tokens matter to all of it.
    other = tokens.at[:, 1].set((tokens[:, 1] + 5) % config.vocabulary)
    assert np.abs(forward(config, base, adapter, other, prompt_lengths=lengths) - logits)[:, 0].max() > 1e-3


def test_padding_and_other_examples_do_not_matter(config, base, tokens):
    adapter = adapter_of(config)
    lengths = jnp.array([3, 5])
    mask = jnp.arange(tokens.shape[1]) >= lengths[:, None]
    together = completion_statistics(config, base, adapter, tokens, mask).nll
    for row in range(2):
        padded = jnp.pad(tokens[row : row + 1], ((0, 0), (0, 4)))
        marked = jnp.pad(mask[row : row + 1], ((0, 0), (0, 4)))
        alone = completion_statistics(config, base, adapter, padded, marked).nll
        np.testing.assert_allclose(alone[:, : tokens.shape[1] - 1], together[row : row + 1], atol=1e-5)
        logits = forward(config, base, adapter, tokens[row : row + 1], prompt_lengths=lengths[row : row + 1])
        scores = jax.nn.log_softmax(logits[0, :-1])[jnp.arange(tokens.shape[1] - 1), tokens[row, 1:]]
        np.testing.assert_allclose(together[row], jnp.where(mask[row, 1:], -scores, 0), atol=1e-5)


def test_a_row_of_padding_is_finite_with_its_gradient(config, base, tokens):
    mask = jnp.zeros(tokens.shape, bool).at[0, 4:].set(True)

    def loss(network):
        adapter = Adapter(lora={}, scale=jnp.float32(1), hyper=HyperAdapter(network, jnp.full(CLUSTERS, 0.25)))
        return completion_loss(config, base, adapter, tokens.at[1].set(0), mask)

    value, gradients = jax.value_and_grad(loss)(hyper(config).network)
    assert np.isfinite(value)
    for leaf in jax.tree.leaves(gradients):
        assert np.isfinite(leaf).all()
        assert leaf.any()


@pytest.mark.parametrize("compute", [Compute(), Compute(remat="full"), Compute(frozen_layers=1)])
def test_an_adapter_of_fewer_layers_belongs_to_the_last(config, base, tokens, compute):
    lengths = jnp.array([3, 4])
    short = adapter_of(config, layers=config.layers - 1)
    assert short.depth(otherwise=9) == config.layers - 1
    generator, shares = generator_of(short.hyper), prompt_shares(lengths, tokens.shape[1])
    x = base.embed[tokens]
    for layer in range(config.layers):
        token = short.layer_tokens[layer - 1]
        x, _ = decoder_layer(
            config,
            x,
            jax.tree.map(lambda leaf, which=layer: leaf[which], base.blocks),
            {},
            {},
            {},
            table=rotary_table(config, jnp.arange(tokens.shape[1])),
            attend=causal_attention(config, Compute(), tokens.shape[1]),
            change=partial(adapt, generator, shares, token) if layer else None,
        )
    expected = logits_of(base, rms_norm(x, base.norm, config.norm_epsilon))
    found = forward(config, base, short, tokens, prompt_lengths=lengths, compute=compute)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_sizes_are_norms_of_the_generated_weights(config):
    adapter = hyper(config)
    generator = generator_of(adapter)
    tokens = generator.token + adapter.network.layer_tokens
    made = [np.linalg.norm(np.einsum("t,trd->rd", token, generator.rows)) for token in np.asarray(tokens)]
    np.testing.assert_allclose(generated_norms(adapter), abs(float(adapter.network.gate)) * np.array(made), rtol=1e-5)
    np.testing.assert_array_equal(adapter_norms(adapter_of(config)), generated_norms(adapter))


def test_products_are_those_of_the_einsums(config):
    network = hyper(config).network
    width, layers = config.width, config.layers
    assert products(network) == (
        layers * 2 * (width * RANK + RANK * width),
        layers * 2 * (width * 8 + 8 * RANK * width),
        8 * RANK * INNER * width + CLUSTERS * 8,
    )


def test_without_prompts_and_for_other_tools_there_is_none(config, base, tokens, tmp_path):
    adapter = adapter_of(config)
    with pytest.raises(ValueError, match="generates its weights from prompts: give prompt_lengths"):
        forward(config, base, adapter, tokens)
    with pytest.raises(InputError, match="PEFT does not support adapters from a hypernetwork"):
        export_peft(adapter, tmp_path / "adapter")
    with pytest.raises(InputError, match="has no weights that could be merged"):
        save_pretrained(tmp_path / "model", config, base, adapter=adapter, dtype="float32")
    with pytest.raises(InputError, match="answers cannot be generated with an adapter from a hypernetwork"):
        generate(config, base, adapter, [[1, 2]], options=GenerationOptions(max_new_tokens=1))
    assert not any(tmp_path.iterdir())
