"""Algorithms through channels: which may be, rounds in any chunks, rows through stages, and steps on the mean."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from devft_jax.accounting.communication import round_messages
from devft_jax.config.methods import algorithm_of
from devft_jax.config.run_config import RunConfig
from devft_jax.developmental import LayerMap
from devft_jax.federated.algorithm import Clients
from devft_jax.federated.algorithms import ALGORITHMS
from devft_jax.federated.channels.channel import Channel, chain
from devft_jax.federated.channels.named import channel_of
from devft_jax.federated.channels.options import ChannelOptions
from devft_jax.federated.channels.through import through
from devft_jax.federated.messages import Due, Ranked, Unsent, message_bytes
from devft_jax.models.architecture import ARCHITECTURES
from tests.federated.harness import FIVE, TWO, aggregated, assert_close, engine, fedit_with, run_round, trained_messages
from tests.federated.records import WEIGHTS, first, made, noise, stage_of, started, still
from tests.tiny import CONFIG

SEVEN_B = "meta-llama/Llama-2-7b-hf"


@functools.cache
def sent(name, algorithm=None, **options):
    """An algorithm of the tests' options through a channel."""
    channel = channel_of(ChannelOptions(channel=name, **options), "float32")
    return through(channel, fedit_with(TWO) if algorithm is None else made(algorithm))


def begun(algorithm, layer_map=None):
    """A first stage, and the rows of its participants."""
    full, rows = first(algorithm)
    return stage_of(algorithm, full, rows, LayerMap.identity(CONFIG.layers) if layer_map is None else layer_map)


@pytest.mark.parametrize("name", [name for name in ALGORITHMS if made(name).averages])
def test_servers_that_average_depend_on_the_mean_of_changes_alone(name):
    algorithm, server, rows = started(name)
    ups, _ = trained_messages(algorithm, server, rows, move=noise(1))
    marked = jax.tree.leaves(ups[0], is_leaf=lambda node: isinstance(node, Ranked | Due | Unsent))
    assert all(isinstance(leaf, jax.Array) and leaf.dtype == jnp.float32 for leaf in marked)
    mean = jax.tree.map(lambda *leaves: sum(w * leaf for w, leaf in zip(WEIGHTS, leaves, strict=True)) / sum(WEIGHTS), *ups)
    after, _ = aggregated(algorithm, server, ups, WEIGHTS)
    alike, _ = aggregated(algorithm, server, [mean] * len(ups), WEIGHTS)
    assert_close(alike, after)
    unmoved, _ = trained_messages(algorithm, server, rows, move=still)
    assert all(np.abs(leaf).max(initial=0) <= 1e-5 for leaf in jax.tree.leaves(unmoved))


def test_the_server_takes_the_mean_of_what_messages_stand_for():
    algorithm, channel = sent("topk=0.3+int4", "fedit"), channel_of(ChannelOptions(channel="topk=0.3+int4"), "float32")
    server, rows = begun(algorithm)
    ups, rows = trained_messages(algorithm, server, rows, move=noise(1))
    after, metrics = aggregated(algorithm, server, ups, WEIGHTS)
    terms = [channel.combine(up) for up in ups]
    for name, factors in after.lora.items():
        for part in ("a", "b"):
            mean = np.average([np.asarray(getattr(term[name], part), "f8") for term in terms], axis=0, weights=WEIGHTS)
            np.testing.assert_allclose(getattr(factors, part), getattr(server.lora[name], part) + mean, atol=1e-5)
    assert metrics["aggregation_error"] > 0
    # What clients trained is what they sent and what they keep.
    plain, _ = trained_messages(made("fedit"), server, [{}] * 3, move=noise(1))
    for term, row, change in zip(terms, rows, plain, strict=True):
        assert_close(jax.tree.map(jnp.add, term, row.channel), change)
        assert int(row.sent) == 1


