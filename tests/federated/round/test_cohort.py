"""The compiled round: a plain loop's result for any chunks and devices, and no base weight per client."""

import dataclasses
import functools
import re
from collections import Counter

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from jax.sharding import Mesh

from devft_jax.config.execution import ExecutionOptions, resolve_clients_per_step
from devft_jax.federated.algorithm import Algorithm, Clients
from devft_jax.federated.algorithms import MethodConfig
from devft_jax.federated.algorithms.fedit import fedit
from devft_jax.federated.local import Passes
from devft_jax.federated.options import OptimizerOptions
from devft_jax.federated.round import assembly
from devft_jax.federated.round import client as client_module
from devft_jax.federated.round.chunk import chunk_shapes, make_chunk, zero_sums
from devft_jax.federated.round.client import LocalTraining, participant_shapes, uplink_shapes
from devft_jax.federated.round.cohort import Cohort
from devft_jax.federated.round.server import broadcast_of
from devft_jax.models.adapter import LoraFactors
from devft_jax.models.architecture import PROJECTIONS, ModelConfig
from devft_jax.models.base import Base
from devft_jax.models.llama import Compute
from devft_jax.models.loss import completion_loss
from devft_jax.models.sharding import placed_shapes, shard_base
from devft_jax.runtime.compiled import CompiledPrograms
from devft_jax.runtime.devices import MODEL_AXIS, client_mesh
from tests.federated.harness import (
    BUCKETS,
    DROPOUT,
    EXAMPLES,
    FIVE,
    LONG,
    RATE,
    RESERVED,
    SEVEN,
    SGD,
    STEPS,
    TWO,
    WHOLE,
    assemble,
    assert_close,
    assert_identical,
    client,
    engine,
    fedit_with,
    init,
    largest_change,
    plain_client,
    plain_round,
    plain_sgd,
    poisoned_base,
    run_round,
    server_with,
)
from tests.tiny import CONFIG, random_base

# ---------------------------------------------------------------------------------------------------
# Equality with the plain loop


@functools.cache
def mixed_round_by_hand():
    """Five clients with dropout, the third with examples of a longer bucket, in the plain loop."""
    members = [*FIVE[:2], client(2, pool=LONG), *FIVE[3:]]
    return members, plain_round(members, server_with(DROPOUT).lora, plain_sgd(), DROPOUT)


@pytest.mark.parametrize(
    ("devices", "asked", "passes"),
    [(1, 1, Passes(1, BUCKETS)), (2, 3, Passes(2, BUCKETS)), (8, 1, WHOLE)],
)
def test_a_round_is_the_plain_loop_for_any_chunk_devices_and_passes(devices, asked, passes):
    members, (lora, losses) = mixed_round_by_hand()
    start = server_with(DROPOUT)
    size = resolve_clients_per_step(
        ExecutionOptions(clients_per_step=asked), jax.local_devices()[:devices], len(members), 1.0
    )
    result = run_round(engine(fedit_with(DROPOUT), SGD, devices, size, passes), start, members)
    assert_close(result.server.lora, lora)
    np.testing.assert_allclose(result.losses, losses, rtol=1e-5)
    assert result.finite.all()
    # The round has moved every leaf by far more than the tolerance.
    assert all(
        np.abs(new - old).max() > 1e-2 for new, old in zip(jax.tree.leaves(lora), jax.tree.leaves(start.lora), strict=True)
    )


def test_participants_of_like_work_share_a_chunk_and_are_dealt_to_its_devices(monkeypatch):
    tokens = [3, 10, 1, 9, 2, 8, 4, 7, 5, 6, 11]
    members = [dataclasses.replace(FIVE[0], position=n, lengths=np.array([[many]])) for n, many in enumerate(tokens)]
    monkeypatch.setattr(assembly, "CHUNKS_SORTED", 2)
    groups = list(assembly.groups(members, 4, devices=2))
    assert [[member.position for member in chosen] for _, chosen in groups] == [slots.tolist() for slots, _ in groups]
    # Eight are sorted together; a device has every second of a chunk's. What is left over is as it comes.
    assert [[tokens[slot] for slot in slots] for slots, _ in groups] == [[10, 8, 9, 7], [4, 2, 3, 1], [11, 6, 5]]


def test_a_round_without_dropout_is_the_plain_loop():
    lora, losses = plain_round(FIVE, server_with().lora, plain_sgd())
    result = run_round(engine(fedit_with()), server_with(), FIVE)
    assert_close(result.server.lora, lora)
    np.testing.assert_allclose(result.losses, losses, rtol=1e-5)


