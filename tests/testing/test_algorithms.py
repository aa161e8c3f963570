"""The laws hold for every algorithm of the registry, and each finds a record that breaks it."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from devft_jax.federated.aggregation import in_slot, mean_of_products
from devft_jax.federated.algorithm import Share
from devft_jax.federated.algorithms import ALGORITHMS
from devft_jax.federated.algorithms.fedit import fedit
from devft_jax.federated.algorithms.local_only import local_only
from devft_jax.models.adapter import LoraFactors
from devft_jax.testing import ALGORITHM_LAWS, LawError, check_algorithm, stages
from devft_jax.testing import algorithms as laws
from devft_jax.testing.algorithms import small_options
from devft_jax.testing.rounds import Case
from tests.tiny_run import KINDS

SOUND = fedit(small_options())


@pytest.fixture(autouse=True)
def said_broadcasts():
    """What a server computes broadcasts nothing silently."""
    with jax.numpy_rank_promotion("raise"):
        yield


@pytest.mark.parametrize(
    "name", [name if name in KINDS else pytest.param(name, marks=pytest.mark.slow) for name in ALGORITHMS]
)
def test_every_algorithm_keeps_the_laws(name):
    check_algorithm(ALGORITHMS[name])


@pytest.mark.parametrize("name", [pytest.param("flora", marks=pytest.mark.slow), "hetlora"])
def test_clients_of_different_ranks_keep_the_laws(name):
    check_algorithm(ALGORITHMS[name](small_options(client_ranks=(4, 1, 2))))


def broken(**changes):
    return dataclasses.replace(SOUND, name="broken", **changes)


def lora_of(change):
    """A `finalize` whose server has other factors than FedIT's."""

    def finalize(server, sums):
        after, metrics = SOUND.finalize(server, sums)
        return after.replace(lora=change(server.lora, after.lora, sums)), metrics

    return finalize


def contributed(**parts):
    """A `contribution` that sees another share."""
    return lambda up, share: SOUND.contribution(up, share.replace(**{name: value(share) for name, value in parts.items()}))


def shifted(leaf):
    return leaf + 0.01


def by_naive_decomposition(server, sums):
    """The mean of products, decomposed without a thought for zeros."""
    clients, shares = sums.apart()

    def one(factors):
        left, values, right = jnp.linalg.svd(mean_of_products(factors, shares), full_matrices=False)
        root = jnp.sqrt(values[:, :4])
        return LoraFactors(a=left[..., :4] * root[:, None], b=root[:, :, None] * right[:, :4])

    return server.replace(lora={name: one(factors) for name, factors in clients.items()}), {}


def zeroed_transfer(full, stage, layer_map, mode):
    return full.replace(lora=jax.tree.map(jnp.zeros_like, full.lora))


def shifting_transfer(full, stage, layer_map, mode):
    deep = SOUND.transfer(full, stage, layer_map, mode)
    return deep.replace(lora=jax.tree.map(shifted, deep.lora))


def in_bfloat16(old, new, sums):
    return jax.tree.map(lambda leaf: leaf.astype("bfloat16"), new)


def without_more(tree):
    return {name: leaf for name, leaf in tree.items() if name != "more"}


def returned_only_whole(full, stage, layer_map, mode):
    return SOUND.transfer(full, stage, layer_map, mode) if layer_map.num_groups == 4 else full


def of_first_layers(full, layer_map):
    return full.replace(lora=jax.tree.map(lambda leaf: leaf[:2], full.lora))


def counted_broadcast(server):
    return jax.tree.map(lambda leaf: leaf + next(COUNTER), SOUND.broadcast(server))


def unlearnable(*given):
    return zeroed_transfer(SOUND.init_server(*given), None, None, "")


def untouched(server, sums):
    return server, {}


MORE = {
    "start": lambda client: (SOUND.start(client)[0] | {"more": jnp.zeros(7)}, ()),
    "adapter": lambda train, frozen: SOUND.adapter(without_more(train), ()),
    "finish": lambda client, train: SOUND.finish(client, without_more(train)),
}
NARROW = {"contribution": lambda up, share: {"sum": share.weight.astype("bfloat16")}, "finalize": untouched}
DECOMPOSED = {
    "finish": lambda client, train: (train, {}),
    "contribution": lambda up, share: in_slot(up, share, 3),
    "finalize": by_naive_decomposition,
}
UNWEIGHTED = {"contribution": contributed(weight=lambda share: jnp.float32(1.0))}
COUNTER = itertools.count(1)
OWN = local_only(small_options())

