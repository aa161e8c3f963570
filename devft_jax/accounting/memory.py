"""Device memory of a stage, by formula and from the compiled program; and the measured peak.

The formula adds up what one device holds while it trains C clients at once on batches of B rows of T tokens: the terms of
`MemoryTerms`. The two workspaces are not needed at the same time, so the peak includes only the larger one. What a layer
keeps is not written by hand: its backward pass is traced on shapes and the values that it holds are summed, which
takes families, dropout, targets, attention kernels and remat policies into account. Weights and factors are counted once.

Accuracy. Compared with XLA's own analysis of the chunk program on CPU in float32 (`compiled_memory`: arguments, outputs and
temporaries less aliased buffers), the formula gave 0.86 to 1.18 of it over small models of 2 to 16 layers, all remat
policies, 1 to 8 clients, packed and float weights, and ranks 8 to 64, and 0.87 and 0.94 for 4 and 32 layers of LLaMA2-7B;
tests hold it to 0.85 to 1.2. It is less accurate where one term dominates a small model: 1.3 to 1.4 with remat none and
attention scores of 8 heads over 256 to 1,024 tokens; 0.78 with remat full and dropout on all seven targets; 0.84 with a head
of 60,000 entries. In bfloat16 the CPU's compiler keeps float32 copies beside the bfloat16 values and needs up to twice the
formula, which then describes an accelerator. It has not been compared with a GPU's or TPU's compiler.

If s devices hold the base together (`model_shards`), each has 1/s of the large weights in the first three terms; the
workspace then also has the largest projection, gathered in its stored form, and the loss the gathered head.

The attention kernel is that of the platform on which the plan is made: `xla` holds the scores of all pairs of tokens, cudnn
does not. Memory of the host process, of compilation, and the allocator's fragmentation are not counted.
"""

import functools
import math
import resource
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from devft_jax.accounting.communication import Messages, round_messages
from devft_jax.errors import InputError
from devft_jax.federated.algorithm import Algorithm
from devft_jax.federated.local import make_optimizer
from devft_jax.federated.messages import message_bytes
from devft_jax.federated.round.chunk import chunk_shapes, jit_chunk, zero_sums
from devft_jax.federated.round.client import LocalTraining
from devft_jax.federated.round.in_flight import CHUNKS_IN_FLIGHT
from devft_jax.models.adapter import Adapter
from devft_jax.models.architecture import PROJECTIONS, ModelConfig
from devft_jax.models.base import Base
from devft_jax.models.decoder import decoder_layer, rotary_table
from devft_jax.models.hypernetwork import adapt, generator_of
from devft_jax.models.llama import REMAT_POLICIES, Compute, causal_attention
from devft_jax.models.quantization import base_shapes
from devft_jax.models.sharding import part_bytes, placed_shapes, shard_base, shard_blocks
from devft_jax.models.weights import ShardedWeight, Weight
from devft_jax.runtime.compiled import CompiledMemory
from devft_jax.runtime.devices import MODEL_AXIS, OVER_DEVICES, client_mesh, shapes_on
from devft_jax.typing import PyTree

# Per position of a batch: the token id, i32, and whether the token belongs to an answer.
TOKEN_BYTES = 5


@dataclass(frozen=True)
class Work:
    """What a device trains at once.

    Attributes:
      clients: C.
      steps: S, the batches of one client.
      batch: B, the rows of a batch.
      length: T, the tokens of a row.
    """

    clients: int
    steps: int
    batch: int
    length: int


