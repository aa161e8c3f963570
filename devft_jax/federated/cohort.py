"""A round over a cohort: chunks of clients, one compiled program each, streamed.

The compiled unit is

    chunk(base, down, rows, batches, weights, lr, keys, sums) -> (sums, rows, statistics)

with `clients_per_step` clients under `vmap`, their local steps under `scan`, and the client axis sharded over the local
devices. Memory follows `clients_per_step`, not the cohort and not the population; the base is an argument shared by all
clients, never copied per client, and only the sums are donated. While a chunk runs, the host assembles the next one.

Each device keeps sums of its own clients and they are added once, at the end of the round: a chunk contains no collective
operation, so devices never wait for each other (and host devices, which share a small pool of threads, cannot block each
other).

A cohort that `clients_per_step` does not divide is padded with clients of weight zero, never cut. A client whose loss or
update is not finite gets weight zero too, and is named in the round's result.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from devft_jax.federated.algorithm import Algorithm, message_bytes
from devft_jax.federated.local import (
    LocalStatistics,
    OptimizerOptions,
    local_train,
    make_optimizer,
)
from devft_jax.models.llama import Base, Compute, ModelConfig
from devft_jax.models.loss import completion_loss
from devft_jax.programs import CLIENT_AXIS, CompiledPrograms, client_mesh

PyTree = Any
# Chunks whose inputs may wait on the device at once: one that runs and one that is ready.
CHUNKS_IN_FLIGHT = 2


def client_loss(
    algorithm: Algorithm, config: ModelConfig, compute: Compute, base: Base, frozen: PyTree
) -> Callable[..., jax.Array]:
    """The loss (train, (tokens, mask), key) -> f32[] that a client's steps reduce."""

    def loss(train: PyTree, batch: tuple[jax.Array, jax.Array], key: jax.Array) -> jax.Array:
        tokens, mask = batch
        adapter = algorithm.adapter(train, frozen)
        return completion_loss(config, base, adapter, tokens, mask, compute=compute, key=key)

    return loss


def all_finite(tree: PyTree) -> jax.Array:
    """Whether no element of any leaf is NaN or infinite, bool[]."""
    return jnp.all(jnp.array([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))


def make_chunk(
    algorithm: Algorithm,
    config: ModelConfig,
    compute: Compute,
    optimizer: OptimizerOptions,
    mesh: Mesh,
) -> Callable[..., tuple[PyTree, PyTree, LocalStatistics]]:
    """The chunk as a traceable function over `mesh`; see the module's docstring.

    Its arguments: base and down (shared), rows [C, ...], batches = (tokens i32[C, S, B, T], mask bool[C, S, B, T]), weights
    f32[C], lr f32[], keys key[C], train_rows bool[G], sums [devices, ...].
    """

    def client(base, down, lr, train_rows, row, batches, weight, key):
        start, frozen = algorithm.start(down, row)
        loss = client_loss(algorithm, config, compute, base, frozen)
        rule = make_optimizer(optimizer, lr)
        trained, statistics = local_train(loss, rule, start, batches, key, train_rows)
        up, new_row = algorithm.finish(down, trained, row)
        # What float32 holds may overflow the dtype in which it travels.
        finite = statistics.finite & all_finite((up, new_row))
        new_row = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new_row, row)
        # Zero times NaN is NaN: a broken client's contribution is replaced, not only given no weight.
        contribution = jax.tree.map(lambda leaf: jnp.where(finite, leaf, 0), algorithm.contribution(up, weight))
        return contribution, new_row, statistics.replace(finite=finite)

    def shard(base, down, rows, batches, weights, lr, keys, train_rows, sums):
        over_clients = jax.vmap(partial(client, base, down, lr, train_rows))
        contributions, rows, statistics = over_clients(rows, batches, weights, keys)
        sums = jax.tree.map(lambda total, parts: total + jnp.sum(parts, axis=0, keepdims=True), sums, contributions)
        return sums, rows, statistics

    shared, split = PartitionSpec(), PartitionSpec(CLIENT_AXIS)
    return jax.shard_map(
        shard,
        mesh=mesh,
        in_specs=(shared, shared, split, split, split, shared, split, shared, split),
        out_specs=(split, split, split),
        check_vma=False,
    )


