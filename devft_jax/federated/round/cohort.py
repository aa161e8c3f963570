"""A round over a cohort: chunks of clients, one compiled program each, streamed.

The compiled unit is

    chunk(base, (down, known), rows, batches, shares, lr, keys, train_rows, sums) -> (sums, rows, statistics, ranks)

with `clients_per_step` clients under `vmap`, their local steps under `scan`, and the client axis sharded over the local
devices. Memory follows `clients_per_step`, not the cohort and not the population; the base is an argument shared by all
clients, never copied per client, and only the sums are donated. While chunks run, a thread of the host draws, reads and
assembles the next ones, and what clients keep is written back as theirs end.

Each device keeps sums of its own clients and they are added once, at the end of the round: where each device has the base,
a chunk contains no collective operation, so that devices never wait for each other.

Devices that hold the base together (`devft_jax.models.sharding`) gather its weights as they go, and a collective operation
that not all of a group come to would never end, or mix up two exchanges. What depends on data and has a collective inside is
therefore chosen by the whole group: the padded length of a pass (`Passes.group`). The loss's loop over blocks of tokens,
whose number each device has to itself, has none inside, since the head is gathered before it. Two chunks may still be in
flight: a device runs its programs in the order of their launch, and XLA gives host devices, which share a pool of threads, a
program of several devices only when the one before is done.

A cohort that `clients_per_step` does not divide is padded with clients of weight zero, never cut. A client whose loss or
update is not finite gets weight zero too, and is named in the round's result.
"""

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from devft_jax.developmental.layer_map import frozen_below
from devft_jax.federated.algorithm import Algorithm, Participant, Share
from devft_jax.federated.local import Batch, LocalStatistics, Loss, OptimizerOptions, Passes, local_train, make_optimizer
from devft_jax.federated.messages import message_bytes, messages_bytes, ranks_of
from devft_jax.federated.round.chunk_size import Trial, padding, trial_runs
from devft_jax.federated.sampling import client_keys
from devft_jax.federated.work import ClientWork
from devft_jax.models.adapter import Adapter
from devft_jax.models.architecture import ModelConfig
from devft_jax.models.base import Base
from devft_jax.models.llama import Compute
from devft_jax.models.loss import completion_loss
from devft_jax.models.sharding import partition_specs
from devft_jax.runtime.compiled import CompiledPrograms, shared_programs
from devft_jax.runtime.devices import MODEL_AXIS, OVER_DEVICES, client_mesh, shapes_on
from devft_jax.runtime.prefetch import made_ahead
from devft_jax.typing import PyTree

# Chunks whose inputs may wait on the device at once: one that runs and one that is ready.
CHUNKS_IN_FLIGHT = 2
# Name of the `vmap` over the clients that a device trains at once.
CHUNK_AXIS = "chunk"
# Chunks that may wait on the host besides.
CHUNKS_AHEAD = 2
# Chunks whose participants are put in the order of their work's size before they are divided among them.
CHUNKS_SORTED = 8


@dataclass(frozen=True)
class LocalTraining:
    """What the program of a client's round is made of; hashable, so that equal ones may share a compiled program.

    Attributes:
      algorithm: what is trained and sent. config: the base. compute: its execution.
      optimizer: of the steps. passes: how a step's examples are run.
    """

    algorithm: Algorithm
    config: ModelConfig
    compute: Compute
    optimizer: OptimizerOptions
    passes: Passes


def client_loss(training: LocalTraining, base: Base, frozen: PyTree) -> Loss:
    """The loss that a client's steps reduce, and the one without penalty that is reported."""
    algorithm = training.algorithm

    def loss(train: PyTree, batch: Batch, keys: jax.Array, count: jax.Array, share: float) -> tuple[jax.Array, jax.Array]:
        tokens, mask, *stored = batch
        adapter = algorithm.adapter(train, frozen)
        options: dict[str, Any] = {"prefix": stored[0] if stored else None, "count": count, "axis": training.passes.axis}
        value = completion_loss(training.config, base, adapter, tokens, mask, compute=training.compute, key=keys, **options)
        return value + share * algorithm.penalty(train, frozen), value

    return loss


