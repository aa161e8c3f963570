"""Divided weights hold the bits of whole ones, and what cannot be divided is named."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from devft_jax.models.architecture import PROJECTIONS
from devft_jax.models.base import init_base
from devft_jax.models.influence import layer_cosines
from devft_jax.models.llama import Compute, forward, prefix_states
from devft_jax.models.quantization import quantize, quantize_base
from devft_jax.models.sharding import part_bytes, partition_specs, place, place_frozen, shard_base, undivided, whole
from devft_jax.models.weights import ShardedWeight
from devft_jax.runtime.devices import MODEL_AXIS, client_mesh
from tests.tiny import CONFIG, random_base

# Wide enough for two blocks of inputs each in k, v and their like, and for three in down.
WIDE = dataclasses.replace(CONFIG, width=128, feed_forward=192, layers=2, heads=8, kv_heads=8, head_size=16)
TOKENS = jnp.asarray(np.random.default_rng(0).integers(1, CONFIG.vocabulary, (3, 7)))


def divided(base, shards):
    """The base on groups of `shards` out of the eight devices, and their mesh."""
    mesh = client_mesh(jax.local_devices(), shards)
    return place(shard_base(base, shards, MODEL_AXIS), mesh), mesh


def on_all(function, base, mesh, *arguments):
    """`function(base, ...)` computed alike on every device, as one of them has it."""
    specs = (partition_specs(base), *[PartitionSpec()] * len(arguments))
    run = jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(), check_vma=False)
    return jax.jit(run)(base, *arguments)


@pytest.mark.parametrize("shards", [2, 4, 8])
@pytest.mark.parametrize("kind", ["none", "nf4", "int8"])
def test_a_gathered_weight_has_the_bits_of_the_whole_one(shards, kind):
    base = init_base(jax.random.key(0), WIDE, dtype="bfloat16")
    base = base if kind == "none" else quantize_base(base, kind)
    parts, mesh = divided(base, shards)
    assert undivided(parts) == ()
    names = ("q", "down")

    def gathered(base):
        return {name: getattr(base.blocks, name).gathered() for name in names} | {"head": base.head.gathered()}

    found = on_all(gathered, parts, mesh)
    expected = {name: getattr(base.blocks, name) for name in names} | {"head": base.head}
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for new, old in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert new.dtype == old.dtype
        np.testing.assert_array_equal(new, old)
    for leaf in jax.tree.leaves(parts.blocks.q):
        assert leaf.addressable_data(0).size == leaf.size // shards


@pytest.mark.parametrize("tied", [False, True])
def test_the_forward_pass_of_a_divided_base_is_that_of_the_whole_one(tied):
    base = random_base()
    base = base.replace(head=None) if tied else base
    parts, mesh = divided(base, 4)
    forward_of = functools.partial(forward, CONFIG)
    found = on_all(lambda base, tokens: forward_of(base, None, tokens), parts, mesh, TOKENS)
    np.testing.assert_allclose(found, forward_of(base, None, TOKENS), atol=1e-5)
    states = on_all(lambda base, tokens: prefix_states(CONFIG, base, tokens, 2), parts, mesh, TOKENS)
    np.testing.assert_allclose(states, prefix_states(CONFIG, base, TOKENS, 2), atol=1e-5)


def test_an_embedding_is_looked_up_by_each_devices_own_tokens():
    base = random_base()
    parts, mesh = divided(base, 4)
    specs = (partition_specs(parts.embed), PartitionSpec(mesh.axis_names))
    look_up = jax.shard_map(lambda embed, tokens: embed[tokens], mesh=mesh, in_specs=specs, out_specs=specs[1])
    tokens = jnp.arange(16).reshape(8, 2)
    np.testing.assert_array_equal(jax.jit(look_up)(parts.embed, tokens), base.embed[tokens])


def test_the_influence_of_layers_is_measured_on_a_divided_base():
    base = random_base()
    parts, mesh = divided(base, 2)
    real = jnp.ones(TOKENS.shape, bool)
    measure = functools.partial(layer_cosines, CONFIG, compute=Compute())
    np.testing.assert_allclose(on_all(measure, parts, mesh, TOKENS, real), measure(base, TOKENS, real), rtol=1e-5)


def test_another_dimension_is_divided_where_the_inputs_cannot_be():
    # 192 inputs are three blocks of 64, which two devices cannot share out evenly; 128 outputs they can.
    packed = quantize(jnp.ones((2, 192, 128)), "nf4")
    base = init_base(jax.random.key(0), WIDE)
    parts = shard_base(base.replace(blocks=base.blocks.replace(down=packed)), 2, MODEL_AXIS)
    assert parts.blocks.down.dimensions == (-1, -1)
    assert shard_base(base, 2, MODEL_AXIS).blocks.down.dimensions == (-2,)
    odd = base.replace(blocks=base.blocks.replace(down=jnp.ones((2, 191, 128))))
    assert shard_base(odd, 2, MODEL_AXIS).blocks.down.dimensions == (-1,)


def test_what_cannot_be_divided_stays_whole_is_named_and_counted():
    base = random_base()
    # Width 16 and every projection's inputs but down's 24 have no third; k and v have 8 outputs.
    parts = shard_base(base, 3, MODEL_AXIS)
    assert undivided(parts) == ("embed", "head", "q", "k", "v", "o")
    assert isinstance(parts.blocks.down, ShardedWeight)
    size = part_bytes(base, 1)
    thirds = sum(getattr(base.blocks, name).nbytes for name in ("gate", "up", "down"))
    assert part_bytes(parts, 3) == size - thirds + thirds // 3


def test_one_shard_is_the_base_itself_and_whole_undoes_the_division():
    base = random_base()
    assert shard_base(base, 1, MODEL_AXIS) is base
    again = whole(shard_base(base, 2, MODEL_AXIS))
    assert jax.tree.structure(again) == jax.tree.structure(base)
    assert all(getattr(again.blocks, name) is getattr(base.blocks, name) for name in PROJECTIONS)


def addresses(array):
    return [shard.data.unsafe_buffer_pointer() for shard in array.addressable_shards]


@pytest.mark.parametrize("kind", ["none", "int8"])
def test_devices_of_a_cpu_read_one_copy_of_a_frozen_base(kind):
    base = init_base(jax.random.key(0), WIDE, dtype="bfloat16")
    base = base if kind == "none" else quantize_base(base, kind)
    mesh = client_mesh(jax.local_devices())
    frozen, copied = place_frozen(base, mesh), place(base, mesh)
    for leaf, own, old in zip(*map(jax.tree.leaves, (frozen, base, copied)), strict=True):
        assert set(addresses(leaf)) == set(addresses(own))
        assert len(addresses(leaf)) == 8
        assert leaf.sharding == old.sharding
        np.testing.assert_array_equal(leaf, old)
    # Arrays that are on these devices already stay as they are.
    assert addresses(place_frozen(frozen, mesh).embed) == addresses(frozen.embed)


def test_a_frozen_base_outlives_the_array_from_which_it_was_placed():
    placed = place_frozen(jnp.arange(4096.0), client_mesh(jax.local_devices()))
    # Whatever would be freed is written over.
    others = [jnp.full(4096, -1.0).block_until_ready() for _ in range(8)]
    np.testing.assert_array_equal(placed, np.arange(4096.0))
    assert others
