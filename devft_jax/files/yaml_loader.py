"""A safe YAML loader with the scalars of YAML 1.2's core schema, and checks of a document before it is built."""

import re
from typing import Any, ClassVar

import yaml

from devft_jax.errors import InputError
from devft_jax.files.shown import printable

_INTEGER = re.compile(r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$")
_DIGITS = r"(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)"
_FLOAT = re.compile(rf"^(?:[-+]?{_DIGITS}(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$")


class CoreLoader(yaml.SafeLoader):
    """Null, booleans, integers, floats and merges as YAML 1.2 writes them; every other plain scalar is text.

    Attributes:
      yaml_implicit_resolvers: by first character, how plain scalars are parsed.
    """

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}  # type: ignore[misc]


for _tag, _pattern, _first in (
    ("null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    ("bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    ("int", _INTEGER, list("-+0123456789")),
    ("float", _FLOAT, list("-+0123456789.")),
    ("merge", re.compile(r"^<<$"), ["<"]),
):
    CoreLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _pattern, _first)


def _integer(loader: CoreLoader, node: yaml.ScalarNode) -> int:
    text = node.value
    base = {"0o": 8, "0x": 16}.get(text[:2], 10)
    return int(text[2:] if base != 10 else text, base)


CoreLoader.add_constructor("tag:yaml.org,2002:int", _integer)


def check_nodes(root: yaml.Node, where: str, most: int) -> None:
    """Raise `InputError` for a name given twice, an unpaired surrogate, or a document that expands to more than `most`
    values.

    Aliases share what they repeat, so a small file may expand to gigabytes; sizes are summed before it is built.

    Args:
      root: root of the document.
      where: where it was read from, for messages.
      most: the largest number of values to which the document may expand.
    """
    sizes: dict[int, int] = {}
    ancestors: set[int] = set()

    def size_of(node: yaml.Node) -> int:
        key = id(node)
        if key in ancestors:
            raise InputError(f"{where}:{_line(node)} contains itself through an alias; write the values out.")
        if key not in sizes:
            ancestors.add(key)
            sizes[key] = 1 + sum(size_of(child) for child in _children(node, where))
            ancestors.discard(key)
        if sizes[key] > most:
            raise InputError(
                f"{where}:{_line(node)} expands to more than {most:,} values through its aliases; write out what is needed."
            )
        return sizes[key]

    size_of(root)


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1


def _children(node: yaml.Node, where: str) -> list[yaml.Node]:
    if isinstance(node, yaml.ScalarNode):
        try:
            # JSON writes a character beyond U+FFFF as two escapes, which YAML does not combine.
            node.value = node.value.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError as error:
            raise InputError(f"{where}:{_line(node)} holds an unpaired surrogate; correct the text there.") from error
        return []
    if isinstance(node, yaml.SequenceNode):
        return node.value
    names: set[tuple[str, str]] = set()
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode):
            if (key.tag, key.value) in names:
                raise InputError(f"{where}:{_line(key)} names {printable(repr(key.value))} twice; keep one of them.")
            names.add((key.tag, key.value))
    return [child for pair in node.value for child in pair]
