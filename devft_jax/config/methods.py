"""The algorithm and the growth that a configuration names: the package's own, or user-defined by an importable name.

    --algorithm fedprox                              a method of the package, in upper or lower case
    --algorithm my_package.my_module:my_algorithm    the object of this name in the user's module

A user-defined algorithm is a function of the run's options, a `MethodConfig`, that returns an `Algorithm`, or an `Algorithm`
itself; the function may declare its own options (`devft_jax.config.own_options`). A growth is a `Growth` object, a function
of the growth options and the model's number of layers that returns one, or a `NamedGrowth`. The module is searched on
Python's path first and then in the working folder, so that no file there replaces an installed package. Of user-defined code
only the name is part of a run's identity.

A record, `Description` or `NamedGrowth`, states a method's source, what it sends and keeps, and which options it reads. For
the package's own methods it is known without importing JAX, so that help and lists are shown immediately; JAX is imported
with a method's module, when the method is made.
"""

import contextlib
import functools
import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

from devft_jax.config.own_options import declared_options, own_options
from devft_jax.developmental.growths import GROWTHS, GrowthOptions
from devft_jax.developmental.records import NamedGrowth
from devft_jax.errors import InputError
from devft_jax.federated.algorithms import ALGORITHMS, MethodConfig
from devft_jax.federated.channels.options import ChannelOptions
from devft_jax.federated.description import Description
from devft_jax.files import printable
from devft_jax.options import closest, known_name, option_group

if TYPE_CHECKING:
    from devft_jax.developmental import Growth
    from devft_jax.federated.algorithm import Algorithm
    from devft_jax.federated.channels.channel import Channel

METHODS: dict[str, Iterable[str]] = {"algorithm": ALGORITHMS, "growth": GROWTHS}
"""The options that name a method, with the names of the package's own methods."""

ARGUMENTS = {"algorithm": ("config",), "growth": ("options", "num_layers")}
"""The arguments with which a user-defined function of each kind is called; those with its own options take them too."""

OF_YOUR_OWN = "or name one of your own as package.module:name"
"""The end of an error message about an unknown method."""


def known_method(kind: str, name: str) -> str:
    """The name of a method as it is recorded: the package's own in its canonical case.

    Args:
      kind: "algorithm" or "growth".
      name: the name as the user wrote it.

    Raises:
      InputError: the package has no such method, or the name cannot be imported or names another kind of object.
    """
    if not imports(name):
        return known_name(kind, name, METHODS[kind], OF_YOUR_OWN)
    _own(kind, name)
    return name


def algorithm_of(config: MethodConfig) -> "Algorithm":
    """The algorithm that a configuration names, with its channel.

    Equal options give the same record, so that compiled programs are shared.

    Args:
      config: options; the algorithm sees only those of methods.

    Raises:
      InputError: the options do not fit it, or a user-defined algorithm cannot be imported or created.
    """
    return sent_through(config, method_of(config))


def method_of(config: MethodConfig) -> "Algorithm":
    """The algorithm that a configuration names, without its channel.

    Args:
      config: as in `algorithm_of`.

    Raises:
      InputError: as in `algorithm_of`.
    """
    if not imports(config.algorithm):
        return _made(ALGORITHMS[config.algorithm], option_group(MethodConfig, config))
    from devft_jax.federated.algorithm import Algorithm

    found, asked = _own("algorithm", config.algorithm), config.algorithm_options or ()
    if isinstance(found, Algorithm):
        if asked:
            raise InputError(f"algorithm '{config.algorithm}' takes no options; leave algorithm_options out.")
        return _begun(found, option_group(MethodConfig, config))
    with _making("algorithm", config.algorithm):
        made = _made(found, option_group(MethodConfig, config), *own_options(config.algorithm, found, asked))
    if not isinstance(made, Algorithm):
        raise InputError(f"algorithm '{config.algorithm}' returns {_a(made)}; let it return an Algorithm.")
    return made