@functools.cache
def engine_round(devices, clients_per_step):
    """The second round of five clients, whose rows then hold what the first has not sent."""
    algorithm = sent("topk=0.3+int8")
    server = algorithm.submodel(
        algorithm.init_server(jax.random.key(3), CONFIG, Clients(9)), LayerMap.identity(CONFIG.layers)
    )
    bank = algorithm.init_bank(Clients(9), server)
    bank = jax.vmap(lambda row: algorithm.submodel_row(row, LayerMap.identity(CONFIG.layers)))(bank)
    cohort = engine(algorithm, devices=devices, clients_per_step=clients_per_step)
    one = run_round(cohort, server, FIVE, bank=bank)
    return run_round(cohort, one.server, FIVE, bank=one.bank_rows)


def test_any_chunks_and_devices_are_the_same_round():
    one, other = engine_round(1, 5), engine_round(2, 2)
    assert_close(other.server.lora, one.server.lora)
    assert_close(other.bank_rows, one.bank_rows)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(one.bank_rows.channel))
    entries = sum(leaf.size for leaf in jax.tree.leaves(one.server.lora))
    kept = int(0.3 * entries)
    assert one.bytes_up == other.bytes_up == 5 * (kept + 4 * -(-kept // 128) + -(-entries // 8))
    assert one.bytes_down == 5 * 4 * entries


def half_depth():
    """A map to two layers that all become zero, without any grouping to compute."""
    shapes = LayerMap.shapes(2, CONFIG.layers)
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


def test_what_a_channel_keeps_begins_anew_in_each_stage():
    algorithm, plain, layer_map = sent("int4", "fedsa-lora"), made("fedsa-lora"), half_depth()
    full, rows = first(algorithm)
    server, staged = stage_of(algorithm, full, rows, layer_map)
    ups, after = trained_messages(algorithm, server, staged, move=noise(2))
    own_ups, own_after = trained_messages(plain, server, [row.own for row in staged], move=noise(2))
    assert jax.tree.map(jnp.shape, staged[0].channel) == jax.tree.map(jnp.shape, own_ups[0])
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(staged[0].channel))
    assert all(np.any(leaf) for leaf in jax.tree.leaves(after[0].channel))
    assert_close(after[0].own, own_after[0])
    back = algorithm.transfer_row(rows[0], after[0], layer_map, "copy")
    assert not jax.tree.leaves(back.channel)
    assert int(back.sent) == 1
    assert_close(back.own, plain.transfer_row(rows[0].own, own_after[0], layer_map, "copy"))
    again = algorithm.submodel_row(back, layer_map)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(again.channel))
    assert_close(algorithm.personal(server, after[0]), plain.personal(server, own_after[0]))
    assert message_bytes(ups[0]) < message_bytes(own_ups[0]) / 5


