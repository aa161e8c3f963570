"""`devft list`: the names that the command line accepts, with a description of each.

For every algorithm and growth it shows the source, the messages sent, and the state kept besides the adapter; for the other
names one line each. `devft list NAME` shows one algorithm, growth or link of a channel in full, algorithms and growths also
if they are user-defined: its mathematics (the docstring of its module) and its options.
"""

import ast
import dataclasses
import inspect
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from devft_jax.commands.flags import Flag, entry, flags_of
from devft_jax.commands.parsing import parse_options
from devft_jax.config.effects import listed
from devft_jax.config.methods import OF_YOUR_OWN, imported, imports, known_method, record_of
from devft_jax.config.own_options import declared_options
from devft_jax.config.presets import PRESETS
from devft_jax.config.run_config import OPTION_GROUPS, RunConfig
from devft_jax.data import BUILT_IN, METHODS, TEMPLATES
from devft_jax.developmental.growths import GROWTHS
from devft_jax.developmental.records import NamedGrowth
from devft_jax.federated.algorithms import ALGORITHMS
from devft_jax.federated.channels.options import LINKS, MODULES, ChannelOptions
from devft_jax.federated.description import Description
from devft_jax.options import bounds_of, known_name, option
from devft_jax.runtime.screen import show

WIDTH = 120


@dataclass(frozen=True)
class ListOptions:
    """List algorithms and growths with what they send and keep; channels, presets, data sets, templates and partitions."""

    name: str | None = option(None, operand=True, verbatim=True)
    """An algorithm, growth or channel, to show its mathematics and options; a user-defined algorithm or growth as
    package.module:name."""


def command(arguments: Sequence[str]) -> int:
    """Run `devft list` and return its exit code.

    Args:
      arguments: the words after `devft list`.
    """
    name = parse_options("devft list", ListOptions, arguments).name
    show(listing() if name is None else method_text(name))
    return 0


def method_text(name: str) -> str:
    """The full description of one algorithm, growth or link of a channel.

    It is wrapped at `WIDTH` characters unless its docstrings have longer lines.

    Args:
      name: of the method; upper and lower case are equal for the package's own methods.

    Raises:
      InputError: there is no such method.
    """
    if imports(name):
        kind, texts = _own(name)
    else:
        name = known_name("algorithm, growth or channel", name, [*ALGORITHMS, *GROWTHS, *LINKS], OF_YOUR_OWN)
        if name in LINKS:
            return channel_text(name)
        kind = "algorithm" if name in ALGORITHMS else "growth"
        texts = [module_docstring(ALGORITHMS[name].module if name in ALGORITHMS else GROWTHS[name].module)]
    record = record_of(kind, name)
    head = [f"{kind} {name}"]
    if record is not None:
        head += [
            line for text in _described(record.reference, record.message, record.state) for line in _wrapped(text, WIDTH, 7)
        ]
    own = declared_options(name, imported(kind, name)[1]) if imports(name) and kind == "algorithm" else None
    return "\n\n".join(["\n".join(head), *filter(None, texts), *_own_options_text(own), _options_text(kind, record)])


def module_docstring(module: str) -> str:
    """The docstring of a module of the package, read from its source, because the module would import JAX.

    Args:
      module: name of the module.
    """
    root, _, path = module.partition(".")
    source = resources.files(root).joinpath(f"{path.replace('.', '/')}.py").read_text(encoding="utf-8")
    return ast.get_docstring(ast.parse(source)) or ""


def channel_text(name: str) -> str:
    """The full description of one link of a channel.

    Args:
      name: name of the link.
    """
    fields = {field.name: field for field in dataclasses.fields(RunConfig)}
    options = [line for flag in flags_of(ChannelOptions) for line in _entry(flag, fields)]
    texts = [module_docstring(module) for module in (MODULES[name], "devft_jax.federated.channels.channel")]
    return "\n\n".join(
        [f"channel {name}\nsends  {LINKS[name]}", *texts, "\n".join(["options:", *options]), _readers_of_channels()]
    )


def _readers_of_channels() -> str:
    """The algorithms whose messages can be sent through a channel."""
    means = [name for name, own in ALGORITHMS.items() if own.averages]
    return "\n".join(_wrapped(f"It can be used with {listed(means, 'and')}.", WIDTH, 0))