def participant_of(
    algorithm: Algorithm, broadcast: tuple[PyTree, PyTree], row: PyTree, key: jax.Array, lr: jax.Array, steps: int
) -> Participant:
    """One client at the start of its round; `broadcast` is what the server sends and what is known without a message."""
    down, known = broadcast
    # A stream of its own: training folds the step's number into the same key.
    own_key = jax.random.fold_in(key, np.uint32(2**32 - 1))
    return Participant(algorithm.address(down, row), known, row, own_key, lr, steps)


def frozen_rows(algorithm: Algorithm, train_rows: np.ndarray) -> int:
    """How many of a stage's lowest rows take no gradient, where rows can be kept from learning at all."""
    return frozen_below(train_rows) if algorithm.layered else 0


def all_finite(tree: PyTree) -> jax.Array:
    """Whether no element of any leaf is NaN or infinite, bool[]."""
    return jnp.all(jnp.array([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))


def make_chunk(training: LocalTraining, mesh: Mesh) -> Callable[..., tuple[PyTree, PyTree, LocalStatistics, PyTree]]:
    """The chunk as a traceable function over `mesh`; see the module's docstring.

    Its arguments: base and broadcast = (down, known) (shared), rows [C, ...], batches = (tokens i32[C, S, B, T], mask
    bool[C, S, B, T]) and, where the layers below the adapter's are not to be run, what they make [C, S, B, T, D] as a third,
    shares (weights f32[C], slots i32[C]), lr f32[], keys key[C], train_rows bool[G], sums [devices, ...].
    It gives the sums, the rows, the statistics, and the ranks of messages down and up where these differ, i32[C] each.
    """

    algorithm = training.algorithm
    group = MODEL_AXIS if mesh.shape[MODEL_AXIS] > 1 else None
    training = replace(training, passes=replace(training.passes, axis=CHUNK_AXIS, group=group))

    def client(base, broadcast, lr, train_rows, row, batches, share, key):
        participant = participant_of(algorithm, broadcast, row, key, lr, batches[0].shape[0])
        start, frozen = algorithm.start(participant)
        loss = client_loss(training, base, frozen)
        rule = algorithm.optimizer(make_optimizer(training.optimizer, lr), frozen, lr)
        learning = train_rows if algorithm.layered else None
        trained, statistics = local_train(loss, rule, start, batches, key, learning, training.passes)
        up, new_row = algorithm.finish(participant, trained)
        # What float32 holds may overflow the dtype in which it travels.
        finite = statistics.finite & all_finite((up, new_row))
        new_row = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new_row, row)
        # Zero times NaN is NaN: a broken client's contribution is replaced, not only given no weight.
        contribution = jax.tree.map(lambda leaf: jnp.where(finite, leaf, 0), algorithm.contribution(up, share))
        ranks = ranks_of(participant.down), ranks_of(up)
        return contribution, new_row, statistics.replace(finite=finite), ranks

    def shard(base, broadcast, rows, batches, shares, lr, keys, train_rows, sums):
        over_clients = jax.vmap(partial(client, base, broadcast, lr, train_rows), axis_name=CHUNK_AXIS)
        contributions, rows, statistics, ranks = over_clients(rows, batches, shares, keys)
        sums = jax.tree.map(lambda total, parts: total + jnp.sum(parts, axis=0, keepdims=True), sums, contributions)
        return sums, rows, statistics, ranks

    def chunk(base, *arguments):
        shared, split = PartitionSpec(), OVER_DEVICES
        over_devices = jax.shard_map(
            shard,
            mesh=mesh,
            in_specs=(partition_specs(base), shared, split, split, split, shared, split, shared, split),
            out_specs=(split, split, split, split),
            check_vma=False,
        )
        return over_devices(base, *arguments)

    return chunk


@shared_programs
def jit_chunk(training: LocalTraining, mesh: Mesh) -> jax.stages.Wrapped:
    """`make_chunk`, ready to be compiled; the sums (argument 8) are donated, base and broadcast serve the next chunk too."""
    return jax.jit(make_chunk(training, mesh), donate_argnums=8)


def broadcast_of(algorithm: Algorithm, server: PyTree) -> tuple[PyTree, PyTree]:
    """What the server sends, before it is addressed, and what is known without a message."""
    return algorithm.broadcast(server), algorithm.known(server)