@pytest.mark.parametrize("name", [name for name in ALGORITHMS if made(name).averages])
def test_what_is_kept_has_the_shapes_of_the_stages_messages(name):
    for layers in (2, CONFIG.layers):
        messages = round_messages(sent("int4", name), CONFIG, layers)
        wanted = round_messages(made(name), CONFIG, layers).up
        assert jax.tree.map(lambda leaf: leaf.shape, messages.participant.row.channel) == jax.tree.map(
            lambda leaf: leaf.shape, wanted
        )
        assert messages.bytes_up == sum(-(-leaf.size // 2) + 4 * -(-leaf.size // 128) for leaf in jax.tree.leaves(wanted))


def on_the_mean(step):
    """A channel whose server adds noise of deviation `step` to the mean, and counts its rounds."""

    def server(mean, state, key):
        leaves, structure = jax.tree.flatten(mean)
        keys = jax.random.split(key, len(leaves))
        noisy = [leaf + step * jax.random.normal(own, leaf.shape) for own, leaf in zip(keys, leaves, strict=True)]
        return jax.tree.unflatten(structure, noisy), state + 1, {"noise": jnp.float32(step)}

    client = lambda up, row, key: (up, row)  # noqa: E731
    return Channel("noise", client, init=lambda up: ({}, jnp.int32(0)), server=server)


@pytest.mark.parametrize("name", ["fedit", "fedadam", "fedsa-lora"])
def test_a_channel_may_act_on_the_mean(name):
    int8 = channel_of(ChannelOptions(channel="int8"), "float32")
    plain = through(int8, made(name))
    views = {}
    for step in (0.0, 0.1):
        algorithm = through(chain(int8, on_the_mean(step)), made(name))
        layer_map = LayerMap.identity(CONFIG.layers)
        full, rows = first(algorithm)
        server, rows = stage_of(algorithm, full, rows, layer_map)
        wanted, _ = stage_of(plain, full.own, rows, layer_map)
        views[step] = [server.own]
        # The channel's own error feedback is not its chain's: rows come from the chain.
        for seed in range(2):
            ups, rows = trained_messages(algorithm, server, rows, move=noise(seed))
            server, metrics = aggregated(algorithm, server, ups, WEIGHTS)
            wanted, _ = aggregated(plain, wanted, ups, WEIGHTS)
            assert metrics["noise"] == np.float32(step)
            views[step].append(server.own)
        assert int(server.rounds) == 2
        assert [int(state) for state in jax.tree.leaves(server.channel)] == [2]
        if step == 0.0:
            assert_close(server.own, wanted)
            assert_close(algorithm.view(server), plain.view(wanted))
        back = algorithm.transfer(full, server, layer_map, "copy")
        assert int(back.rounds) == 2
        assert not jax.tree.leaves(back.channel)
    if name == "fedit":
        noises = [
            np.asarray(noisy.lora["v"].b - quiet.lora["v"].b) for noisy, quiet in zip(views[0.1], views[0.0], strict=True)
        ]
        assert np.std(noises[1]) == pytest.approx(0.1, rel=0.3)
        # Each round draws anew.
        assert abs(np.corrcoef(noises[1].ravel(), (noises[2] - noises[1]).ravel())[0, 1]) < 0.4


@pytest.mark.parametrize("name", ["fedit", "fedsa-lora", "ffa-lora"])
def test_the_bytes_of_large_models_are_those_of_packed_leaves(name):
    plain, packed, sparse = (
        round_messages(algorithm_of(RunConfig(algorithm=name, channel=channel)), ARCHITECTURES[SEVEN_B], 8)
        for channel in ("none", "int8", "topk=0.1+int4")
    )
    leaves = [leaf.size for leaf in jax.tree.leaves(plain.up)]
    kept = sum(leaves) // 10
    assert plain.bytes_up == 4 * sum(leaves)
    assert packed.bytes_up == sum(size + 4 * -(-size // 128) for size in leaves)
    assert sparse.bytes_up == -(-kept // 2) + 4 * -(-kept // 128) + -(-sum(leaves) // 8)
    assert packed.bytes_down == sparse.bytes_down == plain.bytes_down


def test_it_learns_what_it_would_without_a_channel():
    """Over rounds in which clients move alike the model is the one without a channel, but for what is left."""
    algorithm, plain = sent("topk=0.2+int8", "fedit"), made("fedit")
    server, rows = begun(algorithm)
    wanted, own = begun(plain)
    for seed in range(8):
        ups, rows = trained_messages(algorithm, server, rows, move=noise(seed))
        server, _ = aggregated(algorithm, server, ups, WEIGHTS)
        ups, own = trained_messages(plain, wanted, own, move=noise(seed))
        wanted, _ = aggregated(plain, wanted, ups, WEIGHTS)
    left = jax.tree.map(
        lambda *leaves: sum(w * leaf for w, leaf in zip(WEIGHTS, leaves, strict=True)) / sum(WEIGHTS),
        *(row.channel for row in rows),
    )
    assert_close(jax.tree.map(jnp.add, server.lora, left), wanted.lora)
