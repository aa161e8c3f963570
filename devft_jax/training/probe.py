"""Measures what the layers of the untuned base do to public text, once, for growths that choose layers by it."""

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from devft_jax.config.run_config import RunConfig
from devft_jax.data import Examples, evaluation_batches, length_buckets, public_examples
from devft_jax.developmental import linear_cka, token_cosines
from devft_jax.models.architecture import ModelConfig
from devft_jax.models.base import Base
from devft_jax.models.influence import layer_cosines, layer_outputs
from devft_jax.models.llama import Compute
from devft_jax.models.sharding import partition_specs
from devft_jax.runtime.compiled import CompiledPrograms, shared_programs
from devft_jax.runtime.devices import OVER_DEVICES

TOKENS = 1024
"""Most tokens, evenly spaced over the examples, whose outputs are compared: all layers' outputs are held at once."""

COMPARISONS = {"hidden": token_cosines, "cka": linear_cka}
"""The functions that compare layers' outputs, by the names of the similarities."""


def probe_examples(config: RunConfig, tokenizer: object) -> Examples:
    """The public text on which layers are measured for a growth, or distilled."""
    return public_examples(config.probe_data, config.probe_examples, tokenizer, config)


def real_tokens(examples: Examples, index: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Which entries of a batch are tokens of an example: bool[B, T].

    Args:
      examples: the examples.
      index: integers [B], their numbers in the batch, -1 for a row of padding.
      tokens: i32[B, T], the batch.
    """
    lengths = np.where(index < 0, 0, examples.lengths[index])
    return np.arange(tokens.shape[-1]) < lengths[:, None]


@shared_programs
def jit_cosines(config: ModelConfig, compute: Compute, mesh: Mesh) -> jax.stages.Wrapped:
    """(base, tokens, real) -> `layer_cosines` of each device's examples, [devices, L]."""

    def of_device(base: Base, tokens: jax.Array, real: jax.Array) -> jax.Array:
        return layer_cosines(config, base, tokens, real, compute=compute)[None]

    def cosines(base: Base, tokens: jax.Array, real: jax.Array) -> jax.Array:
        specs = (partition_specs(base), OVER_DEVICES, OVER_DEVICES)
        over_devices = jax.shard_map(of_device, mesh=mesh, in_specs=specs, out_specs=OVER_DEVICES, check_vma=False)
        return over_devices(base, tokens, real)

    return jax.jit(cosines)


def block_influence(
    model: ModelConfig,
    base: Base,
    compute: Compute,
    examples: Examples,
    config: RunConfig,
    mesh: Mesh,
    programs: CompiledPrograms,
) -> list[float]:
    """How much each layer of the base changes its input: 1 - the mean cosine similarity, over all tokens of `examples`.

    `base` is on the devices of `mesh`, over which the examples are divided.
    """
    cosines = jit_cosines(model, compute, mesh)
    split = NamedSharding(mesh, OVER_DEVICES)
    rows = -(-config.evaluation_batch // mesh.size) * mesh.size
    total, count = np.zeros(model.layers), 0
    for index, tokens, _ in evaluation_batches(examples, rows, length_buckets(config.max_length)):
        real = real_tokens(examples, index, tokens)
        inputs = jax.device_put((tokens, real), split)
        total += np.asarray(programs.call("influence", cosines, base, *inputs), float).sum(axis=0)
        count += int(real.sum())
    return (1 - total / count).tolist()


@shared_programs
def jit_outputs(config: ModelConfig, compute: Compute, mesh: Mesh) -> jax.stages.Wrapped:
    """(base, tokens, places) -> `layer_outputs`, computed by all devices alike, because some may only hold parts."""

    def of_device(base: Base, tokens: jax.Array, places: jax.Array) -> jax.Array:
        return layer_outputs(config, base, tokens, places, compute=compute)

    def outputs(base: Base, tokens: jax.Array, places: jax.Array) -> jax.Array:
        specs, everywhere = partition_specs(base), PartitionSpec()
        over_devices = jax.shard_map(
            of_device, mesh=mesh, in_specs=(specs, everywhere, everywhere), out_specs=everywhere, check_vma=False
        )
        return over_devices(base, tokens, places)

    return jax.jit(outputs)


def text_similarity(
    kind: str,
    model: ModelConfig,
    base: Base,
    compute: Compute,
    examples: Examples,
    config: RunConfig,
    mesh: Mesh,
    programs: CompiledPrograms,
) -> np.ndarray:
    """The similarity of the layers' outputs at up to `TOKENS` tokens of `examples`: f32[L, L].

    `kind` is a key of `COMPARISONS`; `base` is on the devices of `mesh`.
    """
    rows = min(config.evaluation_batch, len(examples))
    step = -(-int(examples.lengths.sum()) // TOKENS)
    program, everywhere = jit_outputs(model, compute, mesh), NamedSharding(mesh, PartitionSpec())
    passed, found = 0, []
    for index, tokens, _ in evaluation_batches(examples, rows, length_buckets(config.max_length)):
        real = np.flatnonzero(real_tokens(examples, index, tokens))
        chosen = real[-passed % step :: step]
        passed += len(real)
        # As many places for all batches of a shape, so that they share a program.
        places = np.zeros(-(-tokens.size // step), np.int32)
        places[: len(chosen)] = chosen
        inputs = jax.device_put((tokens, places), everywhere)
        outputs = programs.call("similarity", program, base, *inputs)
        found.append(np.asarray(outputs)[:, : len(chosen)])
    return np.asarray(COMPARISONS[kind](np.concatenate(found, axis=1)))