def sent_through(config: MethodConfig, algorithm: "Algorithm") -> "Algorithm":
    """An algorithm with its uplink messages sent through the channel that a configuration names.

    Args:
      config: gives the channel's options and the messages' dtype.
      algorithm: the algorithm without a channel; returned as it is if there is none, or if it sends no message.

    Raises:
      InputError: there is no such channel, or the algorithm's server does not take the mean of its messages.
    """
    from devft_jax.federated.channels.named import channel_of

    channel = channel_of(option_group(ChannelOptions, config), config.message_dtype)
    if channel is None or "channel" in algorithm.ignores:
        return algorithm
    if not algorithm.averages:
        means = [name for name, own in ALGORITHMS.items() if own.averages]
        raise InputError(
            f"channel {config.channel} needs an algorithm whose server takes the mean of the clients' changes and of which "
            f"nothing else depends on the messages, and {algorithm.name} is none; use --channel none, or one of "
            f"{', '.join(means)}."
        )
    return _through(channel, algorithm)


def growth_of(options: GrowthOptions, num_layers: int) -> "Growth":
    """The growth that the options name, for a model of this depth.

    Args:
      options: the growth options.
      num_layers: L, the depth of the model.

    Raises:
      InputError: the options do not fit the model, or a user-defined growth cannot be imported or created.
    """
    from devft_jax.developmental import Growth

    found = _own("growth", options.growth) if imports(options.growth) else GROWTHS[options.growth]
    if isinstance(found, Growth):
        return found
    make = found.make if isinstance(found, NamedGrowth) else found
    with _making("growth", options.growth):
        made = make(options, num_layers)
    if not isinstance(made, Growth):
        raise InputError(f"growth '{options.growth}' returns {_a(made)}; let it return a Growth.")
    return made


def record_of(kind: str, name: str) -> Description | NamedGrowth | None:
    """A method's record, that of a user-defined algorithm at its default options; None for a growth without one.

    Args:
      kind: "algorithm" or "growth".
      name: name of the method.

    Raises:
      InputError: a user-defined method cannot be imported or created.
    """
    if kind == "algorithm":
        return algorithm_of(MethodConfig(algorithm=name)) if imports(name) else ALGORITHMS[name]
    found = _own("growth", name) if imports(name) else GROWTHS[name]
    return found if isinstance(found, NamedGrowth) else None


def record_in(config: Any, kind: str) -> Description | NamedGrowth | None:
    """The record of the method that a configuration names; None for a growth without one.

    A user-defined algorithm is made with the configuration's options, because it may refuse the default ones.

    Args:
      config: the run's configuration.
      kind: "algorithm" or "growth".

    Raises:
      InputError: a user-defined method cannot be imported or created.
    """
    name = getattr(config, kind)
    return algorithm_of(config) if kind == "algorithm" and imports(name) else record_of(kind, name)


def readers(kind: str, name: str) -> list[str]:
    """The package's own methods that read an option of single methods.

    Args:
      kind: kind of methods, "algorithm" or "growth".
      name: name of the option.
    """
    records = {each: record_of(kind, each) for each in METHODS[kind]}
    return [each for each, record in records.items() if record is not None and name in record.reads]


def imports(name: Any) -> bool:
    """Whether a name has the form of an importable name.

    Args:
      name: name of a method.
    """
    return isinstance(name, str) and ":" in name


