"""Which options have an effect under which others: one table, by which options without effect are refused.

Who gives an option that a run does not read expects another run, so it is refused in one sentence that says whose it is. It
matters what was *given*:

    on the command line     a flag, or an entry of a configuration file, whose value is not the one that the command starts
                            from: the default, or the preset's. A file that holds every option is the record of a run and
                            starts the command like a preset.
    in an arm               every option of its own; what all arms share need be read by one of them.
    in Python               what `RunConfig(...)` was called with, if it is not the default. A configuration that was derived
                            by `dataclasses.replace` carries what was meant for another, and is not asked.

Options of execution may be given without effect, since it is the machine that decides whether they have one. When a run is
resumed, options without effect are not compared.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields
from typing import Any

from devft_jax.config.run_config import ROOMS, RunConfig
from devft_jax.data import has_held_out, is_built_in, resolved_partition
from devft_jax.errors import InputError

DEFAULTS = RunConfig()


@dataclass(frozen=True)
class Condition:
    """Where an option is read.

    Attributes:
      part: of the run that decides, "data", "algorithm" or "growth"; None for options of no such part.
      holds: whether the option is read. reason: why it is not where it is not, to follow its name.
      remedy: what gives it an effect.
    """

    part: str | None
    holds: Callable[[RunConfig], bool]
    reason: Callable[[RunConfig], str]
    remedy: str


PARTS = {
    "partition": "data",
    "algorithm": "algorithm",
    "domain_rule": "algorithm",
    "growth": "growth",
    "fusion": "growth",
}
"""The part of a run that an option chooses."""


def of(decider: str, *values: str) -> Condition:
    """Read under these values of another option alone."""
    word, flag = decider.replace("_", " "), f"--{decider.replace('_', '-')}"
    return Condition(
        PARTS.get(decider),
        lambda config: getattr(config, decider) in values,
        lambda config: f"is read by {listed(values, 'and')} only and the {word} is {getattr(config, decider)}",
        f"use {flag} {listed(values, 'or')}",
    )


def unless(decider: str, values: Collection[str], because: str) -> Condition:
    """Read under all values of another option but these, which would not because of this."""
    word, flag = decider.replace("_", " "), f"--{decider.replace('_', '-')}"
    return Condition(
        PARTS.get(decider),
        lambda config: getattr(config, decider) not in values,
        lambda config: f"has no effect with the {word} {getattr(config, decider)}, which {because}",
        f"use another {flag}",
    )


def where(holds: Callable[[RunConfig], bool], reason: str, remedy: str, part: str | None = None) -> Condition:
    """Read where this holds."""
    return Condition(part, holds, lambda config: reason, remedy)


def listed(words: Collection[str], last: str) -> str:
    """a, b and c."""
    *others, end = words
    return f"{', '.join(others)} {last} {end}" if others else end


BY_CAPACITIES = ("devft", "skip-grow", "top-grow")
"""Growths whose stages are `capacities`."""
BUILDING = ("devft", "progfed", "skip-grow")
"""Growths that make a model of fewer layers."""

SKEWED = of("partition", "dirichlet", "topic", "length", "quantity")
NATURAL_SPLIT = Condition(
    "data",
    lambda config: resolved_partition(config) in ("field", "file", None),
    lambda config: f"is read by field and file splits only and the partition is {resolved_partition(config)}",
    "use --partition field or file",
)
DRAWN_SPLIT = Condition(
    "data",
    lambda config: resolved_partition(config) not in ("field", "file"),
    lambda config: f"has no effect with the partition {resolved_partition(config)}, which gives its own number of clients",
    "use another --partition, such as iid",
)
FIELDS_NAMED = where(
    lambda config: (
        not all(is_built_in(spec) for spec in (config.data, config.test_data, config.probe_data) if spec is not None)
    ),
    "has no effect on built-in data, whose fields are known",
    "name other --data",
    part="data",
)
HELD_OUT = where(has_held_out, "has no effect without held-out data", "give --test-data or --test-fraction", part="data")
ADAPTED = unless("algorithm", ("c2a",), "makes adapters by a hypernetwork, of the size that hyper_rank and hyper_width say")
SENT = unless("algorithm", ("local-only", "central"), "sends no message")
GROWN = of("growth", *BY_CAPACITIES)
FUSED = of("growth", "devft")
STAGED = unless("growth", ("end-to-end",), "has one stage")
ON_PLATEAU = of("stage_end", "plateau")
ADAMW = of("optimizer", "adamw")
WITHOUT_CAPACITIES = where(
    lambda config: config.capacities is None or config.growth == "progfed",
    "has no effect beside capacities",
    "leave capacities out",
    part="growth",
)
ABOVE_FLOOR = where(
    lambda config: max(config.learning_rate) > config.min_learning_rate,
    "has no effect where no learning_rate is above min_learning_rate, since a rate below it stays as it is",
    "lower min_learning_rate",
)

READ: Mapping[str, tuple[Condition, ...]] = {
    # data
    "fields": (FIELDS_NAMED,),
    "category_field": (FIELDS_NAMED,),
    "test_limit": (HELD_OUT,),
    "clients": (DRAWN_SPLIT,),
    "min_examples": (NATURAL_SPLIT,),
    "dirichlet_alpha": (SKEWED,),
    "partition_groups": (of("partition", "topic", "length"),),
    # quantization
    "fused_precision": (of("growth", *BUILDING),),
    "fuse_from": (of("growth", *BUILDING),),
    # lora
    "rank": (ADAPTED,),
    "alpha": (ADAPTED,),
    "dropout": (ADAPTED,),
    "targets": (ADAPTED,),
    # growth
    "capacities": (GROWN,),
    "capacity_schedule": (GROWN, WITHOUT_CAPACITIES),
    "stages": (of("growth", *BY_CAPACITIES, "progfed"), WITHOUT_CAPACITIES),
    "stage_end": (STAGED,),
    "plateau_rounds": (STAGED, ON_PLATEAU),
    "plateau_improvement": (STAGED, ON_PLATEAU),
    "min_stage_rounds": (STAGED, ON_PLATEAU),
    "progfed_schedule": (
        of("growth", "progfed"),
        where(lambda config: config.stage_rounds is None, "has no effect beside stage_rounds", "leave stage_rounds out"),
    ),
    "warmup_rounds": (of("growth", "progfed"),),
    "probe_data": (of("growth", "skip-grow"),),
    "probe_examples": (of("growth", "skip-grow"),),
    "grouping": (FUSED,),
    "fusion": (FUSED,),
    "beta": (FUSED, of("fusion", "dblf")),
    "gauge_alignment": (FUSED,),
    "transfer": (FUSED,),
    # federated
    "rounds": (
        Condition(
            None,
            lambda config: config.stage_rounds is None or config.rounds == sum(config.stage_rounds),
            lambda config: (
                f"disagrees, as stage_rounds names {len(config.stage_rounds or ())} stages of "
                f"{shown(config.stage_rounds)} rounds, {sum(config.stage_rounds or ())} in all"
            ),
            "make them agree",
        ),
    ),
    "weighting": (unless("algorithm", ("local-only", "central"), "takes no mean over clients"),),
    "message_dtype": (SENT,),
    # algorithm
    "prox_mu": (of("algorithm", "fedprox"),),
    "server_learning_rate": (of("algorithm", "fedadagrad", "fedyogi", "fedadam", "flasc"),),
    "server_beta1": (of("algorithm", "fedavgm", "fedyogi", "fedadam", "flasc"),),
    "server_beta2": (of("algorithm", "fedyogi", "fedadam", "flasc"),),
    "server_tau": (of("algorithm", "fedadagrad", "fedyogi", "fedadam"),),
    "second_moment": (of("algorithm", "fedyogi", "fedadam"),),
    "momentum_form": (of("algorithm", "fedavgm"),),
    "client_ranks": (of("algorithm", "flora", "hetlora"),),
    "rank_shrink": (of("algorithm", "hetlora"),),
    "rank_penalty": (of("algorithm", "hetlora"),),
    "domains": (of("algorithm", "dofit"),),
    "domain_top": (of("algorithm", "dofit"),),
    "domain_step": (of("algorithm", "dofit"), of("domain_rule", "dofit")),
    "domain_rule": (of("algorithm", "dofit"),),
    "hyper_rank": (of("algorithm", "c2a"),),
    "hyper_width": (of("algorithm", "c2a"),),
    "hyper_clusters": (of("algorithm", "c2a"),),
    "hyper_ungated": (of("algorithm", "c2a"),),
    "density_down": (of("algorithm", "flasc"),),
    "density_up": (of("algorithm", "flasc"),),
    "ffa_initialisation": (of("algorithm", "ffa-lora"),),
    "rotation": (of("algorithm", "fedrot-lora"),),
    # learning rate
    "schedule": (ABOVE_FLOOR,),
    "min_learning_rate": (unless("schedule", ("constant",), "never changes the rate"), ABOVE_FLOOR),
    # optimiser
    "weight_decay": (ADAMW,),
    "beta1": (ADAMW,),
    "beta2": (ADAMW,),
    "epsilon": (ADAMW,),
    # evaluation
    "evaluate_every": (HELD_OUT,),
    "evaluate_full": (
        STAGED,
        HELD_OUT,
        where(
            lambda config: config.evaluate_every > 0,
            "has no effect without evaluations within the stages",
            "give --evaluate-every",
        ),
    ),
}
"""Where each option is read, if all of its conditions hold; what is not here is always read, or is of execution alone."""


def unread(config: RunConfig, objects: Collection[str] = ()) -> dict[str, Condition]:
    """The options that have no effect under the others, with the first condition that fails.

    Args:
      config: of valid values. objects: parts of the run that were given as objects; nothing is known of what they read.
    """
    found = {}
    for name, conditions in READ.items():
        if any(condition.part in objects for condition in conditions):
            continue
        failed = next((condition for condition in conditions if not condition.holds(config)), None)
        if failed is not None:
            found[name] = failed
    return found


def changed(config: RunConfig, start: RunConfig = DEFAULTS) -> set[str]:
    """The options whose values are not those that a request starts from."""
    names = [field.name for room in ROOMS for field in fields(room)]
    return {name for name in names if getattr(config, name) != getattr(start, name)}


def given_options(config: RunConfig) -> frozenset[str]:
    """The options that were given, and not only the default once more."""
    return config.given & changed(config)


def check_effects(config: RunConfig, objects: Collection[str] = ()) -> None:
    """Raise `InputError` for an option that was given and has no effect; see `unread` for the arguments."""
    given = given_options(config)
    found = {name: condition for name, condition in unread(config, objects).items() if name in given}
    for name, condition in found.items():
        others = [told(config, other) for other in found if other != name]
        besides = f" ({listed(others, 'and')} {'has' if len(others) == 1 else 'have'} no effect either)" if others else ""
        raise InputError(f"{told(config, name)} {condition.reason(config)}; leave it out or {condition.remedy}{besides}.")


def check_arms_effects(common: RunConfig, arms: Mapping[str, tuple[RunConfig, Collection[str]]]) -> None:
    """Raise `InputError` for an option that an arm was given and does not read, or that all were and none reads.

    Args:
      common: what the arms share. arms: by name, each one's configuration and the names of the options of its own.
    """
    lacking = {name: unread(config) for name, (config, _) in arms.items()}
    for arm, (config, own) in arms.items():
        for name in own:
            if name in lacking[arm] and getattr(config, name) is not None:
                raise InputError(
                    f"the arm '{arm}' sets {told(config, name)}, which {lacking[arm][name].reason(config)}; leave it out."
                )
    for name in sorted(given_options(common)):
        if all(name in each for each in lacking.values()):
            arm = next(iter(arms))
            raise InputError(
                f"no arm reads {told(common, name)}: in '{arm}' it {lacking[arm][name].reason(arms[arm][0])}; leave it out, "
                "or add an arm that reads it."
            )


def told(config: RunConfig, name: str) -> str:
    """An option with its value."""
    return f"{name} {shown(getattr(config, name))}"


def shown(value: Any) -> str:
    """A value as a flag has it."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
