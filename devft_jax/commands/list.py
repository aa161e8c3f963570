"""`devft list`: what the command line's names stand for.

Of every algorithm and growth it shows where it comes from, what travels, and what is kept besides the adapter; of the rest
a line each.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from devft_jax.commands.parsing import parse_options
from devft_jax.config.run_config import PRESETS, RunConfig
from devft_jax.data import BUILT_IN, METHODS, TEMPLATES
from devft_jax.developmental import GROWTHS
from devft_jax.federated.algorithms import ALGORITHMS, algorithm_of
from devft_jax.runtime.screen import show

WIDTH = 120


@dataclass(frozen=True)
class ListOptions:
    """Algorithms and growths with what they send and keep; presets, data sets, templates and partitions."""


def command(arguments: Sequence[str]) -> int:
    """Run `devft list` and return its exit code.

    Args:
      arguments: the words after `devft list`.
    """
    parse_options("devft list", ListOptions, arguments)
    show(listing())
    return 0


def listing() -> str:
    """All sections, in lines of at most `WIDTH` characters."""
    algorithms = {name: algorithm_of(RunConfig(algorithm=name)) for name in ALGORITHMS}
    methods = {
        "algorithms (--algorithm)": {
            name: _told(item.reference, item.message, item.state) for name, item in algorithms.items()
        },
        "growths (--growth)": {name: _told(item.reference, item.message, item.state) for name, item in GROWTHS.items()},
    }
    plain = {
        "presets (--preset)": {
            name: ", ".join(f"{key} {_shown(values[key])}" for key in ("model", "rounds") if key in values)
            for name, values in PRESETS.items()
        },
        "data sets (--data)": {name: item.description for name, item in BUILT_IN.items()},
        "templates (--template)": {name: item.description for name, item in TEMPLATES.items()},
        "partitions (--partition)": METHODS,
    }
    sections = methods | {title: {name: [text] for name, text in entries.items()} for title, entries in plain.items()}
    return "\n\n".join("\n".join([title, *_lines(entries)]) for title, entries in sections.items())


def _told(reference: str, message: str, state: str) -> list[str]:
    return [reference, f"sends  {message}", f"keeps  {state}"]


def _lines(entries: dict[str, list[str]]) -> list[str]:
    """Names at the left, their paragraphs beside them."""
    indent = max(map(len, entries)) + 4
    lines = []
    for name, (first, *others) in entries.items():
        body = _wrapped(first, WIDTH - indent, 2)
        for text in others:
            body += _wrapped(text, WIDTH - indent, len("sends  "))
        lines += [f"  {name:<{indent - 2}}{body[0]}", *(" " * indent + line for line in body[1:])]
    return lines


def _wrapped(text: str, width: int, indent: int) -> list[str]:
    """A paragraph whose further lines are set in."""
    return textwrap.wrap(text, width, subsequent_indent=" " * indent, break_on_hyphens=False) or [""]


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
