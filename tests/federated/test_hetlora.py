"""HETLoRA: ranks of the clients' own, pruned by what their tails lose, and a mean by the norms of products."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from devft_jax.accounting.communication import message_elements, round_messages
from devft_jax.errors import InputError
from devft_jax.federated.algorithm import Clients, Share
from devft_jax.federated.algorithms import MethodConfig
from devft_jax.federated.algorithms.hetlora import hetlora
from devft_jax.federated.messages import Ranked, Unsent, message_bytes
from devft_jax.models.adapter import LoraFactors
from tests.federated.harness import (
    RATE,
    RESERVED,
    SGD,
    aggregated,
    assert_close,
    assert_identical,
    changed_to,
    client,
    contributed,
    engine,
    fedit_with,
    participant,
    plain_client,
    plain_sgd,
    poisoned_base,
    run_round,
    server_with,
    weighted_mean,
)
from tests.federated.test_fedit import LLAMA2_7B, LLAMA2_13B, LLAMA31_8B
from tests.tiny import CONFIG, random_adapter

FOUR = MethodConfig(rank=4, alpha=6.0, dropout=0.0, targets=("v", "down"), client_ranks=(4, 3, 1), rank_shrink=0.6)
AFTER_PRUNING = {4: 2, 3: 1, 1: 1}


def made(**changes):
    return hetlora(dataclasses.replace(FOUR, **changes))


def row(rank):
    return {"rank": jnp.int32(rank)}


def bank_of(*ranks):
    return {"rank": np.array(ranks, np.int32)}


def first_directions(lora, rank):
    """Factors cut to `rank` directions."""
    return {name: LoraFactors(a=each.a[..., :rank], b=each.b[:, :rank]) for name, each in lora.items()}


def padded(lora, most=4):
    """Factors filled up with zeros to rank `most`."""

    def one(factors):
        missing = most - factors.a.shape[-1]
        return LoraFactors(
            a=np.pad(factors.a, ((0, 0), (0, 0), (0, missing))), b=np.pad(factors.b, ((0, 0), (0, missing), (0, 0)))
        )

    return {name: one(factors) for name, factors in lora.items()}


def begun_with(lora):
    """The server's factors with their first directions exchanged for these."""

    def one(old, new):
        rank = new.a.shape[-1]
        return LoraFactors(a=old.a.at[..., :rank].set(new.a), b=old.b.at[:, :rank].set(new.b))

    return {name: one(old, lora[name]) for name, old in server_with(FOUR).lora.items()}


def upload(rank, seed, *, scale=1.0):
    lora = jax.tree.map(lambda leaf: scale * leaf, random_adapter(FOUR, seed=seed).lora)
    return sent(lora, rank)


def sent(lora, rank):
    """The message of a client that trained its directions to these."""
    change, arrived = (padded(first_directions(each, rank)) for each in (*changed_to([lora], server_with(FOUR).lora), lora))
    return Ranked(lora=change, rank=jnp.int32(rank), most=4), Unsent(arrived)


def product_norm(lora):
    """||a b||_F over all matrices, products written out."""
    return math.sqrt(sum(float(np.sum((np.array(each.a, "f8") @ np.array(each.b, "f8")) ** 2)) for each in lora.values()))


def tail(lora, first, rank):
    """The sum over matrices of the norms of their tails' factors, multiplied."""
    total = 0.0
    for each in lora.values():
        for a, b in zip(np.array(each.a, "f8"), np.array(each.b, "f8"), strict=True):
            total += float(np.linalg.norm(a[:, first:rank]) * np.linalg.norm(b[first:rank]))
    return total


def test_clients_have_their_ranks_in_turn():
    bank = made().init_bank(Clients(5), server_with(FOUR))
    np.testing.assert_array_equal(bank["rank"], [4, 3, 1, 4, 3])
    assert bank["rank"].dtype == jnp.int32
    np.testing.assert_array_equal(made(client_ranks=None).init_bank(Clients(3), server_with(FOUR))["rank"], [4, 4, 4])
    # A stage changes layers, not directions.
    algorithm = made()
    assert algorithm.submodel_row(row(3), None) == row(3)
    assert algorithm.transfer_row(row(4), row(3), None, "copy") == row(3)


