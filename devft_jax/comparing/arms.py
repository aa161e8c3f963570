"""The arms of a comparison as they are written.

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

`devft_jax.comparing.budgets` makes their configurations.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from devft_jax.config.files import MOST_CONFIG_BYTES
from devft_jax.config.methods import METHODS, imports, known_method
from devft_jax.config.run_config import RunConfig, field_types, option_value
from devft_jax.config.values import item_kind
from devft_jax.data import DataOptions
from devft_jax.errors import InputError
from devft_jax.files import checked_path, printable, read_yaml
from devft_jax.options import closest

END_TO_END = "end-to-end"
CONTROLS = ("bytes", "flops")
"""What a control can have as another arm has."""

COMMON = {*(each.name for each in dataclasses.fields(DataOptions)), "model", "seed", "out", "rounds"}
COMMON |= {"evaluate_every", "evaluate_full"}
"""Options that all arms share: with another of these an arm would not be compared on the same clients, data and budget, or
not be judged at the same rounds."""


@dataclass(frozen=True)
class Arm:
    """One method of a comparison, as it was written.

    Attributes:
      name: its title, or the text that it was written as.
      algorithm: the algorithm's name.
      growth: the growth's name.
      overrides: plain values of options of a run.
      control: what it is to have as another arm has, one of `CONTROLS`; None where nothing.
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
    """Say of which arm an `InputError` inside the block is.

    Args:
      name: the arm's.
    """
    try:
        yield
    except InputError as error:
        raise InputError(f"the arm '{name}' cannot be run: {error}") from error


def parse_arm(text: str) -> Arm:
    """An arm from its text.

    Args:
      text: as in the module's docstring.

    Raises:
      InputError: it is written otherwise, or names what does not exist.
    """
    head, _, control = text.partition("@")
    method, options = _method_and_options(head)
    algorithm, plus, growth = method.partition("+")
    overrides = {}
    for option in options:
        name, equals, value = option.partition("=")
        if not equals or not name or not value:
            raise InputError(f"the arm '{text}' has the option '{option}'; write it as option=value.")
        name = name.replace("-", "_")
        with naming(text):
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
    """The arms of a YAML file: a mapping of options, or the text of an arm, by title.

    Args:
      path: of the file.

    Raises:
      InputError: it cannot be read, holds something else, or names what does not exist.
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
    """The arm with its algorithm and growth as their names are written, or an `InputError`."""
    found: dict[str, str] = {}
    for kind, name in (("algorithm", arm.algorithm), ("growth", arm.growth)):
        known = METHODS[kind]
        if imports(name):
            with naming(arm.name):
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
    return dataclasses.replace(arm, algorithm=found["algorithm"], growth=found["growth"])


def check_arms(arms: Sequence[Arm]) -> None:
    """Check that names are unique and that every control's target is an arm that is none itself.

    Args:
      arms: all arms of a comparison.

    Raises:
      InputError: there is no arm, or one of these does not hold.
    """
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


def total_rounds(config: RunConfig) -> int:
    """Rounds of all stages together.

    Args:
      config: an arm's.
    """
    return config.rounds if config.stage_rounds is None else sum(config.stage_rounds)