def jit_chunk(
    algorithm: Algorithm, config: ModelConfig, compute: Compute, optimizer: OptimizerOptions, mesh: Mesh
) -> jax.stages.Wrapped:
    """`make_chunk`, ready to be compiled; the sums (argument 8) are donated, base and down serve the next chunk too."""
    return jax.jit(make_chunk(algorithm, config, compute, optimizer, mesh), donate_argnums=8)


def uplink_shapes(algorithm: Algorithm, down: PyTree, row: PyTree) -> PyTree:
    """Shapes and dtypes of the message that a client sends up."""

    def untrained(down: PyTree, row: PyTree) -> PyTree:
        train, _ = algorithm.start(down, row)
        return algorithm.finish(down, train, row)[0]

    return jax.eval_shape(untrained, down, row)


def zero_sums(algorithm: Algorithm, down: PyTree, row: PyTree, devices: int) -> PyTree:
    """Sums of no client: zeros of the shapes that a contribution has, one for each device."""
    up = uplink_shapes(algorithm, down, row)
    shapes = jax.eval_shape(algorithm.contribution, up, jnp.float32(1.0))
    return jax.tree.map(lambda leaf: jnp.zeros((devices, *leaf.shape), leaf.dtype), shapes)


def add_over_devices(sums: PyTree) -> PyTree:
    """Sums [devices, ...] sharded over devices -> [...] on the first of them, added in the devices' order."""

    def total(leaf: jax.Array) -> jax.Array:
        parts = sorted(leaf.addressable_shards, key=lambda shard: shard.index[0].start or 0)
        home = parts[0].device
        return sum(jax.device_put(part.data[0], home) for part in parts)

    return jax.tree.map(total, sums)


@dataclass(frozen=True)
class ClientWork:
    """One participant of a round.

    Attributes:
      position: in the population, for the bank. id: stable u32, for random draws.
      weight: of its message, such as its number of examples.
      examples: i64[S, B], its draw. tokens: that the draw holds, padding not counted.
    """

    position: int
    id: int
    weight: float
    examples: np.ndarray
    tokens: int


@dataclass(frozen=True)
class RoundResult:
    """What a round produced.

    Attributes:
      server: the aggregated state. bank_rows: new rows [K, ...] of the participants, in their order.
      losses: f32[K, S] per participant and step. update_norms: f32[K]. finite: bool[K].
      metrics: the algorithm's own numbers. bytes_up, bytes_down: of all participants' messages together.
      tokens: processed, padding not counted. rows_by_length: how many rows of each padded length were trained on.
    """

    server: PyTree
    bank_rows: PyTree
    losses: np.ndarray
    update_norms: np.ndarray
    finite: np.ndarray
    metrics: dict[str, float]
    bytes_up: int
    bytes_down: int
    tokens: int
    rows_by_length: dict[int, int]


