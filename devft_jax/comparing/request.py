"""The request for a comparison: its options, and the checked request with the arms under every budget."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from devft_jax.comparing.arms import Arm, parse_arm, read_arms, total_rounds
from devft_jax.comparing.budgets import Configured, configure, leanest, within_bytes
from devft_jax.comparing.options import CompareOptions
from devft_jax.config.effects import check_arms_effects, check_effects, given_options
from devft_jax.config.run_config import RunConfig
from devft_jax.config.validation import validate
from devft_jax.data import check_data_found
from devft_jax.errors import InputError
from devft_jax.options import check_options
from devft_jax.reporting.units import BYTES, readable


@dataclass(frozen=True)
class Terms:
    """A requested budget.

    Attributes:
      kind: rounds or bytes.
      text: the budget in words.
      arms: the arms with their rounds within the budget.
      left_out: a sentence on each arm that does not fit.
    """

    kind: str
    text: str
    arms: Sequence[Configured]
    left_out: Sequence[str] = ()


@dataclass(frozen=True)
class Request:
    """A checked request.

    Attributes:
      common: the options that all arms share.
      options: the options of the comparison itself.
      budgets: the arms under every budget.
      seeds: seeds of the runs.
      reference: the arm to which differences are computed.
      own_grid: whether the comparison itself chose the rounds at which arms are evaluated.
    """

    common: RunConfig
    options: CompareOptions
    budgets: Sequence[Terms]
    seeds: tuple[int, ...]
    reference: str
    own_grid: bool


def check_request(common: RunConfig, options: CompareOptions) -> Request:
    """Find every error that can be known before the first run.

    Args:
      common: the options that all arms share.
      options: the options of the comparison itself.

    Returns:
      The request, with every arm's configuration.

    Raises:
      InputError: the request is invalid.
    """
    arms = _arms(options)
    check_options(options)
    _check_named_arms(options, [arm.name for arm in arms])
    seeds = options.seeds if options.seeds is not None else (common.seed,)
    for seed in seeds:
        validate(dataclasses.replace(common, seed=seed))
    if options.learning_rates is not None and "learning_rate" in given_options(common):
        raise InputError(
            "learning_rate has no effect beside learning_rates, which searches a rate for every arm; leave one of them out."
        )
    _check_rates(options, seeds, [arm.name for arm in arms if "learning_rate" in arm.overrides])
    check_data_found(common)
    asked = common
    # Arms have their own stages; the common rounds are those of the configuration's own growth.
    common = dataclasses.replace(common, rounds=total_rounds(common))
    own_grid = bool(options.evaluations and not common.evaluate_every)
    if own_grid:
        common = dataclasses.replace(common, evaluate_every=-(-common.rounds // options.evaluations))
    configured = configure(arms, common)
    if any(each.config.stop_after is not None for each in configured):
        raise InputError(
            "stop_after ends runs after different rounds, but the runs of a comparison have equal rounds or bytes; leave it "
            "out."
        )
    check_effects(asked.with_given(asked.given & {"rounds"}))
    check_arms_effects(asked, {each.arm.name: (each.config, each.arm.overrides) for each in configured})
    reference = options.reference or arms[0].name
    budgets = [
        _equal_rounds(configured, common.rounds)
        if kind == "rounds"
        else _equal_bytes(configured, common.rounds, options, reference)
        for kind in options.budget
    ]
    return Request(common, options, budgets, tuple(seeds), reference, own_grid)


def _arms(options: CompareOptions) -> list[Arm]:
    if (options.arms is None) == (options.arms_file is None):
        raise InputError("arms are given by --arms or by --arms-file; give one of them, such as --arms fedit,fedit+devft.")
    return [parse_arm(text) for text in options.arms or ()] if options.arms_file is None else read_arms(options.arms_file)


def _check_named_arms(options: CompareOptions, arms: Sequence[str]) -> None:
    """Raise `InputError` for an option that names an unknown arm, or names one without effect."""
    for named, name in (("reference", options.reference), ("budget_of", options.budget_of)):
        if name is not None and name not in arms:
            raise InputError(f"{named} '{name}' is not among the arms; choose from {', '.join(arms)}.")
    if options.budget_of is not None and "bytes" not in options.budget:
        raise InputError(
            "budget_of names the arm whose bytes are the budget, but the budget is rounds; also give --budget bytes."
        )


def _equal_rounds(arms: Sequence[Configured], rounds: int) -> Terms:
    others = [each.arm.name for each in arms if each.rounds != rounds]
    but = f", but for {', '.join(others)}" if others else ""
    return Terms("rounds", f"Equal rounds: {rounds}{but}", arms)


def _equal_bytes(arms: Sequence[Configured], rounds: int, options: CompareOptions, reference: str) -> Terms:
    of = options.budget_of or leanest(arms)
    found = within_bytes(arms, of)
    if reference not in [each.arm.name for each in found.arms]:
        raise InputError(f"the reference does not fit: {' '.join(found.left_out)} Name another --reference or --budget-of.")
    sent = readable(found.budget, BYTES)
    text = f"Equal bytes: {sent} sent up by all clients, as {of} does; at most {rounds} rounds"
    return Terms("bytes", text, found.arms, found.left_out)


def _check_rates(options: CompareOptions, seeds: Sequence[int], fixed: Sequence[str]) -> None:
    if options.learning_rates is None:
        return
    if shared := sorted({*options.tuning_seeds} & {*seeds}):
        raise InputError(
            f"tuning_seeds {shared[0]} is among the seeds, which would favour the rates chosen on it; name another."
        )
    if fixed:
        raise InputError(
            f"the arm '{fixed[0]}' sets its own learning_rate, but learning_rates searches one for every arm; leave one "
            "of them out."
        )
