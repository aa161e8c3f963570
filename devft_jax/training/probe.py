"""Measures how the untuned base changes public text, once, for growths that choose layers by this measure."""

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from devft_jax.config.run_config import RunConfig
from devft_jax.data import Examples, evaluation_batches, length_buckets, public_examples
from devft_jax.errors import InputError
from devft_jax.models.architecture import ModelConfig
from devft_jax.models.base import Base
from devft_jax.models.influence import layer_cosines
from devft_jax.models.llama import Compute
from devft_jax.models.sharding import partition_specs
from devft_jax.runtime.compiled import CompiledPrograms, shared_programs
from devft_jax.runtime.devices import OVER_DEVICES


def probe_examples(config: RunConfig, tokenizer: object | None) -> Examples:
    """The public text on which layers are measured for a growth."""
    if tokenizer is None:
        raise InputError(
            f"growth '{config.growth}' measures the layers on text, but the given model has no tokenizer; pass one "
            "with it, or a growth that is already prepared."
        )
    return public_examples(config.probe_data, config.probe_examples, tokenizer, config)


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
        lengths = np.where(index < 0, 0, examples.lengths[index])
        real = np.arange(tokens.shape[-1]) < lengths[:, None]
        inputs = jax.device_put((tokens, real), split)
        total += np.asarray(programs.call("influence", cosines, base, *inputs), float).sum(axis=0)
        count += int(real.sum())
    return (1 - total / count).tolist()
