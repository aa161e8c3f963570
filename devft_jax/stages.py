"""The stages of a run as its configuration names them: the growth, and how many rounds each stage gets."""

from devft_jax.config import RunConfig
from devft_jax.developmental import Growth, make_growth, proposed_rounds
from devft_jax.errors import InputError


def named_growth(config: RunConfig, num_layers: int) -> Growth:
    """The growth that a configuration names, for a model of this depth."""
    try:
        return make_growth(config, num_layers)
    except ValueError as error:
        raise InputError(str(error)) from error


def plan_stages(config: RunConfig, growth: Growth, num_layers: int) -> tuple[int, ...]:
    """Rounds of each stage: as configured, or in the shares that the growth proposes."""
    # Of configured rounds only their number is compared, so the proposal may be one of any length.
    rounds = config.rounds if config.stage_rounds is None else max(config.rounds, 10**6)
    try:
        proposed = proposed_rounds(growth, rounds, num_layers)
    except ValueError as error:
        raise InputError(str(error)) from error
    if config.stage_rounds is not None:
        if proposed is not None and len(config.stage_rounds) != len(proposed):
            raise InputError(
                f"stage_rounds names {len(config.stage_rounds)} stages and the growth has {len(proposed)}; "
                "give one number of rounds per stage."
            )
        return config.stage_rounds
    if proposed is None:
        raise InputError(
            "stage_rounds is needed for a growth that does not tell its stages; give the rounds of each, such as (20, 20)."
        )
    return proposed