@shared_programs
def jit_broadcast(algorithm: Algorithm) -> jax.stages.Wrapped:
    """`broadcast_of`, ready to be compiled."""
    return jax.jit(partial(broadcast_of, algorithm))


@shared_programs
def jit_finalize(algorithm: Algorithm) -> jax.stages.Wrapped:
    """An algorithm's `finalize`, of the server and sums [1, ...] over all devices; ready to be compiled."""

    def finalize(server: PyTree, sums: PyTree) -> tuple[PyTree, dict[str, jax.Array]]:
        return algorithm.finalize(server, jax.tree.map(lambda leaf: leaf[0], sums))

    return jax.jit(finalize)


@shared_programs
def jit_add() -> jax.stages.Wrapped:
    """The sum of two trees, in the second's memory; ready to be compiled."""
    return jax.jit(partial(jax.tree.map, jnp.add), donate_argnums=1)


def participant_shapes(algorithm: Algorithm, broadcast: tuple[PyTree, PyTree], row: PyTree) -> Participant:
    """Shapes and dtypes of one client at the start of its round."""
    return jax.eval_shape(
        lambda broadcast, row: participant_of(
            algorithm, broadcast, row, jax.random.key(0, impl="threefry2x32"), jnp.float32(0), 1
        ),
        broadcast,
        row,
    )


def uplink_shapes(algorithm: Algorithm, participant: Participant) -> PyTree:
    """Shapes and dtypes of the message that a client sends up."""

    def untrained(participant: Participant) -> PyTree:
        train, _ = algorithm.start(participant)
        return algorithm.finish(participant, train)[0]

    return jax.eval_shape(untrained, participant)


def cumulative_bytes(algorithm: Algorithm, down: PyTree, ranks: Sequence[np.ndarray] = ()) -> int:
    """Bytes of the part of a downlink, arrays or shapes, that clients need of every round; the first of `ranks` if given."""
    if algorithm.cumulative is None:
        return 0
    part = jax.eval_shape(algorithm.cumulative, down)
    return message_bytes(part, [int(each[0]) for each in ranks] if ranks and ranks_of(part) else None)


def zero_sums(algorithm: Algorithm, up: PyTree, devices: int) -> PyTree:
    """Sums of no client: zeros of the shapes that the contribution of a message `up` has, one for each device."""
    shapes = jax.eval_shape(algorithm.contribution, up, Share(jnp.float32(1.0), jnp.int32(0)))
    return jax.tree.map(lambda leaf: jnp.zeros((devices, *leaf.shape), leaf.dtype), shapes)


@shared_programs
def jit_zero_sums(algorithm: Algorithm, structure: Any, up: tuple[jax.ShapeDtypeStruct, ...], split: NamedSharding) -> Any:
    """`zero_sums` of a message of these leaves, over the devices of `split`, ready to be compiled."""
    message = jax.tree.unflatten(structure, up)
    return jax.jit(lambda: zero_sums(algorithm, message, split.mesh.size), out_shardings=split)


class Bank(Protocol):
    """What a round needs of the clients' rows.

    Attributes:
      row: shapes and dtypes of one row.
    """

    row: PyTree

    def take(self, positions: np.ndarray) -> PyTree:
        """Rows [C, ...] of the clients at `positions` i64[C]; called from another thread than `put`."""

    def put(self, positions: np.ndarray, rows: PyTree) -> None:
        """Give the clients at `positions` i64[C], who are not taken any more in the round, the rows [C, ...]."""


@dataclass(frozen=True)
class RoundResult:
    """What a round produced, besides the participants' new rows, which are in the bank.

    Attributes:
      server: the aggregated state.
      losses: f32[K, S] per participant and step. update_norms: f32[K]. finite: bool[K].
      metrics: the algorithm's own numbers. bytes_up, bytes_down: of all participants' messages together.
      examples_by_length: how many examples of each length were trained on.
      bytes_cumulative: of the part of one client's downlink that it would need of rounds that it sat out, too.
      adapter, train: shapes of one client's adapter and of what trains of it.
    """

    server: PyTree
    losses: np.ndarray
    update_norms: np.ndarray
    finite: np.ndarray
    metrics: dict[str, float]
    bytes_up: int
    bytes_down: int
    examples_by_length: dict[int, int]
    bytes_cumulative: int
    adapter: Adapter
    train: PyTree


