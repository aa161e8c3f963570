"""What the tests of the engine share: a population, rounds through `Cohort`, and the same rounds in a plain loop."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from devft_jax.data import Examples, gather_batch
from devft_jax.federated.algorithm import Algorithm, Clients, Participant, Share
from devft_jax.federated.algorithms import MethodConfig
from devft_jax.federated.algorithms.fedit import fedit
from devft_jax.federated.local import Passes
from devft_jax.federated.options import OptimizerOptions
from devft_jax.federated.round.client import LocalTraining, participant_of
from devft_jax.federated.round.cohort import Cohort
from devft_jax.federated.round.results import RoundResult
from devft_jax.federated.round.server import broadcast_of
from devft_jax.federated.sampling import client_keys
from devft_jax.federated.work import ClientWork
from devft_jax.models.adapter import Adapter
from devft_jax.models.architecture import PROJECTIONS, ModelConfig
from devft_jax.models.base import Base
from devft_jax.models.llama import Compute, forward
from devft_jax.models.options import LoraOptions
from devft_jax.runtime.compiled import CompiledPrograms
from devft_jax.runtime.devices import client_mesh
from devft_jax.storage.rows import Rows
from devft_jax.training.replay import StepReport, replay_client
from tests.tiny import (
    CONFIG,
    RESERVED_TOKEN,
    examples_from,
    random_adapter,
    random_base,
    random_examples,
)

STEPS, BATCH = 3, 2
SEED, ROUND = 5, 2
RATE = 0.3
SGD = OptimizerOptions(optimizer="sgd", clip_norm=1.0)
BASE = random_base()

# Two projections that are not square keep compilation short; SEVEN and DROPOUT are for the tests that need them.
TWO = MethodConfig(rank=2, alpha=3.0, dropout=0.0, targets=("v", "down"))
SEVEN = MethodConfig(rank=2, alpha=3.0, dropout=0.0, targets=PROJECTIONS)
DROPOUT = MethodConfig(rank=2, alpha=3.0, dropout=0.25, targets=("v", "down"))

# Examples 0..59 have up to 8 tokens, 60..79 have 13, 80 and 81 hold the reserved token.
SHORT, LONG, RESERVED = slice(0, 60), slice(60, 80), slice(80, 82)
BUCKETS = (8, 16)
# A step in one pass of one length, which is quick to compile.
WHOLE = Passes(BATCH, BUCKETS[-1:])


def _examples() -> Examples:
    rows: list[list[int]] = []
    prompts: list[int] = []
    for examples in (random_examples(60, seed=3), random_examples(20, seed=4, lengths=(13,))):
        rows += [examples.row(n).tolist() for n in range(len(examples))]
        prompts += examples.prompt_lengths.tolist()
    rows += [[3, RESERVED_TOKEN, 5, 7, 2], [RESERVED_TOKEN, 8, 9, 1, 2]]
    return examples_from(rows, [*prompts, 2, 1])


EXAMPLES = _examples()


def poisoned_base() -> Base:
    """`BASE` with a NaN embedding for the reserved token, so that only clients who hold it break."""
    return BASE.replace(embed=BASE.embed.at[RESERVED_TOKEN].set(jnp.nan))


def assemble(examples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Padded rows, as the trainer makes them."""
    return gather_batch(EXAMPLES, examples, BUCKETS[-1])


def client(position: int, *, pool: slice = SHORT, steps: int = STEPS, weight: float | None = None) -> ClientWork:
    """Client `position` of an endless population: an id out of order, a weight and a draw of its own."""
    rng = np.random.default_rng([17, position])
    examples = rng.choice(np.arange(len(EXAMPLES))[pool], (steps, BATCH))
    return ClientWork(
        position=position,
        id=(2_654_435_761 * (position + 1)) % 2**32,
        weight=float(rng.integers(1, 20)) if weight is None else weight,
        examples=examples,
        lengths=EXAMPLES.lengths[examples],
    )


FIVE = [client(position) for position in range(5)]


@functools.cache
def fedit_with(options: MethodConfig = TWO, message_dtype: str = "float32") -> Algorithm:
    """FedIT, the same record for the same options."""
    return fedit(dataclasses.replace(options, message_dtype=message_dtype))


def server_with(options: LoraOptions = TWO) -> Adapter:
    """A global adapter in the middle of training."""
    return random_adapter(options)