def test_a_program_compiled_as_in_a_real_run_is_the_plain_loop(full_optimisation):
    lora, losses = plain_round(FIVE, server_with().lora, plain_sgd())
    result = run_round(engine(fedit_with(), SGD, 1, 3), server_with(), FIVE)
    assert_close(result.server.lora, lora)
    np.testing.assert_allclose(result.losses, losses, rtol=1e-5)


def test_all_seven_projections_train_as_in_the_plain_loop():
    members = FIVE[:3]
    start = server_with(SEVEN)
    lora, _ = plain_round(members, start.lora, plain_sgd(), SEVEN)
    result = run_round(engine(fedit_with(SEVEN), SGD, 2, 2), start, members)
    assert set(result.server.lora) == set(PROJECTIONS)
    assert_close(result.server.lora, lora)
    assert all(largest_change(lora[name], start.lora[name]) > 1e-3 for name in PROJECTIONS)


# With an epsilon far above the gradients AdamW's step is nearly linear in them. At 1e-8 it is their sign, and rounding
# errors in tiny gradients would become whole steps.
ADAMW = OptimizerOptions(optimizer="adamw", epsilon=1.0, weight_decay=0.1, clip_norm=0.5)


def test_adamw_is_the_plain_loop():
    rule = optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(RATE, eps=1.0, weight_decay=0.1))
    lora, losses = plain_round(FIVE, server_with().lora, rule)
    result = run_round(engine(fedit_with(), ADAMW), server_with(), FIVE)
    assert_close(result.server.lora, lora)
    np.testing.assert_allclose(result.losses, losses, rtol=1e-5)


# ---------------------------------------------------------------------------------------------------
# Who takes part


def test_the_order_of_clients_changes_nothing():
    members = [client(position) for position in range(7)]
    rounds = engine(fedit_with())
    straight = run_round(rounds, server_with(), members)
    order = np.array([4, 6, 0, 2, 5, 1, 3])
    shuffled = run_round(rounds, server_with(), [members[index] for index in order])
    assert_close(shuffled.server.lora, straight.server.lora, atol=1e-6)
    np.testing.assert_allclose(shuffled.losses, straight.losses[order], rtol=1e-6)
    np.testing.assert_allclose(shuffled.update_norms, straight.update_norms[order], rtol=1e-5)


@pytest.mark.parametrize("count", [1, 2, 7])
def test_padding_a_cohort_gives_no_one_else_a_weight(count):
    members = [client(position) for position in range(10, 10 + count)]
    lora, _ = plain_round(members, server_with().lora, plain_sgd())
    result = run_round(engine(fedit_with()), server_with(), members)
    assert_close(result.server.lora, lora)
    assert result.losses.shape == (count, STEPS)
    assert result.finite.shape == result.update_norms.shape == (count,)


def test_identical_clients_aggregate_to_that_client():
    twins = [dataclasses.replace(FIVE[0], weight=weight) for weight in (1.0, 7.0, 2.5)]
    alone, _ = plain_client(FIVE[0], server_with().lora, plain_sgd())
    result = run_round(engine(fedit_with()), server_with(), twins)
    assert_close(result.server.lora, alone, atol=1e-6)
    assert result.metrics["aggregation_error"] < 1e-5


def test_zero_learning_rate_returns_the_start():
    result = run_round(engine(fedit_with()), server_with(), FIVE, lr=0.0)
    assert_close(result.server.lora, server_with().lora, atol=1e-6)
    np.testing.assert_array_equal(result.update_norms, 0)
    assert result.metrics["update_norm"] < 1e-5


# ---------------------------------------------------------------------------------------------------
# Messages


@pytest.mark.parametrize(("message_dtype", "size"), [("float32", 4), ("bfloat16", 2)])
def test_bytes_are_those_of_every_participants_message(message_dtype, size):
    result = run_round(engine(fedit_with(TWO, message_dtype)), server_with(), FIVE)
    elements = sum(CONFIG.layers * TWO.rank * sum(CONFIG.projection_shape(name)) for name in TWO.targets)
    assert result.bytes_up == result.bytes_down == size * elements * len(FIVE)
    lengths = [length for member in FIVE for length in EXAMPLES.lengths[member.examples].ravel().tolist()]
    assert result.examples_by_length == Counter(lengths)