def _own(name: str) -> tuple[str, list[str]]:
    """The kind of a user-defined object, "algorithm" or "growth", and the docstrings of its module and of the object."""
    module, found = imported("method", name)
    from devft_jax.developmental import Growth
    from devft_jax.federated.algorithm import Algorithm

    is_growth = isinstance(found, Growth | NamedGrowth) or (isinstance(found, type) and issubclass(found, Growth))
    if inspect.isfunction(found):
        # A growth is made from the options and the number of layers, an algorithm from the options and any of its own.
        needed = [each for each in inspect.signature(found).parameters.values() if each.default is each.empty]
        is_growth = len(needed) == 2 and declared_options(name, found) is None
    kind = "growth" if is_growth else "algorithm"
    known_method(kind, name)
    described = found.make if isinstance(found, NamedGrowth) else found
    texts = [module.__doc__, None if isinstance(found, Algorithm) else described.__doc__]
    return kind, [inspect.cleandoc(text) for text in texts if text]


def _own_options_text(options: type | None) -> list[str]:
    """The options that a user-defined algorithm declares, as `--algorithm-options` takes them."""
    if options is None:
        return []
    fields = {field.name: field for field in dataclasses.fields(options)}
    lines = ["its own options (--algorithm-options name=value):"]
    for flag in flags_of(options):
        lines += [line.replace("--", "", 1) if line.startswith("  --") else line for line in _entry(flag, fields)]
    return ["\n".join(lines)]


def _entry(flag: Flag, fields: Mapping[str, dataclasses.Field[Any]]) -> list[str]:
    """The help of a flag, with the allowed values."""
    declared = fields[flag.name].metadata
    allowed = ", ".join(declared.get("choices", ())) or bounds_of(declared)
    return entry(dataclasses.replace(flag, text=f"{flag.text} Allowed: {allowed}." if allowed else flag.text))


def _options_text(kind: str, record: Description | NamedGrowth | None) -> str:
    """The options that a method reads: those that belong to single methods, and which of the general options."""
    if record is None:
        return "It does not declare which options it reads, so none is refused."
    fields = {field.name: field for field in dataclasses.fields(RunConfig)}
    flags = [flag for group in OPTION_GROUPS for flag in flags_of(group) if flag.name in record.reads]
    lines = [line for flag in flags for line in _entry(flag, fields)]
    others = f"the options of every {kind} (see `devft run --help`)"
    if record.ignores:
        others += f", but not {listed(record.ignores, 'or')}: it {record.because}"
    also = f"It {'also ' if flags else ''}reads {others}."
    if {"class_layers", "by_tier"} & {*record.reads}:
        where = "With by_tier, clients" if "by_tier" in record.reads else "Clients"
        able = listed([name for name, own in ALGORITHMS.items() if own.by_layer], "and")
        also += f" {where} hold different layers, which works with {able}."
    return "\n".join([*(["options:", *lines, ""] if lines else []), *_wrapped(also, WIDTH, 0)])


def listing() -> str:
    """All sections, in lines of at most `WIDTH` characters."""
    methods = {
        "algorithms (--algorithm)": {
            name: _described(item.reference, item.message, item.state) for name, item in ALGORITHMS.items()
        },
        "growths (--growth)": {name: _described(item.reference, item.message, item.state) for name, item in GROWTHS.items()},
    }
    plain = {
        "presets (--preset)": {
            name: ", ".join(f"{key} {_shown(values[key])}" for key in ("model", "rounds") if key in values)
            for name, values in PRESETS.items()
        },
        "data sets (--data)": {name: item.description for name, item in BUILT_IN.items()},
        "templates (--template)": {name: item.description for name, item in TEMPLATES.items()},
        "partitions (--partition)": METHODS,
        "channels (--channel)": LINKS,
    }
    sections = methods | {title: {name: [text] for name, text in entries.items()} for title, entries in plain.items()}
    return "\n\n".join("\n".join([title, *_lines(entries)]) for title, entries in sections.items())


def _described(reference: str, message: str, state: str) -> list[str]:
    return [reference, f"sends  {message}", f"keeps  {state}"]


def _lines(entries: dict[str, list[str]]) -> list[str]:
    """Names in the left column, with their paragraphs beside them."""
    indent = max(map(len, entries)) + 4
    lines = []
    for name, (first, *others) in entries.items():
        body = _wrapped(first, WIDTH - indent, 2)
        for text in others:
            body += _wrapped(text, WIDTH - indent, len("sends  "))
        lines += [f"  {name:<{indent - 2}}{body[0]}", *(" " * indent + line for line in body[1:])]
    return lines


def _wrapped(text: str, width: int, indent: int) -> list[str]:
    """A paragraph with every line after the first indented."""
    return textwrap.wrap(text, width, subsequent_indent=" " * indent, break_on_hyphens=False) or [""]


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
