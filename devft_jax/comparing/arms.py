"""The arms (methods) of a comparison and the notation in which users write them.

    ALGORITHM                      the algorithm on the full model throughout
    ALGORITHM+GROWTH               the algorithm on a model that grows
    package.module:ALGORITHM       a user-defined one, as for `--algorithm`; the same for a growth
    ARM:option=value:...           with options of `devft run`; values of a list are joined by /, as in capacities=2/4/8
    ARM@bytes=ANOTHER              at the rank with which it sends as many bytes, over all rounds, as another arm
    ARM@flops=ANOTHER              with the number of rounds that compute as much as another arm

In a YAML file each arm has a title, by which other arms refer to it:

    FedIT: {algorithm: fedit}
    DevFT: {algorithm: fedit, growth: devft, beta: 0.2}
    FedIT at DevFT's bytes: {algorithm: fedit, bytes_of: DevFT}

`devft_jax.comparing.budgets` makes the configurations.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from devft_jax.config.files import MOST_CONFIG_BYTES
from devft_jax.config.methods import METHODS, OF_YOUR_OWN, imports, known_method
from devft_jax.config.run_config import RunConfig, field_types, option_value
from devft_jax.config.values import item_kind
from devft_jax.data import DataOptions
from devft_jax.errors import InputError
from devft_jax.evaluation.benchmarks import TaskScoreOptions
from devft_jax.files import checked_path, printable, read_yaml
from devft_jax.options import closest

END_TO_END = "end-to-end"
CONTROLS = ("bytes", "flops")
"""The quantities in which a control can equal another arm."""

COMMON = {*(each.name for each in dataclasses.fields(DataOptions)), "model", "seed", "out", "rounds"}
COMMON |= {"evaluate_every", "evaluate_full", *(each.name for each in dataclasses.fields(TaskScoreOptions))}
"""Options that all arms share: with different values the arms would not be compared on the same clients, data and budget, or
not be evaluated at the same rounds."""


@dataclass(frozen=True)
class Arm:
    """One method of a comparison, as the user wrote it.

    Attributes:
      name: its title, or the text of the arm.
      algorithm: the algorithm's name.
      growth: the growth's name.
      overrides: plain values of options of a run.
      control: the quantity in which it equals another arm, one of `CONTROLS`; None if it is not a control.
      target: that arm's name.
    """

    name: str
    algorithm: str
    growth: str = END_TO_END
    overrides: Mapping[str, Any] = field(default_factory=dict)
    control: str | None = None
    target: str | None = None


@contextlib.contextmanager
def naming(name: str) -> Iterator[None]:
    """Name the arm in an `InputError` raised inside the block.

    Args:
      name: name of the arm.
    """
    try:
        yield
    except InputError as error:
        raise InputError(f"the arm '{name}' cannot be run: {error}") from error


def parse_arm(text: str) -> Arm:
    """Parse an arm from its text.

    Args:
      text: in the notation of the module's docstring.

    Raises:
      InputError: it has another form, or uses a name that does not exist.
    """
    head, _, control = text.partition("@")
    method, options = method_and_options(head)
    algorithm, plus, growth = method.partition("+")
    overrides = {}
    for option in options:
        name, equals, value = option.partition("=")
        if not equals or not name or not value:
            raise InputError(f"the arm '{text}' has the option '{option}'; write it as option=value.")
        name = name.replace("-", "_")
        with naming(text):
            overrides[name] = value_of(name, value)
    kind, _, target = control.partition("=")
    if "@" in text and (kind not in CONTROLS or not target):
        raise InputError(
            f"the arm '{text}' ends in '@{control}'; write @bytes=ARM or @flops=ARM with the name of another arm."
        )
    return _checked(Arm(text, algorithm, growth if plus else END_TO_END, overrides, kind or None, target or None))


def method_and_options(text: str) -> tuple[str, list[str]]:
    """ALGORITHM+GROWTH, and the options after it; an importable name contains a colon itself, package.module:name.

    Args:
      text: an arm without its control, or a growth with options.
    """
    known = {name for names in METHODS.values() for name in names}
    method, *rest = text.split(":")
    # A name of the package is complete; after any other name comes the name of an object in that module.
    while rest and "=" not in rest[0] and ":" not in method.rpartition("+")[2]:
        if method.rpartition("+")[2].lower() in known:
            break
        method = f"{method}:{rest.pop(0)}"
    return method, rest


def value_of(name: str, text: str) -> Any:
    """The value of an option as a flag would take it, with / between the values of a list.

    Args:
      name: name of the option; of an unknown one the value is the text.
      text: the value as written.
    """
    kind = field_types().get(name)
    if kind is None:
        # Reported when the arm's configuration is made, like an error in a file's options.
        return text
    return option_value(name, text.replace("/", ",") if item_kind(kind) is not None else text)


def read_arms(path: str | Path) -> list[Arm]:
    """The arms of a YAML file: a mapping of options, or the text of an arm, by title.

    Args:
      path: path of the file.

    Raises:
      InputError: the file cannot be read, has other contents, or uses a name that does not exist.
    """
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
    """The arm with the canonical names of its algorithm and growth; raises `InputError` for unknown names."""
    found: dict[str, str] = {}
    for kind, name in (("algorithm", arm.algorithm), ("growth", arm.growth)):
        known = METHODS[kind]
        if imports(name):
            with naming(arm.name):
                found[kind] = known_method(kind, name)
            continue
        if name.lower() not in known:
            hint = closest(name.lower(), known, f"choose from {', '.join(known)}, {OF_YOUR_OWN}.")
            raise InputError(f"the arm '{arm.name}' names the {kind} '{name}', which does not exist; {hint}")
        found[kind] = name.lower()
    shared = sorted(COMMON & arm.overrides.keys())
    if shared:
        raise InputError(
            f"the arm '{arm.name}' sets {shared[0]}, which all arms share so that they can be compared; give it for all of "
            f"them, as --{shared[0].replace('_', '-')}."
        )
    return dataclasses.replace(arm, algorithm=found["algorithm"], growth=found["growth"])


def check_arms(arms: Sequence[Arm]) -> None:
    """Check that names are unique and that the target of every control is an arm that is not itself a control.

    Args:
      arms: all arms of the comparison.

    Raises:
      InputError: there is no arm, or one of these conditions does not hold.
    """
    if not arms:
        raise InputError("no arms are given; name some with --arms, such as --arms fedit,fedit+devft.")
    names = [arm.name for arm in arms]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"the arm '{twice}' is given twice; give each once, or give them different titles in --arms-file.")
    plain = [arm.name for arm in arms if arm.control is None]
    for arm in arms:
        if arm.control is not None and arm.target not in plain:
            raise InputError(
                f"the arm '{arm.name}' refers to the {arm.control} of '{arm.target}', which is not an arm with its own "
                f"length here; choose from {', '.join(plain) or '(none)'}."
            )


def total_rounds(config: RunConfig) -> int:
    """Rounds of all stages together.

    Args:
      config: an arm's configuration.
    """
    return config.rounds if config.stage_rounds is None else sum(config.stage_rounds)
