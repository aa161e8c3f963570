"""What the untuned base does to public text: measured once, for growths that choose layers by it."""

import jax
import numpy as np

from devft_jax.config import RunConfig
from devft_jax.data import Examples, evaluation_batches, length_buckets, public_examples
from devft_jax.errors import InputError
from devft_jax.models.influence import layer_cosines
from devft_jax.models.llama import Compute, ModelConfig
from devft_jax.models.pretrained import Model
from devft_jax.programs import CompiledPrograms, shared_programs


def probe_examples(config: RunConfig, tokenizer: object | None) -> Examples:
    """The public text on which a growth has the layers measured."""
    if tokenizer is None:
        raise InputError(
            f"growth '{config.growth}' measures the layers on text and the given model has no tokenizer; give one "
            "with it, or a growth that has been prepared."
        )
    return public_examples(config.probe_data, config.probe_examples, tokenizer, config)


@shared_programs
def jit_cosines(config: ModelConfig, compute: Compute) -> jax.stages.Wrapped:
    """`layer_cosines` of (base, tokens, real), ready to be compiled."""
    return jax.jit(lambda base, tokens, real: layer_cosines(config, base, tokens, real, compute=compute))


def block_influence(
    model: Model, compute: Compute, examples: Examples, config: RunConfig, programs: CompiledPrograms
) -> list[float]:
    """How much each layer of the base changes what passes through it: 1 - the mean cosine, over all tokens of `examples`."""
    cosines = jit_cosines(model.config, compute)
    total, count = np.zeros(model.config.layers), 0
    for index, tokens, _ in evaluation_batches(examples, config.evaluation_batch, length_buckets(config.max_length)):
        lengths = np.where(index < 0, 0, examples.lengths[index])
        real = np.arange(tokens.shape[-1]) < lengths[:, None]
        total += np.asarray(programs.call("influence", cosines, model.base, tokens, real), float)
        count += int(real.sum())
    return (1 - total / count).tolist()