class Cohort:
    """Runs rounds of one algorithm on one model shape over the local devices.

    Args:
      algorithm, config, compute, optimizer: what a client does.
      devices: local devices to use. clients_per_step: clients in flight at once, a multiple of the devices.
      assemble: examples i64[..., S, B] -> (tokens, mask), both [..., S, B, T] of the smallest length bucket that fits.
      programs: where compiled programs are kept and counted.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        config: ModelConfig,
        compute: Compute,
        optimizer: OptimizerOptions,
        *,
        devices: Sequence[jax.Device],
        clients_per_step: int,
        assemble: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
        programs: CompiledPrograms,
    ):
        self.algorithm = algorithm
        self.mesh = client_mesh(devices)
        self.clients_per_step = clients_per_step
        self.assemble = assemble
        self.programs = programs
        self.shared = NamedSharding(self.mesh, PartitionSpec())
        self.split = NamedSharding(self.mesh, PartitionSpec(CLIENT_AXIS))
        self._chunk = jit_chunk(algorithm, config, compute, optimizer, self.mesh)
        self._broadcast = jax.jit(algorithm.broadcast)
        self._finalize = jax.jit(algorithm.finalize)

    def _chunks(self, cohort: Sequence[ClientWork], bank: PyTree) -> Iterator[tuple[Any, ...]]:
        """Host arrays of each chunk: rows, tokens, mask, weights, ids; the last one padded with weight zero."""
        size = self.clients_per_step
        for first in range(0, len(cohort), size):
            members = list(cohort[first : first + size])
            examples = np.full((size, *members[0].examples.shape), -1, np.int64)
            weights = np.zeros(size, np.float32)
            ids = np.zeros(size, np.uint32)
            positions = np.full(size, members[0].position)
            for slot, member in enumerate(members):
                examples[slot], weights[slot] = member.examples, member.weight
                ids[slot], positions[slot] = member.id, member.position
            rows = jax.tree.map(lambda leaf, where=positions: leaf[where], bank)
            yield (rows, *self.assemble(examples), weights, ids)

    def run(
        self,
        base: Base,
        server: PyTree,
        bank: PyTree,
        cohort: Sequence[ClientWork],
        *,
        lr: float,
        keys: Callable[[np.ndarray], jax.Array],
        train_rows: np.ndarray,
    ) -> RoundResult:
        """One round: train every participant from `server`, aggregate, and report.

        Args:
          base: the stage's frozen model, replicated over the devices.
          server, bank: the algorithm's state; bank leaves [N, ...] on the host.
          cohort: the participants.
          lr: the round's learning rate. keys: ids u32[C] -> key[C]. train_rows: bool[G].

        Where no participant's update is finite there is nothing to aggregate: the server state comes back as it was.
        """
        down = self.programs.call("broadcast", self._broadcast, server)
        row = jax.tree.map(lambda leaf: leaf[0], bank)
        sums = zero_sums(self.algorithm, down, row, self.mesh.size)
        sums = jax.device_put(sums, self.split)
        shared_down = jax.device_put(down, self.shared)
        rate = jax.device_put(jnp.float32(lr), self.shared)
        learning = jax.device_put(train_rows, self.shared)
        pending: list[tuple[PyTree, LocalStatistics]] = []
        rows_by_length: Counter[int] = Counter()
        for rows, tokens, mask, weights, ids in self._chunks(cohort, bank):
            rows_by_length[tokens.shape[-1]] += int(np.count_nonzero(weights)) * tokens[0, ..., 0].size
            inputs = jax.device_put((rows, (tokens, mask), weights, keys(ids)), self.split)
            rows, batches, weights, client_keys = inputs
            sums, new_rows, statistics = self.programs.call(
                "chunk",
                self._chunk,
                base, shared_down, rows, batches, weights, rate, client_keys, learning, sums,
            )  # fmt: skip
            pending.append((new_rows, statistics))
            if len(pending) > CHUNKS_IN_FLIGHT:
                jax.block_until_ready(pending[-1 - CHUNKS_IN_FLIGHT][1].loss)
        fetched = jax.device_get(pending)
        joined = jax.tree.map(lambda *parts: np.concatenate(parts)[: len(cohort)], *fetched)
        bank_rows, statistics = joined
        metrics: dict[str, jax.Array] = {}
        if statistics.finite.any():
            server, metrics = self.programs.call("finalize", self._finalize, server, add_over_devices(sums))
        up = uplink_shapes(self.algorithm, down, row)
        return RoundResult(
            server=server,
            bank_rows=bank_rows,
            losses=statistics.loss,
            update_norms=statistics.update_norm,
            finite=statistics.finite,
            metrics={name: float(value) for name, value in metrics.items()},
            bytes_up=message_bytes(up) * len(cohort),
            bytes_down=message_bytes(down) * len(cohort),
            tokens=sum(member.tokens for member in cohort),
            rows_by_length=dict(rows_by_length),
        )
