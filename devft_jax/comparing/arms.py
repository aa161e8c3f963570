"""The arms of a comparison: how they are written, the configuration of each, and its length under a budget.

    ALGORITHM                      the algorithm on the full model throughout
    ALGORITHM+GROWTH               the algorithm on a model that grows
    package.module:ALGORITHM       one's own, as for `--algorithm`; the same for a growth
    ARM:option=value:...           with options of `devft run`; several values are joined by /, as in capacities=2/4/8
    ARM@bytes=ANOTHER              with the rank at which it sends as many bytes, over all rounds, as another arm
    ARM@flops=ANOTHER              with as many rounds as compute what another arm computes

In a YAML file each arm has a title, by which others name it:

    FedIT: {algorithm: fedit}
    DevFT: {algorithm: fedit, growth: devft, beta: 0.2}
    FedIT at DevFT's bytes: {algorithm: fedit, bytes_of: DevFT}

Bytes are those of all clients' messages up and operations those of their training, both from the run's plan. Where ranks
differ between clients or rounds the plan bounds the bytes; such an arm is cut by the bound, and is no measure for others. A
control comes as close as whole ranks or rounds allow; of two equally near it takes the larger. Its alpha keeps alpha / rank.
"""

import bisect
import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from devft_jax.config.files import MOST_CONFIG_BYTES, config_from_mapping
from devft_jax.config.methods import METHODS, algorithm_of, growth_of, imports, known_method
from devft_jax.config.run_config import RunConfig, field_types, option_value
from devft_jax.config.validation import validate
from devft_jax.config.values import item_kind
from devft_jax.data import DataOptions
from devft_jax.errors import InputError
from devft_jax.federated.options import validate_learning_rate
from devft_jax.files import checked_path, printable, read_yaml
from devft_jax.models.architecture import ModelConfig
from devft_jax.models.huggingface.reading import model_architecture
from devft_jax.models.lora import narrowest_target
from devft_jax.options import closest
from devft_jax.planning.planner import make_plan
from devft_jax.reporting.units import BYTES, readable
from devft_jax.training.checks import check_ranks
from devft_jax.training.stages import check_composition, plan_stages
from devft_jax.training.submodels import model_path

END_TO_END = "end-to-end"
CONTROLS = {"bytes": "bytes_up", "flops": "train_flops"}
"""What a control equals, and the name of that figure in a plan."""

COMMON = {*(each.name for each in dataclasses.fields(DataOptions)), "model", "seed", "out", "rounds"}
COMMON |= {"evaluate_every", "evaluate_full"}
"""Options that all arms share: with another of these an arm would not be compared on the same clients, data and budget, or
not be judged at the same rounds."""

UNKNOWN_BYTES = (
    "has ranks that differ between clients or rounds, so that only an upper bound of its bytes is known beforehand"
)
"""Why an arm is no measure of bytes for others."""


@dataclass(frozen=True)
class Arm:
    """One method of a comparison, as it was written.

    Attributes:
      name: its title, or the text that it was written as. overrides: plain values of options of a run.
      control: what it is to have as another arm has, a key of `CONTROLS`; None where nothing. target: that arm's name.
    """

    name: str
    algorithm: str
    growth: str = END_TO_END
    overrides: Mapping[str, Any] = field(default_factory=dict)
    control: str | None = None
    target: str | None = None


@dataclass(frozen=True)
class Configured:
    """An arm with its configuration.

    Attributes:
      config: with all of its rounds. note: how its rounds or rank came about; empty where they are the common ones.
    """

    arm: Arm
    config: RunConfig
    note: str = ""


def parse_arm(text: str) -> Arm:
    """An arm from its text; see the module's docstring."""
    head, _, control = text.partition("@")
    method, options = _method_and_options(head)
    algorithm, plus, growth = method.partition("+")
    overrides = {}
    for option in options:
        name, equals, value = option.partition("=")
        if not equals or not name or not value:
            raise InputError(f"the arm '{text}' has the option '{option}'; write it as option=value.")
        name = name.replace("-", "_")
        with _naming(text):
            overrides[name] = _value(name, value)
    kind, _, target = control.partition("=")
    if "@" in text and (kind not in CONTROLS or not target):
        raise InputError(
            f"the arm '{text}' ends in '@{control}'; write @bytes=ARM or @flops=ARM with the name of another arm."
        )
    return _checked(Arm(text, algorithm, growth if plus else END_TO_END, overrides, kind or None, target or None))


