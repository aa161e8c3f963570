"""What travels, from the algorithm's own messages on shapes, against real messages and real submodels."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from devft_jax.accounting.communication import (
    fusion_recipe_bytes,
    message_elements,
    missed_bytes,
    newcomers,
    round_messages,
    submodel_bytes,
)
from devft_jax.developmental import LayerMap, fuse
from devft_jax.errors import InputError
from devft_jax.federated.algorithms import MethodConfig
from devft_jax.federated.algorithms.fedit import fedit
from devft_jax.federated.messages import message_bytes
from devft_jax.models.architecture import ARCHITECTURES
from devft_jax.models.base import init_base
from devft_jax.models.quantization import base_shapes, quantize_base
from devft_jax.training.submodels import fuse_blocks
from tests.federated.harness import init, participant
from tests.tiny import CONFIG

OPTIONS = MethodConfig(rank=3, alpha=6.0, targets=("q", "v", "down"))
COHORTS = st.lists(st.sets(st.integers(0, 9), min_size=1), min_size=1, max_size=12)


@pytest.mark.parametrize("message_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("layers", [1, 3, 4])
def test_messages_on_shapes_are_the_real_ones(layers, message_dtype):
    algorithm = fedit(dataclasses.replace(OPTIONS, message_dtype=message_dtype))
    messages = round_messages(algorithm, CONFIG, layers)
    layer_map = LayerMap(jnp.full((layers, 4), 0.25), jnp.minimum(jnp.arange(4), layers - 1))
    at_start = participant(algorithm, algorithm.submodel(init(algorithm), layer_map))
    train, _ = algorithm.start(at_start)
    up, _ = algorithm.finish(at_start, train)
    assert messages.bytes_down == message_bytes(at_start.down) > 0
    assert messages.bytes_up == message_bytes(up)
    assert jax.tree.map(jnp.shape, messages.up) == jax.tree.map(jnp.shape, up)


def test_an_algorithm_whose_clients_keep_a_factor_sends_the_other_alone():
    whole = fedit(OPTIONS)

    def only_a(lora):
        return {name: factors.a for name, factors in lora.items()}

    keeping = dataclasses.replace(
        whole,
        finish=lambda client, train: (only_a(train), {name: factors.b for name, factors in train.items()}),
        init_row=lambda server, trait: {name: jnp.zeros_like(factors.b) for name, factors in server.lora.items()},
        submodel_row=lambda row, layer_map: fuse(layer_map, row),
    )
    messages = round_messages(keeping, CONFIG, 2)
    assert messages.bytes_up == 4 * sum(factors.a.size for factors in round_messages(whole, CONFIG, 2).up.values())
    assert messages.participant.row["v"].shape == (2, 3, 8)


def test_elements_are_counted_by_field():
    messages = round_messages(fedit(OPTIONS), CONFIG, 2)
    assert message_elements(messages.up) == 2 * 3 * (16 + 16 + 24) + 2 * 3 * (16 + 8 + 16)


def test_seventy_billion_parameters_take_no_memory():
    config = ARCHITECTURES["meta-llama/Llama-2-70b-hf"]
    messages = round_messages(fedit(MethodConfig()), config, 40)
    assert messages.bytes_up == 4 * 40 * 32 * (8192 + 8192 + 8192 + 1024)
    assert submodel_bytes(config, 40, dtype="bfloat16", quantization="nf4") > 10**10


@pytest.mark.parametrize("kind", ["none", "int8", "nf4"])
@pytest.mark.parametrize("repack", [True, False])
def test_a_submodels_bytes_are_those_of_the_layers_that_the_trainer_fuses(kind, repack):
    base = init_base(jax.random.key(0), CONFIG, dtype="bfloat16")
    base = base if kind == "none" else quantize_base(base, kind)
    layer_map = LayerMap(jnp.full((2, 4), 0.25), jnp.array([0, 0, 1, 1]))
    fused = fuse_blocks(layer_map, base.blocks, base.blocks, repack=repack, dtype="bfloat16")
    stored = kind if repack else "none"
    assert submodel_bytes(CONFIG, 2, dtype="bfloat16", quantization=stored) == message_bytes(fused)


def test_at_full_depth_nothing_travels_besides_messages():
    assert submodel_bytes(CONFIG, 4, dtype="float32") == 0
    assert fusion_recipe_bytes(CONFIG, 4) == 0
    assert fusion_recipe_bytes(CONFIG, 2) == 4 * 4 + 4


@pytest.mark.parametrize("kind", ["none", "int4"])
def test_shapes_of_a_base_are_those_of_a_stored_one(kind):
    base = init_base(jax.random.key(0), CONFIG, dtype="bfloat16")
    base = base if kind == "none" else quantize_base(base, kind)
    described = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), base)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), base_shapes(CONFIG, dtype="bfloat16", quantization=kind)) == (
        described
    )


def test_a_base_that_cannot_be_packed_is_named():
    odd = dataclasses.replace(CONFIG, feed_forward=25)
    with pytest.raises(InputError, match="down: quantization 'nf4' packs pairs of inputs and a weight has 25"):
        base_shapes(odd, dtype="float32", quantization="nf4")


def arrays(cohorts):
    return [np.array(sorted(cohort)) for cohort in cohorts]


def test_newcomers_and_absentees_of_a_few_rounds():
    cohorts = arrays([{0, 1}, {1, 2}, {0, 3}])
    assert newcomers(cohorts) == [2, 1, 1]
    # Client 2 lacks the first message; 0 the second; 3 the first two.
    assert missed_bytes(cohorts, [10, 100, 1000]) == [0, 10, 100 + 110]


@given(COHORTS)
def test_every_participant_is_new_once(cohorts):
    assert sum(newcomers(arrays(cohorts))) == len(set().union(*cohorts))


@given(COHORTS)
def test_what_was_received_and_what_was_missed_are_all_messages_up_to_the_last_participation(cohorts):
    sizes = [7 * index + 1 for index in range(len(cohorts))]
    received = sum(size * len(cohort) for size, cohort in zip(sizes, cohorts, strict=True))
    wanted = 0
    for client in set().union(*cohorts):
        last = max(index for index, cohort in enumerate(cohorts) if client in cohort)
        wanted += sum(sizes[: last + 1])
    assert received + sum(missed_bytes(arrays(cohorts), sizes)) == wanted