def imported(kind: str, name: str) -> tuple[ModuleType, Any]:
    """The module and the object that `package.module:name` refers to.

    Args:
      kind: "algorithm" or "growth", for error messages.
      name: the name as the user wrote it.

    Raises:
      InputError: the name has another form, or the module is not found, raises an exception, or does not define the object.
    """
    where = f"{kind} '{printable(name)}'"
    module_name, _, attribute = name.partition(":")
    if not all(part.isidentifier() for text in (module_name, attribute) for part in text.split(".")):
        raise InputError(f"{where} is not an importable name; write package.module:name.")
    folder = os.getcwd()
    if folder not in sys.path and "" not in sys.path:
        sys.path.append(folder)
    try:
        module: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise _failed(where, f"importing {module_name}", error) from error
        raise InputError(
            f"{where} names the module {error.name}, which is neither installed nor in {folder}; correct the name, or run "
            "the command in the folder that holds the module."
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
    """The object that an importable name refers to, if its type can be a method."""
    found = imported(kind, name)[1]
    from devft_jax.developmental import Growth
    from devft_jax.federated.algorithm import Algorithm

    if isinstance(found, Algorithm if kind == "algorithm" else Growth | NamedGrowth):
        return found
    if kind == "growth" and isinstance(found, type) and issubclass(found, Growth):
        raise InputError(f"growth '{name}' is a class; name an instance of it, such as one that its module creates.")
    if not callable(found):
        wanted = "an Algorithm, or a function of a MethodConfig that returns one"
        if kind == "growth":
            wanted = "a Growth, a NamedGrowth, or a function of the options and the number of layers that returns a Growth"
        raise InputError(f"{kind} '{name}' is {_a(found)}; name {wanted}.")
    _check_arguments(kind, name, found)
    return found


def _check_arguments(kind: str, name: str, make: Callable[..., Any]) -> None:
    """Raise `InputError` unless a user-defined function takes the arguments of its kind."""
    try:
        signature = inspect.signature(make)
    except (TypeError, ValueError):  # some functions not written in Python
        return
    if kind == "algorithm" and declared_options(name, make) is not None and _takes(signature, ("config", "options")):
        return
    taken = [each for each, arguments in ARGUMENTS.items() if _takes(signature, arguments)]
    if kind not in taken:
        wanted = f"let it take ({', '.join(ARGUMENTS[kind])})"
        other = f", or give it as --{taken[0]}" if taken else ""
        raise InputError(f"{kind} '{name}' takes {signature.replace(return_annotation=signature.empty)}; {wanted}{other}.")


def _takes(signature: inspect.Signature, arguments: Sequence[str]) -> bool:
    try:
        signature.bind(*arguments)
    except TypeError:
        return False
    return True


@functools.lru_cache(maxsize=64)
def _through(channel: "Channel", algorithm: "Algorithm") -> "Algorithm":
    from devft_jax.federated.channels.through import through

    return through(channel, algorithm)


@functools.lru_cache(maxsize=64)
def _made(make: Callable[..., Any], options: MethodConfig, *own: Any) -> Any:
    from devft_jax.federated.algorithm import Algorithm

    made = make(options, *own)
    return _begun(made, options) if isinstance(made, Algorithm) else made


@functools.lru_cache(maxsize=64)
def _begun(made: "Algorithm", options: MethodConfig) -> "Algorithm":
    """An algorithm whose factors begin where the options say."""
    if options.initialization != "lora":
        from devft_jax.federated.directions import from_directions

        return from_directions(made, options, options.message_dtype)
    return made


@contextlib.contextmanager
def _making(kind: str, name: str) -> Iterator[None]:
    """Turns an exception raised while a method is created into one sentence; a `ValueError` is the method's own message."""
    try:
        yield
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{kind} '{name}': {error}" if imports(name) else str(error)) from error
    except (Exception, SystemExit) as error:
        if not imports(name):
            raise
        raise _failed(f"{kind} '{name}'", "making it", error) from error


def _failed(where: str, doing: str, error: BaseException) -> InputError:
    """The error for an exception in the user's code, with the line that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    at = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    if isinstance(error, SyntaxError) and error.filename:
        at = f" at {error.filename}:{error.lineno}"
    reason = printable(" ".join(str(error).split()))[:200]
    return InputError(f"{where}: {doing} raised {type(error).__name__} ({reason}){at}; correct the module.")


def _a(found: Any) -> str:
    """The kind of an object, with its article."""
    name = "None" if found is None else type(found).__name__
    return name if found is None else f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"