BROKEN = [
    (laws.has_a_name, {"weighting": "equal"}, "its weighting is 'equal'"),
    (
        laws.keeps_shapes,
        {"finalize": lora_of(in_bfloat16)},
        "state in a round changes: .*bfloat16.* of .*float32",
    ),
    (laws.keeps_shapes, {"finalize": lambda server, sums: (server, {"clients": jnp.int32(3)})}, "metric .*clients.* is no"),
    (laws.keeps_shapes, NARROW, "make all of it float32"),
    (laws.keeps_shapes, {"penalty": lambda train, frozen: jnp.ones(3)}, "reduce it to one number"),
    (laws.keeps_shapes, MORE, r"a leaf of shape \[\(7,\)\] trains and does not lead with the layers"),
    (laws.keeps_shapes, {"view": lambda server: server.lora}, "have to give an Adapter"),
    (laws.keeps_shapes, {"submodel": of_first_layers}, "the server's state through the identity map changes"),
    (
        laws.zero_at_weight_zero,
        UNWEIGHTED,
        "a message with weight 0 contributes up to",
    ),
    (laws.is_pure, {"broadcast": counted_broadcast}, "two traces differ"),
    (
        laws.ignores_order,
        {"contribution": contributed(weight=lambda share: share.weight * (1.0 + share.slot))},
        "in another order of clients",
    ),
    (
        laws.ignores_order,
        {"finalize": lora_of(lambda old, new, sums: jax.tree.map(lambda leaf: leaf * (1 + sums.weight), new))},
        "with weights a thousand times as large",
    ),
    (
        laws.needs_one_client,
        {"finalize": lambda server, sums: (server, {"spread": 1 / (sums.weight - 2.0)})},
        "with one client the model or a metric is not finite",
    ),
    (
        laws.needs_one_client,
        {"contribution": contributed(weight=lambda share: share.weight + 1)},
        "clients of weight 0 change the model",
    ),
    (laws.updates_arrive, {"finalize": untouched}, "the view is unchanged"),
    (
        laws.stays_when_nothing_moves,
        {"finalize": lora_of(lambda old, new, sums: jax.tree.map(shifted, new))},
        "the model changes by",
    ),
    (laws.learns_on, DECOMPOSED, "then 16 of 16 directions of .* cannot learn any more: they are zero in both factors"),
    (laws.learns_on, {"init_server": unlearnable}, "in the first round no direction of .* can learn"),
    (laws.learns_in_the_next_stage, {"transfer": zeroed_transfer}, "then 16 of 16 directions of .* cannot learn any more"),
    (stages.views_the_stage, {"submodel": lambda full, layer_map: full}, "that of a stage of 2 layers has 4"),
    (
        stages.returns_through_the_identity,
        {"transfer": lambda full, stage, layer_map, mode: full},
        "the model changes by",
    ),
    (stages.keeps_absent_layers, {"transfer": shifting_transfer}, "of a layer that is absent or does not train changes by"),
    (
        stages.keeps_absent_layers,
        {"transfer": returned_only_whole},
        "a layer that trains in the stage is what it was",
    ),
    (stages.carries_rows, {"transfer_row": lambda full, stage, layer_map, mode: stage}, "its shape changes"),
    (
        stages.carries_rows,
        {"transfer_row": lambda full, stage, layer_map, mode: full},
        "own model differs by",
    ),
]


@pytest.mark.parametrize(("law", "changes", "words"), BROKEN)
def test_a_broken_law_is_found(law, changes, words):
    sound = OWN if law is stages.carries_rows else SOUND
    with pytest.raises(LawError, match=words):
        law(Case(dataclasses.replace(sound, **changes)))


def test_every_law_has_been_broken():
    assert {law for law, *_ in BROKEN} == set(ALGORITHM_LAWS)


def test_the_error_names_what_was_checked_and_the_law():
    record = broken(contribution=contributed(weight=lambda share: jnp.float32(1.0)))
    with pytest.raises(
        LawError, match=r"^broken breaks the law 'A contribution is zero at weight zero.' a message with weight 0"
    ):
        check_algorithm(record, quick=True)


def test_what_cannot_be_traced_is_told_with_its_law():
    def finalize(server, sums):
        return (server, {}) if sums.weight > 0 else (server, {"none": sums.weight})

    with pytest.raises(
        LawError,
        match=r"^broken cannot be asked about the law 'A round can be traced.*Tracer\w+ at \S+test_algorithms\.py:\d+: ",
    ):
        check_algorithm(broken(finalize=finalize), quick=True)


def test_messages_travel_in_the_dtype_of_the_run():
    def wide(config):
        return dataclasses.replace(fedit(config), name="wide", finish=lambda client, train: (train, client.row))

    with pytest.raises(LawError, match=r"message_dtype\.' One of bfloat16 has float32 in its message up"):
        check_algorithm(wide)


def test_a_record_is_checked_as_it_is():
    check_algorithm(fedit(small_options(2)), participants=2, quick=True)
    shapes = [leaf.shape for leaf in jax.tree.leaves(Case(SOUND).trained(*Case(SOUND).start[1:])[0])]
    assert {shape[:2] for shape in shapes} == {(3, 4)}
    assert Share(jnp.float32(0.0), jnp.int32(0)).count == 0
    assert np.isfinite(functools.reduce(np.add, Case(SOUND).weights))