@functools.cache
def engine(
    algorithm: Algorithm,
    optimizer: OptimizerOptions = SGD,
    devices: int = 1,
    clients_per_step: int = 5,
    passes: Passes = WHOLE,
) -> Cohort:
    """The `Cohort` under test, made once for each set of choices so that tests share compiled programs."""
    return Cohort(
        LocalTraining(algorithm, CONFIG, Compute(), optimizer, passes),
        devices=jax.local_devices()[:devices],
        clients_per_step=clients_per_step,
        assemble=assemble,
        programs=CompiledPrograms(),
    )


def keys_of_round(ids: np.ndarray) -> jax.Array:
    """The clients' keys of the round that all tests run."""
    return client_keys(SEED, np.uint32(ROUND), ids)


def all_rows() -> np.ndarray:
    """`train_rows` of a stage in which every layer learns."""
    return np.ones(CONFIG.layers, bool)


@dataclasses.dataclass(frozen=True)
class Round(RoundResult):
    """A round's result with the participants' rows [K, ...] after it, in their order."""

    bank_rows: Any


def rows_of(bank: Any) -> Rows:
    """A bank that holds a copy of every row of a tree [N, ...]."""
    bank = jax.device_get(bank)
    clients = len(jax.tree.leaves(bank)[0]) if jax.tree.leaves(bank) else 0
    rows = Rows(jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), bank), clients)
    rows.put(np.arange(len(rows.stored)), bank)
    return rows


def run_round(
    cohort: Cohort,
    server: Any,
    members: Sequence[ClientWork],
    *,
    bank: Any = None,
    base: Base = BASE,
    lr: float = RATE,
    train_rows: np.ndarray | None = None,
) -> Round:
    """One round through the engine; `bank` leaves [N, ...] stay as they are."""
    rows = rows_of({} if bank is None else bank)
    result = cohort.run(
        base,
        server,
        rows,
        members,
        lr=lr,
        keys=keys_of_round,
        train_rows=all_rows() if train_rows is None else train_rows,
    )
    return Round(**vars(result), bank_rows=rows.take(np.array([member.position for member in members])))


def replay(
    member: ClientWork,
    options: MethodConfig = TWO,
    *,
    base: Base = BASE,
    lr: float = RATE,
    train_rows: np.ndarray | None = None,
    passes: Passes = WHOLE,
    mesh: Mesh | None = None,
) -> list[StepReport]:
    """The steps of one client alone, from the start of the round that all tests run; on one device by default."""
    return replay_client(
        LocalTraining(fedit_with(options), CONFIG, Compute(), SGD, passes),
        base=base,
        server=server_with(options),
        row={},
        batches=assemble(member.examples),
        lr=lr,
        key=keys_of_round(np.array([member.id], np.uint32))[0],
        train_rows=all_rows() if train_rows is None else train_rows,
        mesh=client_mesh(jax.local_devices()[:1]) if mesh is None else mesh,
    )


@functools.partial(jax.jit, static_argnums=0)
def plain_gradient(options: LoraOptions, lora, base: Base, tokens, mask, key):
    """Loss and gradient from full logits: the mean over completion tokens, with nothing of the engine in it."""

    def loss(lora):
        adapter = Adapter(lora=lora, scale=jnp.float32(options.alpha / options.rank), dropout=options.dropout)
        logits = forward(CONFIG, base, adapter, tokens, key=key)
        scores = jax.nn.log_softmax(logits[:, :-1])
        chosen = jnp.take_along_axis(scores, tokens[:, 1:, None], axis=-1)[..., 0]
        counted = mask[:, 1:]
        return -jnp.sum(chosen * counted) / jnp.sum(counted)

    return jax.value_and_grad(loss)(lora)


def plain_client(
    member: ClientWork,
    lora: Any,
    rule: optax.GradientTransformation,
    options: LoraOptions = TWO,
) -> tuple[Any, list[float]]:
    """One client's trained factors and losses, in a plain Python loop over its steps."""
    key = keys_of_round(np.array([member.id], np.uint32))[0]
    state = rule.init(lora)
    losses = []
    # Padded to its own lengths alone: neither other clients nor passes exist here.
    length = int(EXAMPLES.lengths[member.examples].max())
    for step, examples in enumerate(member.examples):
        tokens, mask = gather_batch(EXAMPLES, examples, length)
        step_key = jax.random.fold_in(key, step)
        value, gradient = plain_gradient(options, lora, BASE, tokens, mask, step_key)
        updates, state = rule.update(gradient, state, lora)
        lora = optax.apply_updates(lora, updates)
        losses.append(float(value))
    return lora, losses