@dataclass(frozen=True)
class _Chunk:
    """The host's arrays of one chunk of C clients, of which the first `real` are participants and the others padding.

    Attributes:
      positions: i64[C]. ids: u32[C]. weights: f32[C], zero for padding. slots: i32[C].
      rows: what they keep [C, ...]. batches: [C, S, B, ...]. lengths: how many of the participants' examples have which.
    """

    real: int
    positions: np.ndarray
    ids: np.ndarray
    weights: np.ndarray
    slots: np.ndarray
    rows: PyTree
    batches: tuple[np.ndarray, ...]
    lengths: Counter[int]


class Cohort:
    """Runs rounds of one algorithm on one model shape over the local devices.

    Args:
      training: what a client does.
      devices: local devices to use. model_shards: of them hold a base together, as `shard_base` divides it.
      clients_per_step: clients in flight at once, a multiple of the devices.
      assemble: examples i64[..., S, B] -> (tokens, mask), both [..., S, B, T], and stored hidden states [..., S, B, T, D]
        where the round is to use them. Called from a thread of its own.
      programs: where compiled programs are kept and counted.
    """

    def __init__(
        self,
        training: LocalTraining,
        *,
        devices: Sequence[jax.Device],
        model_shards: int = 1,
        clients_per_step: int,
        assemble: Callable[[np.ndarray], tuple[np.ndarray, ...]],
        programs: CompiledPrograms,
    ):
        self.training, self.algorithm = training, training.algorithm
        self.mesh = client_mesh(devices, model_shards)
        self.clients_per_step = clients_per_step
        self.assemble = assemble
        self.programs = programs
        self.shared = NamedSharding(self.mesh, PartitionSpec())
        self.split = NamedSharding(self.mesh, OVER_DEVICES)
        self._shapes: dict[Any, _Shapes] = {}
        self._broadcast = jit_broadcast(self.algorithm)
        self._add = jit_add()
        self._finalize = jit_finalize(self.algorithm)

    def _chunk_of(self, frozen: int) -> jax.stages.Wrapped:
        """The program of a stage whose lowest `frozen` rows take no gradient."""
        compute = replace(self.training.compute, frozen_layers=frozen)
        return jit_chunk(replace(self.training, compute=compute), self.mesh)

    def prepare(self, base: Base, server: PyTree, row: PyTree, batch: PyTree, train_rows: np.ndarray) -> None:
        """Have the programs of rounds from such a state compiled ahead.

        Args:
          base: shapes of a stage's, as placed. server: of the stage. row, batch: of one client; all arrays or shapes.
          train_rows: as in `run`.
        """
        clients = self.clients_per_step
        broadcast = jax.eval_shape(self._broadcast, server)
        zeros = self._zero_sums(self._shapes_of(broadcast, row))
        sums = jax.eval_shape(zeros)
        ids = jax.ShapeDtypeStruct((clients,), np.uint32)
        share = jax.eval_shape(lambda: Share(jnp.float32(1.0), jnp.int32(0)))
        self.programs.prepare(
            "chunk",
            self._chunk_of(frozen_rows(self.algorithm, train_rows)),
            base,
            shapes_on(self.shared, broadcast),
            *shapes_on(self.split, (row, batch, share), clients),
            shapes_on(self.shared, jax.ShapeDtypeStruct((), np.float32)),
            shapes_on(self.split, jax.eval_shape(partial(client_keys, 0, 0), ids)),
            shapes_on(self.shared, train_rows),
            shapes_on(self.split, sums),
        )
        part = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape[1:]), leaf.dtype), sums)
        home = SingleDeviceSharding(self.mesh.devices.flat[0])
        total = shapes_on(home, part)
        self.programs.prepare("zero_sums", zeros)
        if self.mesh.size > 1 and (leaves := jax.tree.leaves(total)):
            self.programs.prepare("add", self._add, leaves, leaves)
        self.programs.prepare("finalize", self._finalize, shapes_on(None, server), total)
        self.programs.prepare("broadcast", self._broadcast, shapes_on(None, server))

    def _chunks(self, cohort: Sequence[ClientWork], bank: Bank, size: int) -> Iterator[_Chunk]:
        """The chunks of a cohort, of `size` clients; the last one padded with weight zero.

        Devices wait for the one with the most tokens, and clients of a device are padded alike: the participants of
        `CHUNKS_SORTED` chunks are taken in the order of their tokens, and each chunk's dealt out to its devices.
        """
        return (self._chunk(slots, members, bank, size) for slots, members in self._groups(cohort, size))

    def _chunk(self, slots: np.ndarray, members: list[ClientWork], bank: Bank, size: int) -> _Chunk:
        """The chunk of some participants, who stand in the cohort at `slots`."""
        for member in members:
            if not 0 < member.weight < math.inf:
                raise ValueError(
                    f"the weight {member.weight} of the client at position {member.position} is not positive and "
                    "finite: give every participant a positive weight, or leave it out."
                )
        examples = np.full((size, *members[0].examples.shape), -1, np.int64)
        weights = np.zeros(size, np.float32)
        ids = np.zeros(size, np.uint32)
        positions = np.full(size, members[0].position)
        for slot, member in enumerate(members):
            examples[slot], weights[slot] = member.examples, member.weight
            ids[slot], positions[slot] = member.id, member.position
        return _Chunk(
            real=len(members),
            positions=positions,
            ids=ids,
            weights=weights,
            # Padding has no slot of its own and adds zero to the one it names.
            slots=np.pad(slots, (0, size - len(slots)), "edge").astype(np.int32),
            rows=bank.take(positions),
            batches=self.assemble(examples),
            lengths=Counter(np.concatenate([member.lengths.ravel() for member in members]).tolist()),
        )

    def _groups(self, cohort: Sequence[ClientWork], size: int) -> Iterator[tuple[np.ndarray, list[ClientWork]]]:
        """The participants of every chunk, and where in the cohort each stands."""
        for first in range(0, len(cohort), size * CHUNKS_SORTED):
            some = cohort[first : first + size * CHUNKS_SORTED]
            order = np.argsort([-int(member.lengths.sum()) for member in some], kind="stable")
            for begin in range(0, len(some), size):
                chosen = order[begin : begin + size]
                if len(chosen) == size:
                    # A device trains neighbours of the chunk's array; in order, the first would get all the longest.
                    chosen = chosen.reshape(-1, self.mesh.size).T.ravel()
                yield first + chosen, [some[index] for index in chosen.tolist()]

    def run(
        self,
        base: Base,
        server: PyTree,
        bank: Bank,
        cohort: Sequence[ClientWork],
        *,
        lr: float,
        keys: Callable[[np.ndarray], jax.Array],
        train_rows: np.ndarray,
    ) -> RoundResult:
        """One round: train every participant from `server`, aggregate, and report.

        Args:
          base: the stage's frozen model, placed on the devices of `mesh`.
          server, bank: the algorithm's state; rows of participants whose update is finite are replaced in the bank.
          cohort: the participants, each once.
          lr: the round's learning rate. keys: ids u32[C] -> key[C]. train_rows: bool[G].

        Where no participant's update is finite there is nothing to aggregate: the server state comes back as it was.

        Raises:
          ValueError: a participant's weight is not a positive number, so that a mean could be taken over nothing.
          ChunkTooLargeError: a chunk does not fit into memory.
        """
        start = self._start(base, server, bank, lr, train_rows)
        sums = start.sums
        in_flight: deque[tuple[_Chunk, tuple[PyTree, LocalStatistics, PyTree]]] = deque()
        finished: list[tuple[np.ndarray, LocalStatistics, PyTree]] = []
        examples_by_length: Counter[int] = Counter()

        def finish() -> None:
            work, results = in_flight.popleft()
            rows, statistics, ranks = jax.tree.map(lambda leaf: leaf[: work.real], jax.device_get(results))
            kept = np.flatnonzero(statistics.finite)
            bank.put(work.positions[kept], jax.tree.map(lambda leaf: leaf[kept], rows))
            finished.append((work.slots[: work.real], statistics, ranks))

        chunks_of_round = self._chunks(cohort, bank, self.clients_per_step)
        try:
            with made_ahead(chunks_of_round, CHUNKS_AHEAD) as chunks:
                for work in chunks:
                    examples_by_length.update(work.lengths)
                    sums, *results = self._launch(start, self._inputs(work, keys), sums)
                    # Of the chunk the host needs from here on where its rows belong, not its inputs.
                    in_flight.append((replace(work, rows=None, batches=()), tuple(results)))
                    if len(in_flight) > CHUNKS_IN_FLIGHT:
                        finish()
            while in_flight:
                finish()
        except (jax.errors.JaxRuntimeError, MemoryError) as error:
            raise _if_too_large(error, self.clients_per_step, begun=bool(finished and jax.tree.leaves(bank.row))) from error
        shapes = start.shapes
        slots, *reports = jax.tree.map(lambda *parts: np.concatenate(parts), *finished)
        statistics, (down_ranks, up_ranks) = jax.tree.map(lambda leaf: leaf[np.argsort(slots)], reports)
        metrics: dict[str, jax.Array] = {}
        if statistics.finite.any():
            server, metrics = self.programs.call("finalize", self._finalize, server, self._total(sums))
        return RoundResult(
            server=server,
            losses=statistics.loss,
            update_norms=statistics.update_norm,
            finite=statistics.finite,
            metrics={name: float(value) for name, value in metrics.items()},
            bytes_up=messages_bytes(shapes.up, up_ranks, len(cohort)),
            bytes_down=messages_bytes(shapes.down, down_ranks, len(cohort)),
            examples_by_length=dict(examples_by_length),
            bytes_cumulative=cumulative_bytes(self.algorithm, shapes.down, down_ranks),
            adapter=shapes.adapter,
            train=shapes.train,
        )

    def trials(
        self,
        base: Base,
        server: PyTree,
        bank: Bank,
        cohort: Sequence[ClientWork],
        *,
        sizes: tuple[int, int],
        lr: float,
        keys: Callable[[np.ndarray], jax.Array],
        train_rows: np.ndarray,
    ) -> tuple[Trial, Trial] | None:
        """What chunks of two sizes cost, the larger last; None where it does not fit. Nothing is changed.

        As many of the cohort's clients as the larger has, with neither the most nor the fewest tokens, are trained in chunks
        of each size in turns, so that a machine that is now faster and now slower favours none. Seconds are of a client with
        the tokens of the first chunks' mean, and its part of what a round's last chunk is filled up with. Other arguments as
        in `run`.
        """
        largest = sizes[-1]
        seconds: dict[int, list[float]] = {size: [] for size in sizes}
        programs: dict[int, tuple[float, int]] = {}
        try:
            start = self._start(base, server, bank, lr, train_rows)
            groups = [members for _, members in self._groups(cohort[: largest * CHUNKS_SORTED], largest)]
            members = groups[(len(groups) - 1) // 2]
            chunks = {size: [self._inputs(work, keys) for work in self._chunks(members, bank, size)] for size in sizes}
            jax.block_until_ready(chunks)
            while len(seconds[largest]) < trial_runs(min(seconds[largest], default=0.0)):
                for size in sizes:
                    sums = jax.tree.map(jnp.copy, start.sums)
                    compiled, began = self.programs.seconds, time.perf_counter()
                    for inputs in chunks[size]:
                        sums, *results = self._launch(start, inputs, sums)
                    jax.block_until_ready((sums, results))
                    seconds[size].append(time.perf_counter() - began - (self.programs.seconds - compiled))
                    programs[size] = self.programs.compile_seconds["chunk"], self.programs.last_bytes
        except (jax.errors.JaxRuntimeError, MemoryError) as error:
            too_large = _if_too_large(error, largest, begun=False)
            if isinstance(too_large, ChunkTooLargeError):
                return None
            raise
        mean = np.mean([member.lengths.sum() for group in groups for member in group])
        share = mean / sum(member.lengths.sum() for member in members)

        def found(size: int) -> Trial:
            more = padding(len(cohort), size) / padding(len(members), size)
            return Trial(float(min(seconds[size]) * share * more), *programs[size])

        return found(sizes[0]), found(sizes[1])

    def _start(self, base: Base, server: PyTree, bank: Bank, lr: float, train_rows: np.ndarray) -> "_Start":
        """What all chunks of a round share."""
        broadcast = self.programs.call("broadcast", self._broadcast, server)
        shapes = self._shapes_of(broadcast, bank.row)
        return _Start(
            program=self._chunk_of(frozen_rows(self.algorithm, train_rows)),
            base=base,
            broadcast=jax.device_put(broadcast, self.shared),
            rate=jax.device_put(jnp.float32(lr), self.shared),
            train_rows=jax.device_put(train_rows, self.shared),
            sums=self.programs.call("zero_sums", self._zero_sums(shapes)),
            shapes=shapes,
        )

    def _total(self, sums: PyTree) -> PyTree:
        """Sums [devices, ...] sharded over devices -> [1, ...] of all, on the first of them, added in the devices' order.

        Each is brought there when it is its turn: that device then holds its own, the total, and the one to be added.
        """
        leaves, structure = jax.tree.flatten(sums)
        if not leaves:
            return sums
        shards = [sorted(leaf.addressable_shards, key=lambda shard: shard.index[0].start or 0) for leaf in leaves]
        total, *others = ([shard.data for shard in of_device] for of_device in zip(*shards, strict=True))
        for part in others:
            total = self.programs.call("add", self._add, total, jax.device_put(part, self.mesh.devices.flat[0]))
            # The next one would be sent for already.
            jax.block_until_ready(total)
        return jax.tree.unflatten(structure, total)

    def _zero_sums(self, shapes: "_Shapes") -> jax.stages.Wrapped:
        """What makes the sums with which a round begins."""
        leaves, structure = jax.tree.flatten(shapes.up)
        return jit_zero_sums(self.algorithm, structure, tuple(leaves), self.split)

    def _shapes_of(self, broadcast: PyTree, row: PyTree) -> "_Shapes":
        """Shapes of one client's trees; traced once for a stage, not in every round."""
        leaves, structure = jax.tree.flatten((broadcast, row))
        key = structure, tuple((leaf.shape, str(leaf.dtype)) for leaf in leaves)
        if key not in self._shapes:
            participant = participant_shapes(self.algorithm, broadcast, row)
            train, frozen = jax.eval_shape(self.algorithm.start, participant)
            self._shapes[key] = _Shapes(
                down=participant.down,
                up=uplink_shapes(self.algorithm, participant),
                adapter=jax.eval_shape(self.algorithm.adapter, train, frozen),
                train=train,
            )
        return self._shapes[key]

    def _inputs(self, work: _Chunk, keys: Callable[[np.ndarray], jax.Array]) -> tuple[Any, ...]:
        """A chunk's arrays on the devices: rows, batches, shares and keys."""
        inputs = work.rows, work.batches, work.weights, work.slots, keys(work.ids)
        rows, batches, weights, slots, client_keys = jax.device_put(inputs, self.split)
        return rows, batches, Share(weights, slots), client_keys

    def _launch(
        self, start: "_Start", inputs: tuple[Any, ...], sums: PyTree
    ) -> tuple[PyTree, PyTree, LocalStatistics, PyTree]:
        """Run a chunk; its sums, and what it makes of its clients' rows, statistics and ranks."""
        rows, batches, shares, client_keys = inputs
        return self.programs.call(
            "chunk",
            start.program,
            start.base, start.broadcast, rows, batches, shares, start.rate, client_keys, start.train_rows, sums,
        )  # fmt: skip


@dataclass(frozen=True)
class _Shapes:
    """Shapes and dtypes of one client's messages, adapter and trained leaves."""

    down: PyTree
    up: PyTree
    adapter: Adapter
    train: PyTree


@dataclass(frozen=True)
class _Start:
    """What all chunks of a round share: the program and its arguments, zero sums, and shapes of one client's trees."""

    program: jax.stages.Wrapped
    base: Base
    broadcast: PyTree
    rate: jax.Array
    train_rows: jax.Array
    sums: PyTree
    shapes: _Shapes


class ChunkTooLargeError(Exception):
    """A chunk of `size` clients does not fit into memory; `begun`: rows of participants had been replaced by then."""

    def __init__(self, size: int, begun: bool):
        super().__init__(size, begun)
        self.size, self.begun = size, begun


def _if_too_large(error: BaseException, size: int, *, begun: bool) -> BaseException:
    """The error as one of too large a chunk, if that is what it says; else itself."""
    full = isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error) or "out of memory" in str(error).lower()
    return ChunkTooLargeError(size, begun) if full else error
