"""RoLoRA: the factors are trained in turn, b first, and each message holds what its receiver lacks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from devft_jax.accounting.communication import round_messages
from devft_jax.developmental import LayerMap
from devft_jax.federated.algorithms import MethodConfig
from devft_jax.federated.algorithms.ffa_lora import ffa_lora
from devft_jax.federated.algorithms.rolora import rolora
from devft_jax.federated.messages import bytes_of_rounds, message_bytes, ranks_of
from devft_jax.federated.options import OptimizerOptions
from tests.federated.harness import (
    FIVE,
    aggregated,
    assert_close,
    assert_identical,
    engine,
    init,
    largest_change,
    participant,
    run_round,
    trained_messages,
)
from tests.federated.records import noise
from tests.tiny import CONFIG, random_adapter

OPTIONS = MethodConfig(rank=2, alpha=3.0, dropout=0.0, targets=("v", "down"), clients_per_round=5)
ADAMW = OptimizerOptions(weight_decay=0.1)

made = functools.cache(rolora)


def part(adapter, name):
    return {projection: getattr(factors, name) for projection, factors in adapter.lora.items()}


def bank(algorithm, server, clients=5):
    row = algorithm.submodel_row(algorithm.init_row(server, {}), LayerMap.identity(4))
    return jax.tree.map(lambda leaf: np.full((clients,), leaf), row)


def test_b_trains_first_as_in_ffa_lora_and_then_a_alone():
    algorithm = made(OPTIONS)
    server = init(algorithm)
    size = {name: sum(4 * leaf.size for leaf in part(server.adapter, name).values()) for name in ("a", "b")}
    first = run_round(engine(algorithm, ADAMW), server, FIVE, bank=bank(algorithm, server), lr=0.01)
    assert_identical(part(first.server.adapter, "a"), part(server.adapter, "a"))
    # FFA-LoRA's weights of examples and frozen a are the same.
    frozen = run_round(engine(ffa_lora(OPTIONS), ADAMW), server.adapter, FIVE, lr=0.01)
    assert_close(part(first.server.adapter, "b"), part(frozen.server, "b"), atol=1e-6)
    assert (first.bytes_up, first.bytes_down) == (5 * size["b"], 5 * (size["a"] + size["b"]))
    second = run_round(engine(algorithm, ADAMW), first.server, FIVE, bank=first.bank_rows, lr=0.01)
    assert_identical(part(second.server.adapter, "b"), part(first.server.adapter, "b"))
    assert largest_change(part(second.server.adapter, "a"), part(first.server.adapter, "a")) > 1e-3
    # Everyone took part in the round before, which changed b alone.
    assert (second.bytes_up, second.bytes_down) == (5 * size["a"], 5 * size["b"])
    up = round_messages(algorithm, CONFIG, 4).up
    assert [bytes_of_rounds(up, rounds) for rounds in (1, 2, 5)] == [
        rounds_of_b * size["b"] + rounds_of_a * size["a"] for rounds_of_b, rounds_of_a in ((1, 0), (1, 1), (3, 2))
    ]


def test_a_client_that_missed_a_round_receives_both_factors():
    algorithm = made(OPTIONS)
    server = init(algorithm).replace(adapter=random_adapter(OPTIONS), age=jnp.int32(3))
    for current, sent in ((3, (False, True)), (2, (True, True)), (-1, (True, True))):
        down = participant(algorithm, server, {"current": jnp.int32(current)}).down
        # Round 2, the one before, has changed b.
        assert tuple(bool(due) for due in ranks_of(down)) == sent
        size = {name: sum(4 * leaf.size for leaf in part(server.adapter, name).values()) for name in ("a", "b")}
        assert message_bytes(down, ranks_of(down)) == sent[0] * size["a"] + sent[1] * size["b"]
    # Round 3 trains a, and the client is up to date in round 4.
    ups, [row] = trained_messages(algorithm, server, [{"current": jnp.int32(3)}], move=noise(1))
    assert tuple(bool(due) for due in ranks_of(ups[0])) == (True, False)
    assert row == {"current": 4}


def test_every_round_gives_the_mean_of_the_products():
    algorithm, weights = made(OPTIONS), np.array([3.0, 11.0, 0.5])
    server = init(algorithm).replace(adapter=random_adapter(OPTIONS))
    for age in (0, 1):
        rows = [{"current": jnp.int32(-1)}] * 3
        old = server.adapter.lora
        ups, _ = trained_messages(algorithm, server, rows, move=noise(age))
        server, _ = aggregated(algorithm, server, ups, weights)
        for name, factors in server.adapter.lora.items():
            moved = [noise(age)(who, getattr(old[name], "ba"[age])) for who in range(3)]
            pairs = [(old[name].a, each) if age == 0 else (each, old[name].b) for each in moved]
            products = [np.asarray(a, "f8") @ np.asarray(b, "f8") for a, b in pairs]
            found = np.asarray(factors.a, "f8") @ np.asarray(factors.b, "f8")
            np.testing.assert_allclose(found, np.average(products, axis=0, weights=weights), atol=1e-5)
    assert int(server.age) == 2


def test_a_stage_begins_with_b_and_messages_of_both():
    algorithm, identity = made(OPTIONS), LayerMap.identity(4)
    server = init(algorithm).replace(adapter=random_adapter(OPTIONS), age=jnp.int32(3))
    full = algorithm.transfer(init(algorithm), server, identity, "copy")
    assert_identical(full.adapter, server.adapter)
    again, row = algorithm.submodel(full, identity), algorithm.submodel_row({"current": jnp.int32(3)}, identity)
    assert (int(again.age), int(row["current"])) == (0, -1)
    ups, _ = trained_messages(algorithm, again, [row], move=noise(1))
    assert tuple(bool(due) for due in ranks_of(ups[0])) == (False, True)