def test_a_rank_above_the_adapters_is_refused():
    with pytest.raises(InputError, match=r"client_ranks 4,8,1 has a rank above rank 4; raise rank to the largest"):
        made(client_ranks=(4, 8, 1))


@pytest.mark.parametrize("rank", [4, 3, 1])
def test_a_client_receives_its_first_directions(rank):
    down = participant(made(), server_with(FOUR), row(rank)).down
    assert down.rank == rank
    assert_identical(down.lora, padded(first_directions(server_with(FOUR).lora, rank)))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(server_with(FOUR).lora))
    assert message_bytes(down, [rank]) == size * rank // 4 + 4


@pytest.mark.parametrize(
    ("rank", "dropout"),
    [(3, 0.25), *(pytest.param(*case, marks=pytest.mark.slow) for case in ((3, 0.0), (1, 0.0), (1, 0.25)))],
)
def test_a_masked_client_trains_as_one_of_its_own_rank(rank, dropout):
    algorithm = made(dropout=dropout, rank_penalty=0.0)
    member = client(2)
    found = run_round(engine(algorithm, SGD, 1, 1), server_with(FOUR), [member], bank=bank_of(9, 9, rank))
    # Its adapter has rank `rank`, and the common scale.
    own = MethodConfig(rank=rank, alpha=1.5 * rank, dropout=dropout, targets=FOUR.targets)
    start = first_directions(server_with(FOUR).lora, rank)
    trained, losses = plain_client(member, start, plain_sgd(), own)
    np.testing.assert_allclose(found.losses[0], losses, atol=1e-5)
    if tail(trained, AFTER_PRUNING[rank], rank) < tail(start, AFTER_PRUNING[rank], rank):
        trained = first_directions(trained, AFTER_PRUNING[rank])
    # The directions that nobody held are the server's.
    assert_close(found.server.lora, begun_with(trained))


@pytest.mark.parametrize("rank", [4, 3, 1])
def test_the_penalty_is_the_product_of_the_tails_norms(rank):
    algorithm = made(rank_penalty=0.3)
    train, frozen = algorithm.start(participant(algorithm, server_with(FOUR), row(rank)))
    first = AFTER_PRUNING[rank]
    assert algorithm.penalty(train, frozen) == pytest.approx(0.3 * tail(train, first, rank), rel=1e-5)
    gradient = jax.grad(algorithm.penalty)(train, frozen)
    for name, factors in gradient.items():
        a, b = np.array(train[name].a), np.array(train[name].b)
        norm_a, norm_b = (
            np.maximum(np.linalg.norm(part, axis=(1, 2), keepdims=True), 1e-30)
            for part in (a[..., first:rank], b[:, first:rank])
        )
        np.testing.assert_allclose(factors.a[..., first:rank], 0.3 * norm_b / norm_a * a[..., first:rank], rtol=1e-4)
        np.testing.assert_allclose(factors.b[:, first:rank], 0.3 * norm_a / norm_b * b[:, first:rank], rtol=1e-4)
        assert not np.any(factors.a[..., :first])
        assert not np.any(factors.b[:, rank:])


def test_the_penalty_has_a_gradient_where_everything_is_zero():
    algorithm = made()
    train, frozen = algorithm.start(participant(algorithm, server_with(FOUR), row(4)))
    for zero in (lambda each: each.replace(b=0 * each.b), lambda each: jax.tree.map(jnp.zeros_like, each)):
        at_zero = {name: zero(each) for name, each in train.items()}
        value, gradient = jax.value_and_grad(algorithm.penalty)(at_zero, frozen)
        assert value == 0
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient))


def scaled_tail(train, first, by):
    """Factors whose directions from `first` on are scaled in b."""
    return {name: each.replace(b=each.b.at[:, first:].multiply(by)) for name, each in train.items()}