def test_bfloat16_messages_accumulate_in_float32():
    members = [dataclasses.replace(FIVE[0], weight=1.0)] * 300
    cohort, before = engine(fedit_with(TWO, "bfloat16")), server_with()
    alone, together = (run_round(cohort, before, some).server.lora["v"].a for some in (members[:1], members))
    # The mean of equal messages is the message.
    np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-7)
    # The same sum in the messages' own precision fails that by far.
    message = np.asarray(alone - before.lora["v"].a).astype(ml_dtypes.bfloat16)
    assert message.all()
    total = np.zeros_like(message)
    for _ in range(60):
        total += message * ml_dtypes.bfloat16(5)
    coarse = total.astype(np.float32) / 300
    assert np.max(np.abs(coarse / message.astype(np.float32) - 1)) > 1e-3


def test_an_update_that_overflows_its_message_is_dropped():
    # One step at this rate leaves factors of about 1e6: finite in float32, infinite in float16.
    members = [client(position, steps=1) for position in range(3)]
    result = run_round(engine(fedit_with(TWO, "float16")), server_with(), members, lr=1e7)
    assert np.isfinite(result.losses).all()
    assert np.isfinite(result.update_norms).all()
    assert not result.finite.any()
    assert_identical(result.server, server_with())


# ---------------------------------------------------------------------------------------------------
# Clients that break


@pytest.mark.parametrize(("devices", "clients_per_step"), [(1, 5), (8, 8)])
def test_a_client_whose_loss_is_nan_is_dropped_and_named(devices, clients_per_step):
    broken = client(9, pool=RESERVED)
    rounds = engine(fedit_with(), SGD, devices, clients_per_step)
    result = run_round(rounds, server_with(), [*FIVE[:2], broken, *FIVE[2:4]], base=poisoned_base())
    without = run_round(rounds, server_with(), FIVE[:4], base=poisoned_base())
    np.testing.assert_array_equal(result.finite, [True, True, False, True, True])
    assert np.isnan(result.losses[2]).all()
    assert_close(result.server.lora, without.server.lora, atol=1e-6)
    assert result.metrics == pytest.approx(without.metrics, rel=1e-3)
    assert largest_change(result.server.lora, server_with().lora) > 1e-2


def test_a_round_of_broken_clients_leaves_the_server_as_it_was():
    members = [client(position, pool=RESERVED) for position in range(3)]
    result = run_round(engine(fedit_with()), server_with(), members, base=poisoned_base())
    assert not result.finite.any()
    assert result.metrics == {}
    assert_identical(result.server, server_with())


# ---------------------------------------------------------------------------------------------------
# State that clients keep


@functools.cache
def personal_b() -> Algorithm:
    """FedIT whose clients keep their own b and count their rounds: the smallest algorithm with a bank."""
    shared = fedit_with()

    def start(client):
        lora, frozen = shared.start(client)
        return {name: LoraFactors(a=lora[name].a, b=client.row["b"][name]) for name in lora}, frozen

    def finish(client, train):
        up, _ = shared.finish(client, train)
        return up, {"b": {name: train[name].b for name in train}, "rounds": client.row["rounds"] + 1}

    def traits(clients):
        rng = np.random.default_rng(8)
        own = {
            name: rng.normal(size=(clients.size, *factors.b.shape)).astype(np.float32)
            for name, factors in server_with().lora.items()
        }
        return {"b": own, "rounds": np.zeros(clients.size, np.int32)}

    return dataclasses.replace(shared, start=start, finish=finish, traits=traits)


def own_start(bank, member):
    """What a client of `personal_b` starts from."""
    return {
        name: LoraFactors(a=factors.a, b=jnp.asarray(bank["b"][name][member.position]))
        for name, factors in server_with().lora.items()
    }


@pytest.mark.parametrize(("devices", "clients_per_step"), [(1, 2), (8, 8)])
def test_a_bank_row_follows_its_client_and_no_other(devices, clients_per_step):
    members = [client(position) for position in (7, 2, 5)]
    bank = personal_b().init_bank(Clients(9), server_with())
    before = jax.tree.map(np.copy, bank)
    rounds = engine(personal_b(), SGD, devices, clients_per_step)
    result = run_round(rounds, server_with(), members, bank=bank)
    assert_identical(bank, before)
    np.testing.assert_array_equal(result.bank_rows["rounds"], [1, 1, 1])
    for index, member in enumerate(members):
        trained, losses = plain_client(member, own_start(bank, member), plain_sgd())
        own = {name: leaf[index] for name, leaf in result.bank_rows["b"].items()}
        assert_close(own, {name: factors.b for name, factors in trained.items()})
        np.testing.assert_allclose(result.losses[index], losses, rtol=1e-5)


