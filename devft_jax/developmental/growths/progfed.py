"""ProgFed (Wang et al., Effective, Communication-, and Computation-Efficient Federated Learning by Progressive Training,
ICML 2022): a prefix of the model that grows block by block.

The L layers are divided into S blocks. In stage s the model is the blocks 1..s, all of which learn, followed by the head:

    fuse = [I_d 0],  d = s L / S,    layers above d are absent and keep their LoRA (at first b = 0).

The original trains convolutional networks from scratch and gives every prefix a small head of its own. Here every prefix is
followed by the pre-trained model's final norm and head, frozen, and no parameter is new.

Rounds (`halving`, as in the authors' code): T / (2 S) for every stage except the last, which gets the rest; `equal` shares
are ours. Warm-up: after each growth, rounds in which only the newest block learns. Here they are a stage of their own and
count as rounds of the run, while the authors' code runs them in addition to its T rounds and keeps the learning rate
constant in them; here the rate follows the schedule. The adapter of the whole prefix is sent in them too, as in any other
round.
"""

import dataclasses
from itertools import pairwise

import jax.numpy as jnp

from devft_jax.developmental.growth import FixedGrowth
from devft_jax.developmental.maps import LayerMap
from devft_jax.developmental.options import PROGFED_SCHEDULES, ProgFedOptions
from devft_jax.developmental.schedule import DEFAULT_STAGES, equal_shares, linear_schedule, validate_capacities


@dataclasses.dataclass(frozen=True)
class ProgFed(FixedGrowth):
    """Prefixes of growing depth.

    Attributes:
      blocks: S, the number of prefixes; that of `capacities` if they are given.
      schedule: "halving" or "equal".
      warmup_rounds: rounds after each growth in which only the newest block learns; 0 for none.
      capacities: depths of the prefixes, ascending; by default S equal steps up to the full depth.
    """

    blocks: int = DEFAULT_STAGES
    schedule: str = "halving"
    warmup_rounds: int = 0
    capacities: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        """Refuse options that are wrong for any model."""
        if self.schedule not in PROGFED_SCHEDULES:
            raise ValueError(f"progfed_schedule {self.schedule!r} is unknown: choose from {', '.join(PROGFED_SCHEDULES)}.")
        if self.warmup_rounds < 0:
            raise ValueError(f"warmup_rounds {self.warmup_rounds} is negative: use 0 for none.")
        if self.capacities is not None:
            object.__setattr__(self, "capacities", validate_capacities(self.capacities))
            object.__setattr__(self, "blocks", len(self.capacities))

    def steps(self, num_layers: int) -> tuple[tuple[int, int], ...]:
        """(depth, lowest layer that learns) of every stage, warm-ups included.

        Args:
          num_layers: L, the depth of the model.
        """
        if self.capacities is None:
            depths = linear_schedule(num_layers, self.blocks)
        else:
            depths = validate_capacities(self.capacities, num_layers)
        steps = [(depths[0], 0)]
        for before, depth in pairwise(depths):
            steps += [(depth, before), (depth, 0)] if self.warmup_rounds else [(depth, 0)]
        return tuple(steps)

    def stage_map(self, stage: int, num_layers: int) -> LayerMap | None:
        """The prefix of a stage; None after the last stage.

        Args:
          stage: 0, 1, ...
          num_layers: L, the depth of the model.
        """
        steps = self.steps(num_layers)
        if stage >= len(steps):
            return None
        depth, lowest = steps[stage]
        layers = jnp.arange(num_layers, dtype=jnp.int32)
        assign = jnp.where(layers < depth, layers, -1)
        return LayerMap(jnp.eye(depth, num_layers, dtype=jnp.float32), assign, jnp.arange(depth, dtype=jnp.int32) >= lowest)

    def stage_rounds(self, rounds: int, num_layers: int) -> tuple[int, ...]:
        """The rounds of every stage, warm-ups included.

        Args:
          rounds: rounds of the whole run.
          num_layers: L, the depth of the model.

        Raises:
          ValueError: a stage would have none.
        """
        growing = rounds - (self.blocks - 1) * self.warmup_rounds
        if self.schedule == "halving":
            share = growing // (2 * self.blocks)
            shares: tuple[int, ...] = (*[share] * (self.blocks - 1), growing - share * (self.blocks - 1))
        else:
            shares = equal_shares(max(growing, self.blocks), self.blocks)
        if growing < self.blocks or min(shares) < 1:
            least = self.blocks * (2 if self.schedule == "halving" and self.blocks > 1 else 1)
            raise ValueError(
                f"rounds {rounds} leaves a stage of progfed without a round: use "
                f"{least + (self.blocks - 1) * self.warmup_rounds} or more, or fewer stages."
            )
        own = iter(shares)
        return tuple(self.warmup_rounds if lowest else next(own) for _, lowest in self.steps(num_layers))


def make(options: ProgFedOptions, num_layers: int) -> ProgFed:
    """ProgFed with the given options.

    Args:
      options: the growth options.
      num_layers: L, the depth of the model.

    Raises:
      ValueError: the options do not fit the model.
    """
    blocks = min(DEFAULT_STAGES, num_layers) if options.stages is None else options.stages
    growth = ProgFed(blocks=blocks, schedule=options.progfed_schedule, warmup_rounds=options.warmup_rounds)
    growth.steps(num_layers)
    return growth
