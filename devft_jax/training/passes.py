"""How a run divides the examples of local steps into passes, and which padded lengths repay their compilation."""

from collections.abc import Sequence

import numpy as np

from devft_jax.accounting.flops import Adaptation, training_flops
from devft_jax.config.run_config import RunConfig
from devft_jax.federated.local import Passes, choose_passes
from devft_jax.federated.work import Rounds
from devft_jax.models.architecture import ModelConfig


def passes_of_run(
    config: RunConfig,
    model: ModelConfig,
    rounds: Rounds,
    stage_rounds: Sequence[int],
    depths: Sequence[int] | None,
    platform: str,
) -> Passes:
    """The passes of all local steps of a run.

    Args:
      config: a valid configuration.
      model: the base's architecture.
      rounds: the run's rounds.
      stage_rounds: rounds of every stage.
      depths: layers of every stage; None if they are not known in advance, and then taken to be those of the base.
      platform: platform of the devices.
    """
    lengths = rounds.data.train.lengths
    examples = rounds.participants * rounds.steps * rounds.batch_size
    return choose_passes(
        lengths,
        batch_size=config.batch_size,
        examples=config.examples_per_pass,
        most_lengths=config.length_buckets,
        platform=platform,
        token_flops=examples * _token_flops(model, lengths, stage_rounds, depths),
    )


def _token_flops(
    model: ModelConfig, lengths: np.ndarray, stage_rounds: Sequence[int], depths: Sequence[int] | None
) -> float:
    """Operations of training on one token in every round, by the frozen weights alone, for each program of the stages."""
    depths = [model.layers] * len(stage_rounds) if depths is None else depths
    length = int(np.mean(lengths))
    spent = [
        count * training_flops(model, layers=depth, adaptation=Adaptation(depth, 0, 0), length=length)
        for count, depth in zip(stage_rounds, depths, strict=False)
    ]
    return sum(spent) / len(set(depths))
