"""A round whose devices hold the base together is the round of one device, and no device holds the whole base."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from devft_jax.accounting.memory import Work, compiled_memory
from devft_jax.federated.local import Passes
from devft_jax.federated.options import OptimizerOptions
from devft_jax.federated.prefix import PrefixCache
from devft_jax.federated.round.chunk import jit_chunk
from devft_jax.federated.round.client import LocalTraining
from devft_jax.federated.round.cohort import Cohort
from devft_jax.models.architecture import ModelConfig
from devft_jax.models.llama import Compute
from devft_jax.models.quantization import base_shapes, quantize_base
from devft_jax.models.sharding import part_bytes, place, shard_base
from devft_jax.runtime.compiled import CompiledPrograms
from devft_jax.runtime.devices import MODEL_AXIS, client_mesh
from tests.federated.harness import (
    BASE,
    BUCKETS,
    DROPOUT,
    EXAMPLES,
    LONG,
    SGD,
    STEPS,
    TWO,
    WHOLE,
    assemble,
    client,
    fedit_with,
    replay,
    run_round,
    server_with,
)
from tests.federated.round.test_cohort import chunk_arguments
from tests.tiny import CONFIG

# Neighbours, who hold a base together, have examples of different lengths; 11 are no multiple of 8.
ELEVEN = [client(position, pool=LONG if position % 2 else slice(0, 60)) for position in range(11)]
THREE_LENGTHS = Passes(1, (6, 8, BUCKETS[-1]))


def training(options=TWO, passes=THREE_LENGTHS, remat="dots"):
    return LocalTraining(fedit_with(options), CONFIG, Compute(remat=remat), SGD, passes)


def engine(devices, shards, **choices):
    return Cohort(
        training(**choices),
        devices=jax.local_devices()[:devices],
        model_shards=shards,
        clients_per_step=devices,
        assemble=assemble,
        programs=CompiledPrograms(),
    )


@functools.cache
def base_of(kind):
    return BASE if kind == "none" else quantize_base(BASE, kind)


@pytest.mark.parametrize(
    ("kind", "shards", "choices"),
    [
        ("none", 2, {}),
        pytest.param("nf4", 4, {"options": DROPOUT}, marks=pytest.mark.slow),
        pytest.param("none", 8, {"remat": "none"}, marks=pytest.mark.slow),
        pytest.param("none", 4, {"remat": "full"}, marks=pytest.mark.slow),
        pytest.param("nf4", 2, {"remat": "none"}, marks=pytest.mark.slow),
        pytest.param("int8", 2, {}, marks=pytest.mark.slow),
    ],
)
def test_a_round_on_a_divided_base_is_that_of_one_device(kind, shards, choices):
    base, cohort = base_of(kind), engine(8, shards, **choices)
    server = server_with(choices.get("options", TWO))
    parts = place(shard_base(base, shards, MODEL_AXIS), cohort.mesh)
    one = run_round(engine(1, 1, **choices), server, ELEVEN, base=base)
    found = run_round(cohort, server, ELEVEN, base=parts)
    np.testing.assert_allclose(found.losses, one.losses, rtol=2e-5)
    for new, old in zip(jax.tree.leaves(found.server), jax.tree.leaves(one.server), strict=True):
        np.testing.assert_allclose(new, old, atol=1e-5)


def test_lower_layers_that_do_not_learn_are_gathered_too():
    learning = np.arange(CONFIG.layers) > 1
    one = run_round(engine(1, 1, passes=WHOLE), server_with(), ELEVEN[:4], train_rows=learning)
    cohort = engine(4, 2, passes=WHOLE)
    parts = place(shard_base(BASE, 2, MODEL_AXIS), cohort.mesh)
    found = run_round(cohort, server_with(), ELEVEN[:4], base=parts, train_rows=learning)
    np.testing.assert_allclose(found.losses, one.losses, rtol=2e-5)
    for new, old in zip(jax.tree.leaves(found.server), jax.tree.leaves(one.server), strict=True):
        np.testing.assert_allclose(new, old, atol=1e-5)


@pytest.mark.slow
def test_a_replay_on_a_divided_base_has_the_losses_of_the_whole_one():
    member = ELEVEN[1]
    losses = []
    for shards in (1, 2):
        mesh = client_mesh(jax.local_devices()[:shards], shards)
        base = place(shard_base(BASE, shards, MODEL_AXIS), mesh)
        reports = replay(member, DROPOUT, base=base, mesh=mesh)
        losses.append([report.loss for report in reports])
    assert len(losses[0]) == STEPS
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)


def test_hidden_states_are_stored_from_a_divided_base(tmp_path):
    states = []
    for devices, shards in ((1, 1), (4, 2)):
        mesh = client_mesh(jax.local_devices()[:devices], shards)
        options = {"layers": 2, "rows": 4, "buckets": BUCKETS, "mesh": mesh, "folder": tmp_path}
        cache = PrefixCache(CONFIG, Compute(), EXAMPLES, programs=CompiledPrograms(), **options)
        cache.fill(place(shard_base(BASE, shards, MODEL_AXIS), mesh), [member.examples for member in ELEVEN[:3]])
        states.append(cache.gather(ELEVEN[1].examples, BUCKETS[-1]))
    np.testing.assert_allclose(states[1], states[0], atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "remat"),
    [
        ("none", "dots"),
        pytest.param("none", "none", marks=pytest.mark.slow),
        pytest.param("nf4", "full", marks=pytest.mark.slow),
    ],
)
def test_no_device_holds_the_base_nor_gathers_more_than_a_layer_of_it(kind, remat):
    config = ModelConfig(vocabulary=200, width=256, feed_forward=704, layers=8, heads=4, kv_heads=2, head_size=64)
    work = Work(clients=1, steps=2, batch=1, length=16)
    of_one_pass = dataclasses.replace(training(remat=remat), config=config, passes=Passes(1, (16,)))
    whole, parts = (
        compiled_memory(of_one_pass, work, layers=8, quantization=kind, model_shards=shards) for shards in (1, 4)
    )
    base = base_shapes(config, dtype="float32", quantization=kind)
    size, part = part_bytes(base, 1), part_bytes(shard_base(base, 4, MODEL_AXIS), 4)
    assert part < 0.27 * size
    assert whole.arguments - parts.arguments == size - part
    # Beside what every device computes with it holds one layer at most, and the head.
    assert parts.temporaries - whole.temporaries < part_bytes(base.blocks, 1) / 8 + part_bytes(base.head, 1)


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_the_chunk_lowers_for_accelerators(platform):
    mesh = client_mesh(jax.local_devices(), 4)
    half = dataclasses.replace(training(), compute=Compute(dtype="bfloat16", remat="dots"), optimizer=OptimizerOptions())
    arguments = chunk_arguments(half.algorithm, CONFIG, mesh, "bfloat16")
    exported = jax.export.export(jit_chunk(half, mesh), platforms=[platform])(*arguments)
    assert exported.nr_devices == 8