def _method_and_options(text: str) -> tuple[str, list[str]]:
    """ALGORITHM+GROWTH, and the options behind it; a name that imports holds a colon itself, package.module:name."""
    known = {name for names in METHODS.values() for name in names}
    method, *rest = text.split(":")
    # A name of the package is whole; behind another stands the name of an object in it.
    while rest and "=" not in rest[0] and ":" not in method.rpartition("+")[2]:
        if method.rpartition("+")[2].lower() in known:
            break
        method = f"{method}:{rest.pop(0)}"
    return method, rest


def _value(name: str, text: str) -> Any:
    """The value of an option as a flag would take it, in which / stands between values of a list."""
    kind = field_types().get(name)
    if kind is None:
        # Said where the arm's configuration is made, as of a file's options.
        return text
    return option_value(name, text.replace("/", ",") if item_kind(kind) is not None else text)


def read_arms(path: str | Path) -> list[Arm]:
    """The arms of a YAML file: a mapping of options, or the text of an arm, by title."""
    path = checked_path(path, "arms_file")
    found = read_yaml(path, "the arms file", MOST_CONFIG_BYTES)
    if not isinstance(found, dict) or not found:
        raise InputError(
            f"the arms file {printable(str(path))} must hold arms by title, such as FedIT: {{algorithm: fedit}}."
        )
    return [_arm_of(str(title), value) for title, value in found.items()]


def _arm_of(title: str, value: Any) -> Arm:
    if isinstance(value, str):
        return dataclasses.replace(parse_arm(value), name=title)
    if not isinstance(value, dict) or "algorithm" not in value:
        raise InputError(f"the arm '{title}' must name its algorithm, such as {{algorithm: fedit, growth: devft}}.")
    overrides = {str(name): item for name, item in value.items()}
    targets = {kind: str(overrides.pop(f"{kind}_of")) for kind in CONTROLS if f"{kind}_of" in overrides}
    if len(targets) > 1:
        raise InputError(f"the arm '{title}' has bytes_of and flops_of; give one.")
    control, target = next(iter(targets.items()), (None, None))
    algorithm, growth = str(overrides.pop("algorithm")), str(overrides.pop("growth", END_TO_END))
    return _checked(Arm(title, algorithm, growth, overrides, control, target))


def _checked(arm: Arm) -> Arm:
    """The arm with its algorithm and growth as their names are written, or an `InputError`."""
    found: dict[str, Any] = {}
    for kind, name in (("algorithm", arm.algorithm), ("growth", arm.growth)):
        known = METHODS[kind]
        if imports(name):
            with _naming(arm.name):
                found[kind] = known_method(kind, name)
            continue
        if name.lower() not in known:
            hint = closest(name.lower(), known, f"choose from {', '.join(known)}.")
            raise InputError(f"the arm '{arm.name}' names the {kind} '{name}', which does not exist; {hint}")
        found[kind] = name.lower()
    shared = sorted(COMMON & arm.overrides.keys())
    if shared:
        raise InputError(
            f"the arm '{arm.name}' sets {shared[0]}, which all arms share so that they can be compared; give it for all of "
            f"them, as --{shared[0].replace('_', '-')}."
        )
    return dataclasses.replace(arm, **found)


def check_arms(arms: Sequence[Arm]) -> None:
    """Raise `InputError` unless names are unique and every control's target is an arm that is none itself."""
    if not arms:
        raise InputError("no arms are given; name some with --arms, such as --arms fedit,fedit+devft.")
    names = [arm.name for arm in arms]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"the arm '{twice}' is given twice; give each once, or titles of their own in --arms-file.")
    plain = [arm.name for arm in arms if arm.control is None]
    for arm in arms:
        if arm.control is not None and arm.target not in plain:
            raise InputError(
                f"the arm '{arm.name}' is to have the {arm.control} of '{arm.target}', which is no arm with a length of its "
                f"own here; choose from {', '.join(plain) or '(none)'}."
            )


def architecture_of(config: RunConfig) -> ModelConfig:
    """Of the base that a configuration names."""
    return model_architecture(model_path(config.model))


def check_stages(config: RunConfig) -> None:
    """Raise `InputError` for stages or ranks that do not fit the model, or rates that do not fit the stages."""
    architecture = architecture_of(config)
    check_ranks(config, architecture)
    layers = architecture.layers
    growth = growth_of(config, layers)
    validate_learning_rate(config, len(plan_stages(config, growth, layers)))
    check_composition(algorithm_of(config), growth.shapes(layers) or ())


