"""The algorithm and the growth that a configuration names: of the package, or of one's own by a name that imports.

    --algorithm fedprox                              a method of the package, in any case
    --algorithm my_package.my_module:my_algorithm    the object of this name in a module of one's own

An algorithm of one's own is a function of the run's options, a `MethodConfig`, that gives an `Algorithm`, or an `Algorithm`
itself. A growth is a `Growth` object, a function of the options of growth and the model's number of layers that gives one,
or a `NamedGrowth`. The module is looked for where Python looks, and then in the working folder: last, so that no file there
takes the place of an installed package. Of one's own code the name alone is part of a run's identity.

A record, `Algorithm` or `NamedGrowth`, says where a method comes from, what it sends and keeps, and which options it reads.
"""

import contextlib
import functools
import importlib
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from types import ModuleType
from typing import Any

from devft_jax.developmental import GROWTHS, Growth, NamedGrowth
from devft_jax.developmental.growths import GrowthOptions
from devft_jax.errors import InputError
from devft_jax.federated.algorithm import Algorithm
from devft_jax.federated.algorithms import ALGORITHMS, MethodConfig
from devft_jax.files import printable
from devft_jax.options import closest, known_name, room_of

METHODS: dict[str, Iterable[str]] = {"algorithm": ALGORITHMS, "growth": GROWTHS}
"""The options that name a method, with the names of the package."""


def known_method(kind: str, name: str) -> str:
    """The name of a method as it is recorded: the package's own in the case in which it is known.

    Args:
      kind: "algorithm" or "growth".
      name: as it was written.

    Raises:
      InputError: the package has no such method, or the name cannot be imported or is of another kind of object.
    """
    if not imports(name):
        return known_name(kind, name, METHODS[kind])
    _own(kind, name)
    return name


def algorithm_of(config: MethodConfig) -> Algorithm:
    """The algorithm that a configuration names: for equal options the same record, so that what it compiles is shared.

    Args:
      config: options, of which it sees those of methods alone.

    Raises:
      InputError: the options do not fit it, or an algorithm of one's own cannot be imported or made.
    """
    if not imports(config.algorithm):
        return _made(ALGORITHMS[config.algorithm], room_of(MethodConfig, config))
    found = _own("algorithm", config.algorithm)
    if isinstance(found, Algorithm):
        return found
    with _making("algorithm", config.algorithm):
        made = _made(found, room_of(MethodConfig, config))
    if not isinstance(made, Algorithm):
        raise InputError(f"algorithm '{config.algorithm}' gives {_a(made)}; let it return an Algorithm.")
    return made


def growth_of(options: GrowthOptions, num_layers: int) -> Growth:
    """The growth that the options name, for a model of this depth.

    Args:
      options: of growth.
      num_layers: L, the depth of the model.

    Raises:
      InputError: the options do not fit the model, or a growth of one's own cannot be imported or made.
    """
    found = _own("growth", options.growth) if imports(options.growth) else GROWTHS[options.growth]
    if isinstance(found, Growth):
        return found
    make = found.make if isinstance(found, NamedGrowth) else found
    with _making("growth", options.growth):
        made = make(options, num_layers)
    if not isinstance(made, Growth):
        raise InputError(f"growth '{options.growth}' gives {_a(made)}; let it return a Growth.")
    return made


def record_of(kind: str, name: str) -> Algorithm | NamedGrowth | None:
    """What a method says of itself, an algorithm at its default options; None for a growth that says nothing.

    Args:
      kind: "algorithm" or "growth".
      name: of the method.

    Raises:
      InputError: a method of one's own cannot be imported or made.
    """
    if kind == "algorithm":
        return algorithm_of(MethodConfig(algorithm=name))
    found = _own("growth", name) if imports(name) else GROWTHS[name]
    return found if isinstance(found, NamedGrowth) else None


def readers(kind: str, name: str) -> list[str]:
    """The methods of the package that read an option of single methods.

    Args:
      kind: of methods, "algorithm" or "growth".
      name: of the option.
    """
    records = {each: record_of(kind, each) for each in METHODS[kind]}
    return [each for each, record in records.items() if record is not None and name in record.reads]


def imports(name: Any) -> bool:
    """Whether a name is one that imports.

    Args:
      name: of a method.
    """
    return isinstance(name, str) and ":" in name


def imported(kind: str, name: str) -> tuple[ModuleType, Any]:
    """The module and the object that `package.module:name` stands for.

    Args:
      kind: "algorithm" or "growth", for the sentences.
      name: as it was written.

    Raises:
      InputError: it is no such name, or the module is not found, ends by an exception, or does not define the object.
    """
    where = f"{kind} '{printable(name)}'"
    module_name, _, attribute = name.partition(":")
    if not all(part.isidentifier() for text in (module_name, attribute) for part in text.split(".")):
        raise InputError(f"{where} is no name that imports; write package.module:name.")
    folder = os.getcwd()
    if folder not in sys.path and "" not in sys.path:
        sys.path.append(folder)
    try:
        module: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise _failed(where, f"importing {module_name}", error) from error
        raise InputError(
            f"{where} names the module {error.name}, which is neither installed nor in {folder}; correct the name, or start "
            "from the folder that holds it."
        ) from error
    except (Exception, SystemExit) as error:
        raise _failed(where, f"importing {module_name}", error) from error
    found = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            file = getattr(module, "__file__", None) or module_name
            meant = closest(part, [each for each in vars(module) if not each.startswith("_")], "correct the name.")
            raise InputError(f"{where} names {part}, which {file} does not define; {meant}")
        found = getattr(found, part)
    return module, found


def _own(kind: str, name: str) -> Any:
    """The object that a name which imports stands for, of a type that can be a method."""
    found = imported(kind, name)[1]
    if isinstance(found, Algorithm if kind == "algorithm" else Growth | NamedGrowth):
        return found
    if kind == "growth" and isinstance(found, type) and issubclass(found, Growth):
        raise InputError(f"growth '{name}' is a class; name an object of it, such as one that its module makes.")
    if not callable(found):
        wanted = "an Algorithm, or a function of a MethodConfig that gives one"
        if kind == "growth":
            wanted = "a Growth, a NamedGrowth, or a function of the options and the number of layers that gives a Growth"
        raise InputError(f"{kind} '{name}' is {_a(found)}; name {wanted}.")
    return found


@functools.lru_cache(maxsize=64)
def _made(make: Callable[[MethodConfig], Any], options: MethodConfig) -> Any:
    return make(options)


@contextlib.contextmanager
def _making(kind: str, name: str) -> Iterator[None]:
    """Puts an exception of a method that is made into one sentence; a `ValueError` is the method's own."""
    try:
        yield
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{kind} '{name}': {error}" if imports(name) else str(error)) from error
    except Exception as error:
        if not imports(name):
            raise
        raise _failed(f"{kind} '{name}'", "making it", error) from error


def _failed(where: str, doing: str, error: BaseException) -> InputError:
    """An exception of someone else's code, with the line that it comes from."""
    frames = traceback.extract_tb(error.__traceback__)
    at = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    if isinstance(error, SyntaxError) and error.filename:
        at = f" at {error.filename}:{error.lineno}"
    reason = printable(" ".join(str(error).split()))[:200]
    return InputError(f"{where}: {doing} ended by {type(error).__name__} ({reason}){at}; correct the module.")


def _a(found: Any) -> str:
    """What kind of object something is, with its article."""
    name = "None" if found is None else type(found).__name__
    return name if found is None else f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"