@dataclass(frozen=True)
class MemoryTerms:
    """Bytes on one device, by what they hold.

    Attributes:
      embedding_and_head: embedding, final norm and head, in the compute dtype.
      stage_layers: the dense layers of the submodel, floats or packed; at full depth the base's own.
      full_layers: the base's own layers, which the simulator keeps in addition to a submodel made from them. A real client's
        device does not hold them, unless it fuses the layers itself.
      message: the downlink message, what clients know without one (such as a dense correction of the frozen weights) and, in
        the simulator, the float32 sums of contributions.
      batches: token ids and masks of all local steps; in the simulator those of two chunks, one running and one waiting.
      lora: the trained leaves in float32, per client.
      gradients: those of the trained leaves.
      moments: the optimiser's state: two moments under adamw, none under sgd.
      updates: three more copies per client: the optimiser's updates, the change since the start of the round, and the
        message to send.
      activations: what each layer keeps for the backward pass under the remat policy, times the layers.
      layer_workspace: what one layer needs during its backward pass: all its intermediate values, kept, sliced or
        recomputed, and its largest packed weight in expanded form.
      loss_chunk: logits of one block of tokens and their gradient, both float32, per client.
    """

    embedding_and_head: int
    stage_layers: int
    full_layers: int
    message: int
    batches: int
    lora: int
    gradients: int
    moments: int
    updates: int
    activations: int
    layer_workspace: int
    loss_chunk: int

    @property
    def total(self) -> int:
        """Peak bytes: the sum of all terms, with only the larger of the two workspaces."""
        return sum(vars(self).values()) - min(self.layer_workspace, self.loss_chunk)

    @property
    def program(self) -> int:
        """The part of `total` that the chunk program itself holds: without the base kept beside it and the waiting chunk."""
        return self.total - self.full_layers - self.batches * (CHUNKS_IN_FLIGHT - 1) // CHUNKS_IN_FLIGHT

    @property
    def weights(self) -> int:
        """Bytes of frozen weights alone."""
        return self.embedding_and_head + self.stage_layers + self.full_layers


def kept_for_backward(function: Callable[..., jax.Array], x: PyTree, trained: PyTree, given: PyTree) -> int:
    """Bytes that the backward pass of `function(x, trained, given)` holds, traced on shapes.

    Args:
      function: the function to differentiate.
      x: shapes of the inputs; counted if the backward pass keeps them.
      trained: shapes of the other differentiated arguments; not counted.
      given: shapes of arguments that are not differentiated, such as frozen weights; not counted.
    """

    def residuals(x: PyTree, trained: PyTree, given: PyTree) -> list[jax.Array]:
        _, backward = jax.vjp(lambda x, trained: function(x, trained, given), x, trained)
        known = jax.tree.leaves((trained, given))
        return [leaf for leaf in jax.tree.leaves(backward) if not any(leaf is other for other in known)]

    return message_bytes(jax.eval_shape(residuals, x, trained, given))


@functools.lru_cache(maxsize=64)
def layer_kept(
    algorithm: Algorithm, config: ModelConfig, compute: Compute, quantization: str, rows: int, length: int
) -> int:
    """Bytes that one decoder layer keeps for its backward pass under the policy `compute.remat`.

    Args:
      algorithm: defines the layer's adapter.
      config: the architecture, at any depth.
      compute: how the layer is executed.
      quantization: of its weights.
      rows: examples, over all clients.
      length: tokens of a row, T.
    """

    def of_one_layer(tree: PyTree) -> PyTree:
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), tree)

    base = base_shapes(config.with_layers(1), dtype=compute.dtype, quantization=quantization)
    adapter = adapter_shapes(algorithm, round_messages(algorithm, config, 1))

    def layer(x: jax.Array, trained: PyTree, given: PyTree) -> jax.Array:
        lora, generator, layer_token = trained
        block, table, keys = given
        scale = {name: jnp.float32(1.0) for name in lora}
        attend = causal_attention(config, compute, length)
        shares = jnp.full((rows, length), 1 / length, jnp.float32)
        change = None if generator is None else functools.partial(adapt, generator, shares, layer_token)
        options: dict[str, Any] = {"table": table, "attend": attend, "dropout": adapter.dropout, "row_keys": keys}
        return decoder_layer(config, x, block, lora, scale, {}, change=change, **options)[0]

    policy = REMAT_POLICIES[compute.remat]
    run = layer if policy is None else jax.checkpoint(layer, policy=policy, prevent_cse=False)
    x = jax.ShapeDtypeStruct((rows, length, config.width), compute.dtype)
    table = jax.eval_shape(lambda: rotary_table(config, jnp.arange(length, dtype=jnp.int32)))
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0, impl="threefry2x32"), rows))
    generator = None if adapter.hyper is None else jax.eval_shape(generator_of, adapter.hyper)
    trained = (of_one_layer(adapter.lora), generator, of_one_layer(adapter.layer_tokens))
    return kept_for_backward(run, x, trained, (of_one_layer(base.blocks), table, keys))


