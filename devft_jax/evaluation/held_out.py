"""Held-out loss and exact match in one forward pass per batch.

Exact match is 1 for an example if greedy decoding would reproduce the reference completion, end of sequence included. This
holds exactly if the reference token is the most likely one at every completion position given the reference before it, so
no decoding is needed. (A completion that spells the same text with other tokens counts as wrong, as it does when
token ids are compared after decoding.)
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from devft_jax.data import Examples, evaluation_batches, evaluation_order
from devft_jax.models.adapter import Adapter
from devft_jax.models.architecture import ModelConfig
from devft_jax.models.base import Base
from devft_jax.models.llama import Compute
from devft_jax.models.loss import completion_statistics
from devft_jax.models.sharding import partition_specs, place_frozen, placed_shapes
from devft_jax.runtime.all_devices import AllDevices
from devft_jax.runtime.compiled import CompiledPrograms, shared_programs
from devft_jax.runtime.devices import OVER_DEVICES, client_mesh, shapes_on
from devft_jax.runtime.processes import ALONE, Processes


@dataclass(frozen=True)
class Evaluation:
    """The result of a model on held-out examples.

    Attributes:
      loss: mean negative log-likelihood of the completion tokens, nats per token.
      accuracy: share of examples whose whole completion greedy decoding reproduces.
      hits: bool[N], whether each example was answered exactly.
      examples: N, the number of examples.
    """

    loss: float
    accuracy: float
    hits: np.ndarray
    examples: int


@shared_programs
def jit_scores(config: ModelConfig, compute: Compute, mesh: Mesh) -> jax.stages.Wrapped:
    """(base, adapter, tokens i32[B, T], mask bool[B, T]) -> every row's negative log-likelihood f32[B] and exact match
    bool[B]."""

    def score(base: Base, adapter: Adapter | None, tokens: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
        statistics = completion_statistics(config, base, adapter, tokens, mask, compute=compute)
        assert statistics.hit is not None
        return jnp.sum(statistics.nll, axis=-1), jnp.all(statistics.hit, axis=-1)

    # Every device evaluates its own rows; devices that hold the base together only exchange parts of it.
    def scores(base: Base, *arguments: Any) -> tuple[jax.Array, jax.Array]:
        specs = (partition_specs(base), PartitionSpec(), OVER_DEVICES, OVER_DEVICES)
        over_devices = jax.shard_map(score, mesh=mesh, in_specs=specs, out_specs=OVER_DEVICES, check_vma=False)
        return over_devices(base, *arguments)

    return jax.jit(scores)


class HeldOut:
    """Evaluates adapters on one set of examples; batches are divided over the devices.

    Args:
      config: the model's architecture.
      compute: how the model is executed.
      examples: the held-out data.
      buckets: padded lengths, ascending.
      batch_size: most examples evaluated at once, rounded up to a multiple of the devices; batches are of equal size, so
        that few rows are empty.
      devices: local devices to use.
      processes: those among which every batch is divided, each with as many devices; called by all of them.
      model_shards: how many of them hold a base together, as `shard_base` divides it.
      programs: keeps and counts compiled programs.
    """

    def __init__(
        self,
        config: ModelConfig,
        compute: Compute,
        examples: Examples,
        *,
        buckets: Sequence[int],
        batch_size: int,
        devices: Sequence[jax.Device],
        processes: Processes = ALONE,
        model_shards: int = 1,
        programs: CompiledPrograms,
    ):
        self.mesh = client_mesh(devices, model_shards)
        self.all_devices = AllDevices.of(processes, self.mesh)
        self.examples = examples
        self.buckets = buckets
        self.processes = processes
        batches, everywhere = -(-len(examples) // batch_size), len(devices) * processes.count
        self.batch_size = -(-len(examples) // (batches * everywhere)) * everywhere
        self.programs = programs
        self.split = NamedSharding(self.mesh, OVER_DEVICES)
        self._scores = jit_scores(config, compute, self.all_devices.mesh)

    def prepare(self, base: Base, adapter: Adapter) -> None:
        """Start to compile the programs that evaluate an adapter on a base.

        Args:
          base: arrays or shapes.
          adapter: arrays or shapes.
        """
        model = placed_shapes((base, adapter), self.mesh)
        for length in sorted({length for _, length in evaluation_order(self.examples, self.batch_size, self.buckets)}):
            shape = (self.batch_size // self.processes.count, length)
            inputs = jax.ShapeDtypeStruct(shape, np.int32), jax.ShapeDtypeStruct(shape, np.bool_)
            arguments = self.all_devices.together((*model, *shapes_on(self.split, inputs)))
            self.programs.prepare("evaluate", self._scores, *arguments)

    def __call__(self, base: Base, adapter: Adapter | None) -> Evaluation:
        """Evaluate every held-out example.

        Args:
          base: the model.
          adapter: its adapter; None for the base alone.
        """
        base, adapter = self.all_devices.together(place_frozen((base, adapter), self.mesh))
        rows = self.batch_size // self.processes.count
        own = slice(self.processes.index * rows, (self.processes.index + 1) * rows)
        indices, pending = [], []
        tokens_counted = 0
        batches = evaluation_batches(self.examples, self.batch_size, self.buckets)
        for index, tokens, mask in batches:
            inputs = self.all_devices.together(jax.device_put((tokens[own], mask[own]), self.split))
            tokens_counted += int(mask.sum())
            indices.append(index)
            scores = self.programs.call("evaluate", self._scores, base, adapter, *inputs)
            pending.append(self.all_devices.apart(scores))
        nll = 0.0
        hits = np.zeros(len(self.examples), bool)
        for index, (nll_of_rows, hit_of_rows) in zip(indices, self._of_all(pending), strict=True):
            real = index >= 0
            nll += float(nll_of_rows[real].sum(dtype=np.float64))
            hits[index[real]] = hit_of_rows[real]
        return Evaluation(
            loss=nll / max(tokens_counted, 1),
            accuracy=float(hits.mean()),
            hits=hits,
            examples=len(self.examples),
        )

    def _of_all(self, pending: list[tuple[jax.Array, jax.Array]]) -> Iterable[tuple[np.ndarray, np.ndarray]]:
        """The scores of each batch's rows, from the process that has computed them."""
        if not self.processes.several:
            return map(jax.device_get, pending)
        # [P, batches, rows of a process] -> [batches, rows of a batch]
        gathered = self.processes.gathered([np.stack(each) for each in zip(*jax.device_get(pending), strict=True)])
        nll, hits = (each.swapaxes(0, 1).reshape(len(pending), self.batch_size) for each in gathered)
        return zip(nll, hits, strict=True)
