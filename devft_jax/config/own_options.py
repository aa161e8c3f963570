"""Options that a user-defined algorithm declares, in addition to those of the package.

The function that returns the algorithm takes them as its second parameter, a frozen dataclass whose fields are declared like
the package's own options, each with a default:

    @dataclass(frozen=True, kw_only=True)
    class Options:
        share: float = option(0.5, within="(0, 1]")
        \"\"\"What a client sends is multiplied by it.\"\"\"

    def damped(config: MethodConfig, options: Options) -> Algorithm: ...

    --algorithm my_module:damped --algorithm-options share=0.3

They are recorded as the option `algorithm_options`, as the user wrote them, and belong to the run's identity.
"""

import dataclasses
import inspect
import typing
from collections.abc import Callable, Sequence
from typing import Any

from devft_jax.config.values import convert
from devft_jax.errors import InputError
from devft_jax.files import printable
from devft_jax.options import check_options, closest


def declared_options(name: str, make: Callable[..., Any]) -> type | None:
    """The dataclass of the options that a function declares; None if it declares none.

    Args:
      name: name of the algorithm, for messages.
      make: the function that returns the algorithm.

    Raises:
      InputError: the dataclass is not frozen, or one of its options has no default.
    """
    try:
        parameters = list(inspect.signature(make, eval_str=True).parameters.values())
    except (TypeError, ValueError, NameError):
        return None
    kind = parameters[1].annotation if len(parameters) > 1 else None
    if not isinstance(kind, type) or not dataclasses.is_dataclass(kind):
        return None
    if not kind.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        raise InputError(f"algorithm '{name}': {kind.__name__} is not frozen; declare it by @dataclass(frozen=True).")
    for field in dataclasses.fields(kind):
        if field.default is dataclasses.MISSING:
            raise InputError(f"algorithm '{name}': its option {field.name} has no default; declare one.")
    return kind


def own_options(name: str, make: Callable[..., Any], texts: Sequence[str]) -> tuple[Any, ...]:
    """The arguments of a function after the package's options: its own options, or nothing if it declares none.

    Args:
      name: name of the algorithm, for messages.
      make: the function that returns the algorithm.
      texts: `algorithm_options`, each "name=value".

    Raises:
      InputError: it has no such option, or a value is not of its type or not allowed.
    """
    kind = declared_options(name, make)
    if kind is None:
        if texts:
            raise InputError(f"algorithm '{name}' declares no options; leave algorithm_options out.")
        return ()
    hints, values = typing.get_type_hints(kind), dict[str, Any]()
    for text in texts:
        key, equals, value = text.partition("=")
        key = key.strip().replace("-", "_")
        if not equals:
            raise InputError(f"algorithm_options '{printable(text)}' has no value; write name=value.")
        if key not in hints:
            hint = closest(key, hints, f"choose from {', '.join(hints)}.")
            raise InputError(f"algorithm_options: '{name}' has no option '{printable(key)}'; {hint}")
        if key in values:
            raise InputError(f"algorithm_options names {key} twice; name it once.")
        values[key] = convert(key, value, hints[key])
    made = kind(**values)
    check_options(made)
    return (made,)