def adapter_shapes(algorithm: Algorithm, messages: Messages) -> Adapter:
    """Shapes of the adapter that a client trains."""
    train, frozen = jax.eval_shape(algorithm.start, messages.participant)
    return jax.eval_shape(algorithm.adapter, train, frozen)


def stage_memory(
    training: LocalTraining,
    work: Work,
    *,
    layers: int,
    frozen: int = 0,
    bare: int = 0,
    quantization: str = "none",
    fused_precision: str = "packed",
    simulator: bool = True,
    model_shards: int = 1,
) -> MemoryTerms:
    """Peak memory of one device in a stage, by formula; takes milliseconds for a model of any size.

    Args:
      training: one client's local training, of the base at full depth; its passes are ignored.
      work: what the device trains at once.
      layers: layers of the stage's submodel that have an adapter.
      frozen: number of the lowest of them that do not learn.
      bare: number of layers below them that run without an adapter.
      quantization: as the option of that name.
      fused_precision: as the option of that name.
      simulator: whether the device belongs to the simulator; otherwise it is a real client's.
      model_shards: how many devices hold the base together.
    """
    algorithm, config, compute = training.algorithm, training.config, training.compute
    depth = layers + bare
    fused = depth < config.layers
    stored = stage_quantization(config, depth, quantization, fused_precision)
    base = base_shapes(config.with_layers(depth), dtype=compute.dtype, quantization=stored)
    model_shards = model_shards if simulator else 1
    divided = shard_base(base, model_shards, MODEL_AXIS)
    messages = round_messages(algorithm, config, layers)
    train, _ = jax.eval_shape(algorithm.start, messages.participant)
    state = jax.eval_shape(lambda train: make_optimizer(training.optimizer, 1.0).init(train), train)
    sums = jax.eval_shape(lambda: zero_sums(algorithm, messages.up, 1))
    rows = work.clients * work.batch
    architecture = config.with_layers(1)
    kept, intermediate = (
        layer_kept(algorithm, architecture, chosen, stored, rows, work.length)
        for chosen in (compute, replace(compute, remat="none"))
    )
    full = base_shapes(config, dtype=compute.dtype, quantization=quantization).blocks if fused and simulator else None
    chunks = CHUNKS_IN_FLIGHT if simulator else 1
    trained = work.clients * message_bytes(train)
    return MemoryTerms(
        embedding_and_head=part_bytes((divided.embed, base.norm, divided.head), model_shards),
        stage_layers=part_bytes(divided.blocks, model_shards),
        full_layers=0 if full is None else part_bytes(shard_blocks(full, model_shards, MODEL_AXIS), model_shards),
        message=messages.bytes_down + message_bytes(messages.broadcast[1]) + (message_bytes(sums) if simulator else 0),
        batches=chunks * work.steps * rows * work.length * TOKEN_BYTES,
        lora=trained,
        gradients=trained,
        moments=work.clients * message_bytes(state),
        updates=3 * trained,
        activations=(layers - frozen) * kept,
        layer_workspace=intermediate
        + expanded_bytes(config, compute, base)
        + max(gathered_bytes(getattr(divided.blocks, name)) // depth for name in PROJECTIONS),
        loss_chunk=2 * 4 * work.clients * min(compute.head_rows, work.batch * (work.length - 1)) * config.vocabulary
        + gathered_bytes(divided.embed if divided.head is None else divided.head),
    )


def stage_quantization(config: ModelConfig, layers: int, quantization: str, fused_precision: str) -> str:
    """How a stage's layers are stored: quantised like the base, or as floats if fused layers stay floats."""
    return quantization if layers == config.layers or fused_precision == "packed" else "none"


def expanded_bytes(config: ModelConfig, compute: Compute, base: Base) -> int:
    """Bytes of the largest packed projection of one layer in expanded form: in float32 and then in the compute dtype."""
    packed = [name for name in PROJECTIONS if isinstance(getattr(base.blocks, name), Weight)]
    largest = max((math.prod(config.projection_shape(name)) for name in packed), default=0)
    return largest * (4 + jnp.dtype(compute.dtype).itemsize)


def gathered_bytes(weight: Any) -> int:
    """Bytes of a sharded weight, in its stored form, while it is gathered; 0 for a weight that each device holds whole."""
    return message_bytes(weight) if isinstance(weight, ShardedWeight) else 0


def compiled_memory(
    training: LocalTraining,
    work: Work,
    *,
    layers: int,
    frozen: int = 0,
    bare: int = 0,
    quantization: str = "none",
    fused_precision: str = "packed",
    model_shards: int = 1,
) -> CompiledMemory | None:
    """Memory of the simulator's chunk program on one device, from compiling it on shapes alone.

    Args:
      training: as in `stage_memory`.
      work: as in `stage_memory`.
      layers: as in `stage_memory`.
      frozen: as in `stage_memory`.
      bare: as in `stage_memory`.
      quantization: as in `stage_memory`.
      fused_precision: as in `stage_memory`.
      model_shards: as in `stage_memory`.

    Returns:
      XLA's analysis; None if the platform's compiler offers none.

    Raises:
      InputError: this machine has fewer devices than `model_shards`.
    """
    found = jax.local_devices()
    if model_shards > len(found):
        raise InputError(
            f"model_shards {model_shards} exceeds the {len(found)} device(s) of this machine, on which --compile would "
            "compile the program; leave --compile out here."
        )
    mesh = client_mesh(found[:model_shards], model_shards)
    algorithm, config, compute = training.algorithm, training.config, training.compute
    stored = stage_quantization(config, layers + bare, quantization, fused_precision)
    base = base_shapes(config.with_layers(layers + bare), dtype=compute.dtype, quantization=stored)
    base = placed_shapes(shard_base(base, model_shards, MODEL_AXIS), mesh)
    messages = round_messages(algorithm, config, layers)
    shape = (work.steps, work.batch, work.length)
    batch = jax.ShapeDtypeStruct(shape, "int32"), jax.ShapeDtypeStruct(shape, "bool")
    learning = jax.ShapeDtypeStruct((layers,), "bool")
    row, clients = messages.participant.row, work.clients * model_shards
    inputs = chunk_shapes(mesh, base, messages.broadcast, row, batch, learning, clients=clients)
    sums = jax.eval_shape(lambda: zero_sums(algorithm, messages.up, model_shards))
    training = replace(training, compute=replace(compute, frozen_layers=frozen))
    lowered = jit_chunk(training, mesh).lower(inputs, shapes_on(NamedSharding(mesh, OVER_DEVICES), sums))
    return CompiledMemory.of(lowered.compile())


class MemoryMeter:
    """Measures a run's peak memory, as its rise over what the process held when the meter was created.

    On accelerators that report their memory it is that of the device with the largest rise, otherwise that of the process's
    resident set. Runs started later in the same process therefore do not count the memory of earlier ones. If the system
    cannot reset its peak and an earlier run's peak was higher, only an upper bound of the rise is known, and the source says
    so.
    """

    def __init__(self) -> None:
        self._devices = _device_bytes()
        self._peak_reset = _reset_peak()
        self._start, self._peak = _resident_bytes()

    def peak(self) -> tuple[int, str]:
        """Bytes since the start, and the source of the figure."""
        if self._devices:
            rises = [
                (peak - held, peak > peak_before)
                for (_, peak), (held, peak_before) in zip(_device_bytes(), self._devices, strict=True)
            ]
            most, is_own = max(rises)
            return max(0, most), "device allocator, rise over the run's start" + ("" if is_own else _AT_MOST)
        _, peak = _resident_bytes()
        known = self._peak_reset or peak > self._peak
        return max(0, peak - self._start), "process resident set, rise over the run's start" + ("" if known else _AT_MOST)


_AT_MOST = ", an upper bound: the process used more before the run"


def _device_bytes() -> list[tuple[int, int]]:
    """Bytes in use and peak bytes of every local device; empty if the devices do not report them."""
    statistics = [device.memory_stats() or {} for device in jax.local_devices()]
    if not all("peak_bytes_in_use" in entry for entry in statistics):
        return []
    return [(entry.get("bytes_in_use", 0), entry["peak_bytes_in_use"]) for entry in statistics]


def _reset_peak() -> bool:
    """Reset the process's peak memory, which is possible only on Linux; returns whether it worked."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _resident_bytes() -> tuple[int, int]:
    """Resident bytes of the process and their peak; the peak twice if only the peak is known."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        now, peak = (int(lines[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
    except (OSError, KeyError, ValueError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        return peak, peak
    return now, peak