class Costs:
    """What a configuration sends and computes, before it is run: per round of each stage, over all clients.

    Attributes:
      bounded: whether what it sends is an upper bound.

    Raises:
      InputError: the plan cannot tell, because stages end or layers are chosen by what is found while training.
    """

    def __init__(self, config: RunConfig):
        # The plan refuses more participants than clients; how many there are may only be known from the data.
        clients = max(config.clients, config.clients_per_round)
        plan = make_plan(dataclasses.replace(config, clients=clients))
        if len(plan.stages) > 1 and config.stage_end != "fixed":
            raise InputError(
                f"stage_end '{config.stage_end}' ends stages by the loss, so that what it sends and computes is not known "
                "beforehand; give --stage-end fixed, or compare by rounds alone."
            )
        self.config, self.layers = config, plan.architecture.layers
        self.bounded = "bytes_up" in plan.bounded
        self.growth = growth_of(config, self.layers)
        self.rates = {
            name: [getattr(stage, name) / stage.rounds for stage in plan.stages] for name in dict.fromkeys(CONTROLS.values())
        }

    def _of(self, name: str, config: RunConfig) -> float:
        shares = plan_stages(config, self.growth, self.layers)
        return sum(share * rate for share, rate in zip(shares, self.rates[name], strict=True))

    def of(self, name: str) -> float:
        """A figure of the plan over the configuration's own rounds."""
        return self._of(name, self.config)

    def by_rounds(self, name: str, most: int) -> dict[int, float]:
        """A figure of the plan over 1 to `most` rounds; numbers that are too few for the stages are left out."""
        found = {}
        for rounds in range(1, most + 1):
            with contextlib.suppress(InputError):
                found[rounds] = self._of(name, dataclasses.replace(self.config, rounds=rounds, stage_rounds=None))
        return found


def nearest(costs: Mapping[int, float], wanted: float) -> int:
    """The number whose cost is closest to `wanted`; of two, the larger."""
    return min(costs, key=lambda number: (abs(costs[number] - wanted), -number))


def nearest_rank(cost: Callable[[int], float], wanted: float, most: int) -> int:
    """As `nearest`, over ranks up to `most`, whose costs rise."""
    reached = 1 + bisect.bisect_left(range(1, most + 1), wanted, key=cost)
    return nearest({rank: cost(rank) for rank in (reached - 1, reached) if 1 <= rank <= most}, wanted)


def total_rounds(config: RunConfig) -> int:
    """Rounds of all stages together."""
    return config.rounds if config.stage_rounds is None else sum(config.stage_rounds)


def configure(arms: Sequence[Arm], common: RunConfig) -> list[Configured]:
    """The configuration of every arm over the common rounds, controls at the rank or rounds that they are defined by.

    Raises:
      InputError: an arm could not be run, or a control has nothing to be measured against.
    """
    check_arms(arms)
    found = {arm.name: _own(arm, common) for arm in arms}
    for arm in arms:
        if arm.control is not None:
            assert arm.target is not None
            with _naming(arm.name):
                found[arm.name] = _control(found[arm.name], found[arm.target])
    for each in found.values():
        with _naming(each.arm.name):
            check_stages(each.config)
    return [found[arm.name] for arm in arms]


@contextlib.contextmanager
def _naming(name: str) -> Iterator[None]:
    """Says of which arm an `InputError` inside the block is."""
    try:
        yield
    except InputError as error:
        raise InputError(f"the arm '{name}' cannot be run: {error}") from error


def _own(arm: Arm, common: RunConfig) -> Configured:
    with _naming(arm.name):
        config = config_from_mapping({**arm.overrides, "algorithm": arm.algorithm, "growth": arm.growth}, common)
        validate(config)
        if total_rounds(config) != total_rounds(common):
            raise InputError(
                f"its stage_rounds {config.stage_rounds} are {total_rounds(config)} rounds and all arms have "
                f"{total_rounds(common)}; give as many."
            )
    return Configured(arm, config)