def test_the_row_of_a_broken_client_is_untouched():
    members = [client(4), client(1, pool=RESERVED)]
    bank = personal_b().init_bank(Clients(9), server_with())
    rounds = engine(personal_b(), SGD, 1, 2)
    result = run_round(rounds, server_with(), members, bank=bank, base=poisoned_base())
    np.testing.assert_array_equal(result.finite, [True, False])
    row = jax.tree.map(lambda leaf: leaf[1], result.bank_rows)
    assert_identical(row, jax.tree.map(lambda leaf: leaf[1], bank))
    assert result.bank_rows["rounds"][0] == 1


# ---------------------------------------------------------------------------------------------------
# Layers that do not learn


def test_rows_that_do_not_learn_leave_the_client_as_they_came():
    learn = np.array([False, True, False, True])
    # The bank holds what a client trained, before any mean is taken.
    members, bank = [client(4), client(1)], personal_b().init_bank(Clients(9), server_with())
    result = run_round(engine(personal_b(), SGD, 1, 2), server_with(), members, bank=bank, train_rows=learn)
    for name, rows in result.bank_rows["b"].items():
        start = np.asarray(bank["b"][name])[[4, 1]]
        assert_identical(rows[:, ~learn], start[:, ~learn])
        assert (np.abs(rows - start)[:, learn].max(axis=(2, 3)) > 1e-3).all()


def test_weight_decay_moves_no_row_that_does_not_learn():
    learn = np.array([False, True, False, True])
    result = run_round(engine(fedit_with(), ADAMW), server_with(), FIVE, train_rows=learn)
    for name, old in server_with().lora.items():
        new = result.server.lora[name]
        # The weighted mean of equal values may round; `inherit` keeps such rows of the full model bit for bit.
        np.testing.assert_allclose(new.a[~learn], old.a[~learn], rtol=1e-6)
        assert (np.abs(new.a - old.a)[learn].max(axis=(1, 2)) > 1e-3).all()


# ---------------------------------------------------------------------------------------------------
# The compiled program

# No two sizes coincide, so that a shape in the program tells what it holds. k and v are narrower than q.
DISTINCT = ModelConfig(vocabulary=52, width=28, feed_forward=44, layers=3, heads=4, kv_heads=2, head_size=6)
PER_DEVICE = 5
ALL_RANK_3 = MethodConfig(rank=3, alpha=3.0, dropout=0.0, targets=PROJECTIONS)


def chunk_arguments(algorithm: Algorithm, config: ModelConfig, mesh: Mesh, dtype="float32"):
    """Shapes of a chunk's inputs and sums: 5 clients per device, 2 steps of 2 rows of 10 tokens."""
    server = jax.eval_shape(lambda: init(algorithm, config=config))
    base = jax.eval_shape(lambda: jax.tree.map(lambda leaf: leaf.astype(dtype), random_base(config)))
    broadcast = jax.eval_shape(functools.partial(broadcast_of, algorithm), server)
    up = uplink_shapes(algorithm, participant_shapes(algorithm, broadcast, {}))
    base = placed_shapes(shard_base(base, mesh.shape[MODEL_AXIS], MODEL_AXIS), mesh)
    batch = jax.ShapeDtypeStruct((2, 2, 10), "int32"), jax.ShapeDtypeStruct((2, 2, 10), "bool")
    learning = jax.ShapeDtypeStruct((config.layers,), "bool")
    inputs = chunk_shapes(mesh, base, broadcast, {}, batch, learning, clients=PER_DEVICE * mesh.size)
    return inputs, jax.eval_shape(lambda: zero_sums(algorithm, up, mesh.size))


def chunk_program(devices: int, options: MethodConfig, compute: Compute):
    """The chunk as it would be jitted, and its arguments' shapes."""
    algorithm = fedit_with(options)
    mesh = client_mesh(jax.local_devices()[:devices])
    chunk = make_chunk(LocalTraining(algorithm, DISTINCT, compute, OptimizerOptions(), Passes(1, (5, 10))), mesh)
    return jax.jit(chunk), chunk_arguments(algorithm, DISTINCT, mesh, compute.dtype)