@pytest.mark.parametrize("rank", [4, 3, 1])
@pytest.mark.parametrize("by", [0.5, 1.0, 2.0])
def test_a_client_prunes_a_tail_that_has_become_smaller(rank, by):
    algorithm = made()
    at_start = participant(algorithm, server_with(FOUR), row(rank))
    train, _ = algorithm.start(at_start)
    trained = scaled_tail(train, AFTER_PRUNING[rank], by)
    (up, arrived), new_row = algorithm.finish(at_start, trained)
    wanted = AFTER_PRUNING[rank] if by < 1 else rank
    assert new_row["rank"] == up.rank == wanted
    assert new_row["rank"].dtype == jnp.int32
    assert_close(arrived.value, padded(first_directions(trained, wanted)), atol=1e-6)
    change = jax.tree.map(jnp.subtract, trained, at_start.down.lora)
    assert_identical(up.lora, padded(first_directions(change, wanted)))


@given(rank=st.integers(1, 12), gamma=st.floats(0.01, 1.0))
def test_pruning_takes_at_least_one_direction_and_leaves_at_least_one(rank, gamma):
    options = MethodConfig(rank=12, alpha=1.0, dropout=0.0, targets=("v",), rank_shrink=gamma)
    algorithm = hetlora(options)
    lora = {name: each.replace(b=each.b + 1) for name, each in server_with(options).lora.items()}
    at_start = participant(algorithm, server_with(options).replace(lora=lora), row(rank))
    train, _ = algorithm.start(at_start)
    # Every tail shrinks, whichever it is.
    _, new_row = algorithm.finish(at_start, jax.tree.map(lambda leaf: 0.5 * leaf, train))
    after = int(new_row["rank"])
    assert after == (1 if rank == 1 else max(1, min(math.floor(gamma * rank), rank - 1)))


def test_a_rank_never_rises_over_rounds():
    algorithm = made(client_ranks=None)
    server, rank, ranks = server_with(FOUR), row(4), []
    for factor in (2.0, 0.9, 2.0, 0.9, 2.0, 0.9, 0.9):
        at_start = participant(algorithm, server, rank)
        train, _ = algorithm.start(at_start)
        up, rank = algorithm.finish(at_start, jax.tree.map(lambda leaf, by=factor: by * leaf, train))
        server, metrics = aggregated(algorithm, server, [up], [1.0])
        ranks.append(int(rank["rank"]))
        assert metrics["mean_rank"] == ranks[-1]
    assert ranks == [4, 2, 2, 1, 1, 1, 1]


@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [3.0, 11.0, 0.5]])
def test_clients_weigh_by_the_norm_of_their_product(weights):
    ups = [upload(4, 1), upload(3, 2, scale=2.0), upload(1, 3, scale=0.5)]
    server, metrics = aggregated(made(), server_with(FOUR), ups, weights)
    # Uniform unless a run weighs by examples, which then multiply.
    by_norm = [weight * product_norm(up[1].value) for weight, up in zip(weights, ups, strict=True)]
    assert_close(server.lora, weighted_mean([up[1].value for up in ups], by_norm))
    assert metrics["mean_rank"] == pytest.approx(np.average([4, 3, 1], weights=weights))
    assert made().weighting == "uniform"


def test_where_all_products_are_zero_the_mean_is_plain():
    trees = [random_adapter(FOUR, seed=index).lora for index in range(3)]
    zero = [{name: each.replace(b=jnp.zeros_like(each.b)) for name, each in tree.items()} for tree in trees]
    ups = [sent(lora, 4) for lora in zero]
    server, metrics = aggregated(made(), server_with(FOUR), ups, [1.0] * 3)
    assert_close(server.lora, weighted_mean(zero, [1.0] * 3))
    assert all(np.isfinite(value) for value in metrics.values())
    # Beside a client that has a product the others do not count.
    server, _ = aggregated(made(), server_with(FOUR), [*ups, upload(3, 7)], [1.0] * 4)
    assert_close(server.lora, upload(3, 7)[1].value)


def test_equal_clients_are_fedits():
    up = upload(4, 5)
    server, _ = aggregated(made(), server_with(FOUR), [up, up, up], [1.0] * 3)
    federated, _ = aggregated(fedit_with(FOUR), server_with(FOUR), [up[0].lora] * 3, [1.0] * 3)
    assert_close(server, federated)


