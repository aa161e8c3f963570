"""Options that all growths share: the growth, its stages, and the layers of each.

A growth with options of its own declares them in its own file, as a dataclass that extends these. The metadata of a field
say which values it may have, under which other options it is read, and with `of="growth"` that only the growths read it that
name it in `NamedGrowth.reads`; `devft_jax.options.option` documents every key.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from devft_jax.developmental.measures import OF_TEXT
from devft_jax.developmental.schedule import geometric_schedule, halving_schedule, linear_schedule, validate_capacities

# Number of stages if neither stages nor capacities are given and the schedule does not determine it.
DEFAULT_STAGES = 4
PLATEAU = {"stage_end": ("plateau",)}


def option(default: Any, **declared: Any) -> Any:
    """A dataclass field with this declaration as its metadata."""
    return dataclasses.field(default=default, metadata=declared)


@dataclass(frozen=True)
class Condition:
    """A condition under which an option has an effect, for the key `needs`; has the members of `devft_jax.options.Need`.

    Attributes:
      holds: whether the option has an effect in a run with this configuration.
      reason: why it has none, written to follow the option's name in a sentence.
      remedy: what would give it an effect, as an imperative.
      part: the part of the run that decides this.
    """

    holds: Callable[[Any], bool]
    reason: str
    remedy: str
    part: str = "growth"

    def reason_in(self, config: Any) -> str:
        """Why the option has no effect.

        Args:
          config: the run's configuration.
        """
        return self.reason


MEASURES = Condition(
    lambda config: config.growth != "devft" or (config.similarity in OF_TEXT and config.grouping in ("dglg", "contiguous")),
    "has no effect with a similarity of weights",
    f"use --similarity {', '.join(OF_TEXT[:-1])} or {OF_TEXT[-1]}",
)


@dataclass(frozen=True, kw_only=True)
class StageOptions:
    """Which submodel trains when, and how long a stage lasts."""

    growth: str = "devft"
    """Which submodel trains when: a name of `devft list`, or a user-defined growth as package.module:name."""
    stage_rounds: tuple[int, ...] | None = option(None, at_least=1, at_most=10**5, remedy="use 1 or more for every stage")
    """Rounds of each stage; by default `rounds` is divided in the growth's own shares, equal ones for most growths."""
    stage_end: str = option("fixed", choices=("fixed", "plateau"))
    """When a stage ends: fixed (after its rounds) or plateau (as soon as its mean training loss has flattened; its remaining
    rounds go to the last stage, so that the length of the run does not change)."""
    plateau_rounds: int = option(5, at_least=1, when=PLATEAU)
    """Rounds over which a plateau is detected: the mean loss of the last so many rounds is compared with that of as many
    before."""
    plateau_improvement: float = option(0.01, within="[0, 1)", remedy="0.01 is one per cent", when=PLATEAU)
    """Relative decrease of that mean loss below which it counts as flat."""
    min_stage_rounds: int = option(1, at_least=1, when=PLATEAU)
    """Least rounds of a stage, even on a plateau; the planned rounds are the most."""


@dataclass(frozen=True, kw_only=True)
class CapacityOptions(StageOptions):
    """The layers of each stage."""

    capacities: tuple[int, ...] | None = option(None, of="growth", at_least=1, at_most=10**6)
    """Layers of each stage, ascending, such as 4,8,16,32; by default those of `capacity_schedule`."""
    capacity_schedule: str = option(
        "geometric", of="growth", choices=("geometric", "linear", "eigengap"), beside="capacities"
    )
    """Layers of each stage if `capacities` is not given: geometric (doubling; from an eighth of the model, or backwards from
    the full depth in `stages` steps), linear (equal steps), or eigengap (devft only: near the geometric ones, where the
    layers' similarity has its widest spectral gap)."""
    stages: int | None = option(None, of="growth", at_least=1, at_most=10**4, beside="capacities")
    """Number of stages of a schedule; by default 4, or as many as doubling from an eighth of the model takes."""


@dataclass(frozen=True, kw_only=True)
class TextOptions(CapacityOptions):
    """Public text on which layers are measured."""

    probe_data: str | None = option(None, of="growth", path=True, needs=(MEASURES,))
    """Public text on which layers are measured, named like `data`; by default generated tasks, none of which is a built-in
    test record."""
    probe_examples: int = option(32, of="growth", at_least=1, at_most=10**7, needs=(MEASURES,))
    """Number of its examples."""


def planned_capacities(options: CapacityOptions, num_layers: int) -> tuple[int, ...]:
    """The capacities that the options name for a model of this depth; for eigengap the centres of its windows.

    Raises:
      ValueError: they do not fit the model.
    """
    if options.capacities is not None:
        return validate_capacities(options.capacities, num_layers)
    if options.capacity_schedule == "linear":
        return linear_schedule(num_layers, min(DEFAULT_STAGES, num_layers) if options.stages is None else options.stages)
    if options.stages is None:
        return geometric_schedule(num_layers, max(1, num_layers // 8), 2)
    return halving_schedule(num_layers, options.stages)
