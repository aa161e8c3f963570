"""A round over a cohort: chunks of clients, one compiled program each, streamed.

    broadcast, zero sums
    for each chunk:    sums, outputs = chunk(inputs, sums)        devft_jax.federated.round.chunk
    server, metrics    finalize(server, sum over devices)         devft_jax.federated.round.server

Memory depends on `clients_per_step`, not on the cohort or the population. While chunks run, a thread of the host draws,
reads and assembles the next ones (`devft_jax.federated.round.assembly`), and what clients keep is written back when their
chunk ends. A client whose loss or update is not finite gets weight zero and is named in the round's result.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from devft_jax.federated.algorithm import Share
from devft_jax.federated.messages import messages_bytes
from devft_jax.federated.round.assembly import Assemble, Bank, HostChunk, host_chunks, trained_by
from devft_jax.federated.round.chunk import (
    ChunkInputs,
    ClientInputs,
    ClientOutputs,
    RoundInputs,
    chunk_shapes,
    jit_chunk,
    jit_zero_sums,
)
from devft_jax.federated.round.client import LocalTraining, frozen_rows
from devft_jax.federated.round.client_shapes import ClientShapes, ShapesByState
from devft_jax.federated.round.in_flight import ChunkTooLargeError, InFlight, in_order
from devft_jax.federated.round.results import Group, Part, RoundResult
from devft_jax.federated.round.server import add_over_devices, cumulative_bytes, jit_add, jit_broadcast, jit_finalize
from devft_jax.federated.round.together import add_over_processes, agree_on_size, outputs_of_all
from devft_jax.federated.work import ClientWork
from devft_jax.models.base import Base
from devft_jax.runtime.all_devices import AllDevices
from devft_jax.runtime.compiled import CompiledPrograms
from devft_jax.runtime.devices import OVER_DEVICES, client_mesh, shapes_on
from devft_jax.runtime.prefetch import prefetch
from devft_jax.runtime.processes import ALONE, Processes
from devft_jax.typing import PyTree

# Chunks that may wait on the host in addition.
CHUNKS_AHEAD = 2


class Cohort:
    """Runs rounds of one algorithm for one model shape on the local devices, or its part of them with other processes.

    Args:
      training: what the program of a client's round is built from.
      devices: local devices to use.
      processes: the processes that share every round, each with as many devices; this one alone by default.
      model_shards: how many of them hold a base together, as `shard_base` divides it.
      clients_per_step: clients of a chunk, a multiple of the devices of all processes.
      partial_work: whether participants may take fewer local steps than others.
      scaled: whether participants' messages have factors.
      assemble: makes batches from examples, on a background thread.
      programs: keeps and counts compiled programs.
    """

    def __init__(
        self,
        training: LocalTraining,
        *,
        devices: Sequence[jax.Device],
        processes: Processes = ALONE,
        model_shards: int = 1,
        clients_per_step: int,
        partial_work: bool = False,
        scaled: bool = False,
        assemble: Assemble,
        programs: CompiledPrograms,
    ):
        self.training, self.algorithm = training, training.algorithm
        self.mesh = client_mesh(devices, model_shards)
        self.processes, self.devices = processes, len(devices) * processes.count
        self.all_devices = AllDevices.of(processes, self.mesh)
        self.clients_per_step, self.partial_work, self.scaled = clients_per_step, partial_work, scaled
        self.assemble = assemble
        self.programs = programs
        self.shared = NamedSharding(self.mesh, PartitionSpec())
        self.split = NamedSharding(self.mesh, OVER_DEVICES)
        self._shapes = ShapesByState(self.algorithm)
        self._broadcast = jit_broadcast(self.algorithm)
        self._finalize = jit_finalize(self.algorithm)

    def prepare(self, base: Base, server: PyTree, row: PyTree, batch: PyTree, train_rows: np.ndarray) -> None:
        """Start to compile the programs of rounds from such a state. All trees may hold arrays or shapes.

        Args:
          base: shapes of the stage's model, as placed on the devices.
          server: the algorithm's state in the stage.
          row: what one client keeps.
          batch: one client's examples, [S, B, ...].
          train_rows: as in `run`.
        """
        broadcast = jax.eval_shape(self._broadcast, server)
        zeros = self._zero_sums(self._shapes.of(broadcast, row))
        sums = jax.eval_shape(zeros)
        inputs = self.all_devices.together(
            chunk_shapes(
                self.mesh,
                base,
                broadcast,
                row,
                batch,
                train_rows,
                clients=self.clients_per_step // self.processes.count,
                partial_work=self.partial_work,
                scaled=self.scaled,
            )
        )
        self.programs.prepare("chunk", self._chunk_program(train_rows), inputs, shapes_on(self.all_devices.split, sums))
        part = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape[1:]), leaf.dtype), sums)
        total = shapes_on(SingleDeviceSharding(self.mesh.devices.flat[0]), part)
        self.programs.prepare("zero_sums", zeros)
        if not self.processes.several and self.mesh.size > 1 and (leaves := jax.tree.leaves(total)):
            self.programs.prepare("add", jit_add(), leaves, leaves)
        self.programs.prepare("finalize", self._finalize, shapes_on(None, server), total)
        self.programs.prepare("broadcast", self._broadcast, shapes_on(None, server))

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
          server: the algorithm's state.
          bank: the clients' rows; those of participants whose update is finite are replaced.
          cohort: the participants, each once.
          lr: the round's learning rate.
          keys: ids u32[C] -> key[C], the clients' random keys in the round.
          train_rows: bool[G], which of the stage's layers learn.

        Raises:
          ValueError: a participant's weight is not positive and finite.
          ChunkTooLargeError: a chunk does not fit into memory.
        """
        return self.run_groups(base, server, bank, [Group(server, cohort, lr, keys)], train_rows)

    def run_groups(
        self, base: Base, server: PyTree, bank: Bank, groups: Sequence[Group], train_rows: np.ndarray
    ) -> RoundResult:
        """One round whose participants may begin from different states of the server, all of the same stage.

        If no participant's update is finite there is nothing to aggregate, and the server's state does not change.

        Args:
          base: the stage's frozen model, placed on the devices of `mesh`.
          server: the algorithm's state, to which all messages are added.
          bank: the clients' rows; those of participants whose update is finite are replaced.
          groups: the participants, at least one in each group and each once in all; the result has them in this order.
          train_rows: bool[G], which of the stage's layers learn.

        Raises:
          ValueError: a participant's weight is not positive and finite.
          ChunkTooLargeError: a chunk does not fit into memory.
        """
        starts = [self._start(base, group.server, bank, group.lr, train_rows) for group in groups]
        start, sums, in_flight = starts[0], starts[0].sums, InFlight(bank, self.clients_per_step)
        examples_by_length: Counter[int] = Counter()
        first = 0
        self._move_rows(groups, bank)
        with self._fitting_in_all(self.clients_per_step):
            for group, own in zip(groups, starts, strict=True):
                sums = self._train(own, group, sums, in_flight, examples_by_length, first=first)
                first += len(group.cohort)
            ended = in_flight.finish()
        outputs = self._of_all(ended, in_flight)
        statistics, metrics = outputs.statistics, dict[str, jax.Array]()
        if statistics.finite.any():
            total = self._total(sums)
            server, metrics = self.programs.call("finalize", self._finalize, server, total)
        shapes, (down_ranks, up_ranks) = start.shapes, outputs.ranks
        # A participant that holds all clients' examples is the server itself: nothing is sent.
        senders = 0 if self.algorithm.pools else first
        return RoundResult(
            server=server,
            losses=np.asarray(statistics.loss),
            update_norms=np.asarray(statistics.update_norm),
            finite=np.asarray(statistics.finite),
            metrics={name: float(value) for name, value in metrics.items()},
            bytes_up=messages_bytes(shapes.up, up_ranks, senders),
            bytes_down=messages_bytes(shapes.down, down_ranks, senders),
            examples_by_length=dict(examples_by_length),
            bytes_cumulative=cumulative_bytes(self.algorithm, shapes.down, down_ranks),
            adapter=shapes.adapter,
            train=shapes.train,
        )

    def part(
        self, base: Base, bank: Bank, group: Group, *, train_rows: np.ndarray, frozen: int, clients_per_step: int
    ) -> Part:
        """Train participants that hold a part of the model, without a step of the server.

        Args:
          base: the part's frozen layers, placed on the devices of `mesh`.
          bank: the clients' rows.
          group: the participants and the part's state of the server.
          train_rows: bool[G], which of the part's layers learn.
          frozen: number of the lowest layers that need no backward pass.
          clients_per_step: clients of a chunk, a multiple of the devices of all processes.

        Raises:
          ChunkTooLargeError: a chunk does not fit into memory.
        """
        start = self._start(base, group.server, bank, group.lr, train_rows, frozen)
        in_flight, lengths, sums = InFlight(bank, clients_per_step), Counter[int](), start.sums
        with self._fitting_in_all(clients_per_step):
            sums = self._train(start, group, sums, in_flight, lengths, clients_per_step=clients_per_step)
            ended = in_flight.finish()
        outputs = self._of_all(ended, in_flight)
        total = jax.tree.map(lambda leaf: leaf[0], self._total(sums))
        shapes = start.shapes
        return Part(total, outputs, dict(lengths), shapes.down, shapes.up, shapes.adapter, shapes.train)

    def _train(
        self,
        start: "_Start",
        group: Group,
        sums: PyTree,
        in_flight: InFlight,
        lengths: Counter[int],
        *,
        first: int = 0,
        clients_per_step: int | None = None,
    ) -> PyTree:
        """Launch a group's chunks and return the sums with its clients; its places in the round begin at `first`."""
        size = clients_per_step or self.clients_per_step
        with in_flight.checked(), prefetch(self._host_chunks(group.cohort, in_flight.bank, size), CHUNKS_AHEAD) as chunks:
            for chunk in chunks:
                lengths.update(chunk.lengths)
                sums, outputs = self._launch(start, self._on_devices(chunk, group.keys), sums)
                in_flight.add(replace(chunk, slots=chunk.slots + first), outputs)
        return sums

    def _host_chunks(self, cohort: Sequence[ClientWork], bank: Bank, size: int) -> Iterator[HostChunk]:
        return host_chunks(cohort, bank, self.assemble, size=size, devices=self.devices, processes=self.processes)

    @contextmanager
    def _fitting_in_all(self, size: int) -> Iterator[None]:
        """Around the launch of chunks: one that does not fit into the memory of one process is reported by all."""
        try:
            yield
        except ChunkTooLargeError as error:
            agree_on_size(self.processes, error, size)
            raise
        if self.processes.several:
            agree_on_size(self.processes, None, size)

    def _of_all(self, ended: tuple[np.ndarray, ClientOutputs], in_flight: InFlight) -> ClientOutputs:
        """The outputs of all processes' participants, in their places' order."""
        found = outputs_of_all(self.processes, ended, in_flight.places) if self.processes.several else ended
        return in_order(*found)

    def _move_rows(self, groups: Sequence["Group"], bank: Bank) -> None:
        """Bring every participant's row to the process that trains it."""
        if self.processes.several and jax.tree.leaves(bank.row):
            for group in groups:
                count = self.processes.count
                bank.move(*trained_by(group.cohort, size=self.clients_per_step, devices=self.devices, count=count))

    def _total(self, sums: PyTree) -> PyTree:
        """The sum over the devices of all processes, in their order."""
        if not self.processes.several:
            return add_over_devices(self.programs, sums)
        self.processes.meet()
        return add_over_processes(self.programs, sums, self.all_devices.mesh)

    def _chunk_program(self, train_rows: np.ndarray, frozen: int | None = None) -> jax.stages.Wrapped:
        """The chunk of a stage, without a backward pass in the lowest layers that do not learn, or in `frozen` of them."""
        lowest = frozen_rows(self.algorithm, train_rows) if frozen is None else frozen
        compute = replace(self.training.compute, frozen_layers=lowest)
        return jit_chunk(replace(self.training, compute=compute), self.all_devices.mesh)

    def _zero_sums(self, shapes: ClientShapes) -> jax.stages.Wrapped:
        """Makes the sums with which a round begins."""
        leaves, structure = jax.tree.flatten(shapes.up)
        return jit_zero_sums(self.algorithm, structure, tuple(leaves), self.all_devices.split)

    def _start(
        self, base: Base, server: PyTree, bank: Bank, lr: float, train_rows: np.ndarray, frozen: int | None = None
    ) -> "_Start":
        broadcast = self.programs.call("broadcast", self._broadcast, server)
        shapes = self._shapes.of(broadcast, bank.row)
        broadcast, rate, learning = jax.device_put((broadcast, jnp.float32(lr), train_rows), self.shared)
        inputs = RoundInputs(base=base, broadcast=broadcast, lr=rate, train_rows=learning)
        return _Start(
            program=self._chunk_program(train_rows, frozen),
            inputs=self.all_devices.together(inputs),
            sums=self.programs.call("zero_sums", self._zero_sums(shapes)),
            shapes=shapes,
        )

    def _on_devices(self, chunk: HostChunk, keys: Callable[[np.ndarray], jax.Array]) -> ClientInputs:
        """A chunk's arrays on the devices."""
        inputs = chunk.rows, chunk.batches, chunk.weights, chunk.slots, keys(chunk.ids)
        rows, batches, weights, slots, client_keys = jax.device_put(inputs, self.split)
        return self.all_devices.together(
            ClientInputs(
                rows=rows,
                batches=batches,
                shares=Share(weights, slots),
                keys=client_keys,
                steps=jax.device_put(chunk.steps, self.split) if self.partial_work else None,
                scales=jax.device_put(chunk.scales, self.split) if self.scaled else None,
            )
        )

    def _launch(self, start: "_Start", clients: ClientInputs, sums: PyTree) -> tuple[PyTree, ClientOutputs]:
        """Run a chunk; `sums` must not be used afterwards."""
        inputs = ChunkInputs(shared=start.inputs, clients=clients)
        sums, outputs = self.programs.call("chunk", start.program, inputs, sums)
        return sums, self.all_devices.apart(outputs)


@dataclass(frozen=True)
class _Start:
    """What all chunks of a round share: program, inputs, zero sums, and shapes of one client's trees."""

    program: jax.stages.Wrapped
    inputs: RoundInputs
    sums: PyTree
    shapes: ClientShapes