def per_client_copies(program: str) -> set[tuple[int, ...]]:
    """Shapes in an optimised program that hold a base weight once for each of a device's clients."""
    weights = {DISTINCT.projection_shape(name) for name in PROJECTIONS}
    weights |= {(DISTINCT.vocabulary, DISTINCT.width), (DISTINCT.width, DISTINCT.vocabulary)}
    copies = set()
    for fan_in, fan_out in weights:
        copies |= {
            (PER_DEVICE, fan_in, fan_out),
            (PER_DEVICE * fan_in, fan_out),
            (fan_in, PER_DEVICE * fan_out),
        }
    shapes = {tuple(map(int, match.split(","))) for match in re.findall(r"\w\[([\d,]+)\]", program)}
    return {shape for shape in shapes if any(not Counter(copy) - Counter(shape) for copy in copies)}


def test_the_program_holds_no_base_weight_per_client_and_no_collective():
    chunk, arguments = chunk_program(8, ALL_RANK_3, Compute())
    program = chunk.lower(*arguments).compile().as_text()
    assert per_client_copies(program) == set()
    # What is looked for would be seen: the clients' factors are there in that form.
    assert f"[{PER_DEVICE},28,3]" in program
    assert not re.search(r"all-reduce|all-gather|reduce-scatter|all-to-all|collective-", program)


def test_a_merged_adapter_would_be_seen_as_a_copy_per_client(monkeypatch):
    def merged_loss(config, base: Base, adapter, tokens, mask, **rest):
        merged = {
            name: getattr(base.blocks, name) + adapter.scale * factors.a @ factors.b
            for name, factors in adapter.lora.items()
        }
        base = base.replace(blocks=base.blocks.replace(**merged))
        return completion_loss(config, base, None, tokens, mask, **rest)

    monkeypatch.setattr(client_module, "completion_loss", merged_loss)
    chunk, arguments = chunk_program(1, ALL_RANK_3, Compute())
    copies = per_client_copies(chunk.lower(*arguments).compile().as_text())
    for name in PROJECTIONS:
        wanted = Counter((PER_DEVICE, *DISTINCT.projection_shape(name)))
        assert any(not wanted - Counter(shape) for shape in copies)


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_the_chunk_lowers_for_accelerators(platform):
    options = MethodConfig(rank=3, alpha=3.0, dropout=0.1, targets=("q", "down"))
    compute = Compute(dtype="bfloat16", remat="dots", head_rows=20)
    chunk, arguments = chunk_program(8, options, compute)
    exported = jax.export.export(chunk, platforms=[platform])(*arguments)
    assert exported.platforms == (platform,)
    assert exported.nr_devices == 8


def test_what_a_clients_program_is_made_of_is_a_key():
    one, same, other = (
        LocalTraining(fedit_with(), CONFIG, Compute(remat=remat), SGD, Passes(1, (5, 10)))
        for remat in ("dots", "dots", "full")
    )
    assert one == same
    assert hash(one) == hash(same)
    assert one != other


def test_one_program_per_shape_of_a_chunk():
    programs = CompiledPrograms()
    rounds = Cohort(
        # An algorithm of its own, of which no other test has compiled anything.
        LocalTraining(fedit(TWO), CONFIG, Compute(), SGD, WHOLE),
        devices=jax.local_devices()[:1],
        clients_per_step=5,
        assemble=assemble,
        programs=programs,
    )
    result = run_round(rounds, server_with(), FIVE)
    # Broadcast, zero sums, chunk and finalize.
    assert programs.count == 4
    result = run_round(rounds, result.server, [client(8), client(9), client(10)], lr=0.1)
    result = run_round(rounds, result.server, FIVE, train_rows=np.arange(CONFIG.layers) != 1)
    assert programs.count == 4
    # Layers below the lowest that learns are compiled without a backward pass.
    result = run_round(rounds, result.server, FIVE, train_rows=np.arange(CONFIG.layers) > 1)
    assert programs.count == 5
    longer = [client(position, pool=LONG) for position in range(5)]
    run_round(rounds, result.server, [*longer, *FIVE[:2]])
    # Longer examples are no other shape.
    assert programs.count == 5
    assert programs.seconds > 0


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_a_participant_without_weight_is_an_error_and_never_nan(weight):
    with pytest.raises(ValueError, match=f"the weight {weight} of the client at position 3 is not positive"):
        run_round(engine(fedit_with()), server_with(), [client(1), client(3, weight=weight)])