def _control(own: Configured, target: Configured) -> Configured:
    name, name_of_target = CONTROLS[str(own.arm.control)], target.arm.name
    measure, config = Costs(target.config), own.config
    wanted = measure.of(name)
    if not wanted:
        raise InputError(f"'{name_of_target}' sends nothing, so no rank sends as much.")
    if own.arm.control == "bytes" and measure.bounded:
        raise InputError(f"'{name_of_target}' {UNKNOWN_BYTES}; leave the control out.")
    if own.arm.control == "flops":
        costs = Costs(config)
        found = costs.by_rounds(name, 1 + int(wanted / min(costs.rates[name])))
        if not found:
            raise InputError(f"'{name_of_target}' computes less than one round of each of its stages does; leave it out.")
        rounds = nearest(found, wanted)
        config = dataclasses.replace(config, rounds=rounds, stage_rounds=None)
        note = (
            f"{rounds} of {total_rounds(own.config)} rounds compute {found[rounds] / wanted:.0%} of what '{name_of_target}' "
            "does, as planned"
        )
        return Configured(own.arm, config, note)

    def at_rank(rank: int) -> RunConfig:
        alpha = own.config.alpha
        followed = alpha if alpha == "auto" else alpha * rank / own.config.rank
        return dataclasses.replace(own.config, rank=rank, alpha=followed)

    def sent(rank: int) -> float:
        return Costs(at_rank(rank)).of(name)

    if sent(1) == sent(2):
        raise InputError(
            f"what {config.algorithm} sends does not follow rank, so no rank sends what '{name_of_target}' does."
        )
    rank = nearest_rank(sent, wanted, narrowest_target(architecture_of(config), config.targets)[0])
    share, most = sent(rank) / wanted, "at most " if Costs(at_rank(rank)).bounded else ""
    return Configured(
        own.arm, at_rank(rank), f"rank {rank} instead of {config.rank} sends {most}{share:.0%} of '{name_of_target}'"
    )


def leanest(arms: Sequence[Configured]) -> str:
    """The arm whose bytes are the budget where none is named: of those that send anything, controls apart, the least.

    Arms whose bytes are only bounded are no budget.
    """
    costs = {}
    for each in arms:
        if each.arm.control is None:
            with _naming(each.arm.name):
                costs[each.arm.name] = Costs(each.config)
    sending = {name: cost.of("bytes_up") for name, cost in costs.items() if not cost.bounded and cost.of("bytes_up")}
    bounded = next((name for name, cost in costs.items() if cost.bounded), None)
    if not sending and bounded is not None:
        raise InputError(
            f"the budget is bytes and '{bounded}' {UNKNOWN_BYTES}; add an arm with one rank, or give --budget rounds."
        )
    if not sending:
        raise InputError("the budget is bytes and no arm sends any; give --budget rounds.")
    return min(sending, key=lambda name: sending[name])


@dataclass(frozen=True)
class Fitting:
    """Arms within a budget of bytes: every one with as many rounds as fit, and a sentence on each for which none do."""

    budget: float
    arms: Sequence[Configured]
    left_out: Sequence[str]


def within_bytes(arms: Sequence[Configured], of: str) -> Fitting:
    """The arms within the bytes that the arm `of` sends up in all its rounds.

    Raises:
      InputError: the arm sends nothing, or what another sends cannot be known or cut.
    """
    costs = {}
    for each in arms:
        with _naming(each.arm.name):
            costs[each.arm.name] = Costs(each.config)
    budget = costs[of].of("bytes_up")
    if not budget:
        raise InputError(f"budget_of '{of}' sends nothing, so its bytes are no budget; name an arm that sends.")
    if costs[of].bounded:
        raise InputError(f"budget_of '{of}' {UNKNOWN_BYTES}; name another arm.")
    fitting, left_out = [], []
    for each in arms:
        found = _cut(each, costs[each.arm.name], budget, of)
        if isinstance(found, str):
            left_out.append(found)
        else:
            fitting.append(found)
    return Fitting(budget, fitting, left_out)


def _cut(own: Configured, costs: Costs, budget: float, of: str) -> Configured | str:
    """The arm with the rounds that fit, or why none do."""
    rounds, sent = total_rounds(own.config), costs.of("bytes_up")
    most = "at most " if costs.bounded else ""

    def noted(text: str) -> str:
        return "; ".join(part for part in (own.note, text) if part)

    if own.arm.name == of:
        return dataclasses.replace(own, note=noted("its bytes are the budget"))
    if not sent:
        return dataclasses.replace(own, note=noted("sends nothing, so it has its full length"))
    if sent <= budget:
        return dataclasses.replace(
            own, note=noted(f"full length: its {rounds} rounds send {most}{sent / budget:.0%} of the budget")
        )
    with _naming(own.arm.name):
        if own.config.stage_rounds is not None:
            raise InputError("stage_rounds fixes its length, which a budget of bytes must cut; leave it out.")
    found = costs.by_rounds("bytes_up", rounds)
    fitting = [count for count, bytes_up in found.items() if bytes_up <= budget]
    if not fitting:
        least = readable(min(found.values()), BYTES)
        return f"{own.arm.name} is left out: its shortest run sends {least}, more than the budget."
    fewer = max(fitting)
    share = found[fewer] / budget
    config = dataclasses.replace(own.config, rounds=fewer)
    return Configured(own.arm, config, noted(f"{fewer} of {rounds} rounds fit: {most}{share:.0%} of the budget"))