def plain_round(
    members: Sequence[ClientWork],
    lora: Any,
    rule: optax.GradientTransformation,
    options: LoraOptions = TWO,
) -> tuple[Any, np.ndarray]:
    """FedIT's aggregate and the losses [K, S]: clients one after the other, then a weighted mean."""
    pairs = [plain_client(member, lora, rule, options) for member in members]
    trained, losses = zip(*pairs, strict=True)
    return weighted_mean(trained, [member.weight for member in members]), np.array(losses)


def plain_sgd(lr: float = RATE) -> optax.GradientTransformation:
    """What `SGD` names, built by hand."""
    return optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(lr))


def weighted_mean(trees: Sequence[Any], weights: Sequence[float]) -> Any:
    """Mean of pytrees, taken by numpy in float64."""

    def mean(*leaves: jax.Array) -> np.ndarray:
        stacked = np.stack([np.asarray(leaf, np.float64) for leaf in leaves])
        return np.average(stacked, axis=0, weights=weights)

    return jax.tree.map(mean, *trees)


def assert_close(actual: Any, expected: Any, *, atol: float = 1e-5) -> None:
    """Same structure, and every leaf within `atol`."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for found, wanted in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=atol)


def assert_identical(actual: Any, expected: Any) -> None:
    """Same structure, and every leaf bit for bit."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for found, wanted in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        found, wanted = np.asarray(found), np.asarray(wanted)
        assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
        assert found.tobytes() == wanted.tobytes()


def largest_change(actual: Any, expected: Any) -> float:
    """Largest absolute difference over all leaves."""
    differences = jax.tree.map(lambda found, wanted: np.abs(found - wanted).max(), actual, expected)
    return float(max(jax.tree.leaves(differences)))


# ---------------------------------------------------------------------------------------------------
# One round of a record by hand


def init(algorithm: Algorithm, *, clients: int = 5, seed: int = 3, config: ModelConfig = CONFIG) -> Any:
    """The algorithm's first state."""
    return algorithm.init_server(jax.random.key(seed), config, Clients(clients))


def participant(algorithm: Algorithm, server: Any, row: Any = None, *, seed: int = 0, steps: int = STEPS) -> Participant:
    """A client with its message at the start of its round."""
    key = jax.random.key(seed, impl="threefry2x32")
    return participant_of(
        algorithm, broadcast_of(algorithm, server), {} if row is None else row, key, jnp.float32(RATE), steps
    )


def trained_messages(algorithm: Algorithm, server: Any, rows: Sequence[Any], *, move: Any) -> tuple[list[Any], list[Any]]:
    """Messages and new rows of clients whose trained leaves `move(index, leaf)` has changed."""
    ups, new_rows = [], []
    for index, row in enumerate(rows):
        at_start = participant(algorithm, server, row, seed=index)
        train, _ = algorithm.start(at_start)
        up, new_row = algorithm.finish(at_start, jax.tree.map(lambda leaf, who=index: move(who, leaf), train))
        ups.append(up)
        new_rows.append(new_row)
    return ups, new_rows


def changed_to(trees: Sequence[Any], start: Any) -> list[Any]:
    """The float32 messages of clients that trained `start` to `trees`."""
    return [jax.tree.map(jnp.subtract, tree, start) for tree in trees]


def contributed(algorithm: Algorithm, ups: Sequence[Any], weights: Sequence[float]) -> Any:
    """The sums of these messages."""
    parts = [
        algorithm.contribution(up, Share(jnp.float32(weight), jnp.int32(slot)))
        for slot, (up, weight) in enumerate(zip(ups, weights, strict=True))
    ]
    return jax.tree.map(lambda *leaves: sum(leaves), *parts)


def aggregated(algorithm: Algorithm, server: Any, ups: Sequence[Any], weights: Sequence[float]) -> tuple[Any, dict]:
    """The server's round on these messages."""
    return algorithm.finalize(server, contributed(algorithm, ups, weights))