def test_padding_adds_nothing_and_sums_are_float32():
    up = jax.tree.map(lambda leaf: leaf if leaf.ndim == 0 else leaf.astype("bfloat16"), upload(3, 1))
    sums = made(message_dtype="bfloat16").contribution(up, Share(jnp.float32(1.0), jnp.int32(0)))
    assert {leaf.dtype for leaf in jax.tree.leaves(sums)} == {jnp.dtype("float32")}
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(contributed(made(), [upload(3, 1)], [0.0])))


def test_a_round_of_different_ranks():
    algorithm = made(rank_penalty=0.0)
    # Three at a time, so that two are padding; the last one's loss is NaN.
    members = [client(0, weight=1.0), client(1, weight=1.0), client(2, weight=1.0), client(4, weight=1.0, pool=RESERVED)]
    bank = bank_of(4, 3, 1, 4, 3)
    whole = engine(algorithm, SGD, 1, 3)
    found = run_round(whole, server_with(FOUR), members, bank=bank, base=poisoned_base())
    assert found.finite.tolist() == [True, True, True, False]
    assert found.bank_rows["rank"][3] == 3
    trained = []
    for member, rank in zip(members[:3], (4, 3, 1), strict=True):
        start = first_directions(server_with(FOUR).lora, rank)
        own = dataclasses.replace(FOUR, rank=rank, alpha=1.5 * rank)
        lora, _ = plain_client(member, start, plain_sgd(RATE), own)
        after = AFTER_PRUNING[rank]
        kept = after if tail(lora, after, rank) < tail(start, after, rank) else rank
        assert found.bank_rows["rank"][members.index(member)] == kept
        trained.append(padded(first_directions(lora, kept)))
    assert_close(found.server.lora, weighted_mean(trained, [product_norm(lora) for lora in trained]))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(server_with(FOUR).lora)) // 4
    assert found.bytes_down == (4 + 3 + 1 + 3) * size + 4 * 4
    assert found.bytes_up == int(found.bank_rows["rank"].sum()) * size + 4 * 4


def test_a_round_that_prunes_sends_less():
    # The penalty outweighs the loss, so that every tail shrinks.
    members = [client(0), client(1), client(2)]
    found = run_round(engine(made(rank_penalty=50.0), SGD, 1, 3), server_with(FOUR), members, bank=bank_of(4, 3, 1))
    np.testing.assert_array_equal(found.bank_rows["rank"], [2, 1, 1])
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(server_with(FOUR).lora)) // 4
    assert (found.bytes_down, found.bytes_up) == (8 * size + 3 * 4, 4 * size + 3 * 4)
    assert_close(found.server.lora["v"].a[..., 2:], server_with(FOUR).lora["v"].a[..., 2:])
    # What is reported is the loss of the task alone.
    free = run_round(engine(made(rank_penalty=0.0), SGD, 1, 3), server_with(FOUR), members, bank=bank_of(4, 3, 1))
    np.testing.assert_allclose(found.losses[:, 0], free.losses[:, 0], atol=1e-5)


@pytest.mark.parametrize("model", [LLAMA2_7B, LLAMA31_8B, LLAMA2_13B], ids=["llama2-7b", "llama3.1-8b", "llama2-13b"])
@pytest.mark.parametrize("rank", [32, 8, 5])
def test_bytes_of_the_papers_models(model, rank):
    options = MethodConfig(rank=32, alpha=64.0, targets=("q", "v"), message_dtype="bfloat16", client_ranks=(rank,))
    ours, fedits = (
        round_messages(make, model, model.layers) for make in (hetlora(options), fedit_with(options, "bfloat16"))
    )
    wanted = 2 * message_elements(fedits.up) * rank // 32 + 4
    assert message_bytes(ours.participant.down, [rank]) == message_bytes(ours.up, [rank]) == wanted


def test_the_model_is_of_the_largest_rank():
    assert made().view(server_with(FOUR)).lora["down"].a.shape == (CONFIG.layers, CONFIG.feed_forward, 4)
