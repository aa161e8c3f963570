"""What a public docstring has to have; each fault is a warning of the build, and the site's build fails on any.

Read from the source, without importing it:

- every public module, class, function and method has a docstring, and so has a constant that a package's `__all__` offers;
- every public field of a class has a docstring or is named in that of its class or of a class above it;
- sections are Google's, name only what there is, one name a line, and an `Args:` section names every parameter.
"""

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass

import griffe
from sphinx.application import Sphinx
from sphinx.util import logging as sphinx_logging


@dataclass(frozen=True)
class Fault:
    """One fault: what is wrong with which name, and the line of the file."""

    message: str
    file: str
    line: int


class _Heard(logging.Handler):
    """Keeps what griffe's parser warns of."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one message."""
        self.messages.append(record.getMessage())


def is_public(member: griffe.Object | griffe.Alias) -> bool:
    """Whether a member is defined where it stands and has no leading underscore."""
    return not member.is_alias and not member.name.startswith("_")


def is_described(member: griffe.Object, parent: griffe.Object, offered: set[str]) -> bool:
    """Whether a member has a docstring, or needs none of its own."""
    if member.docstring:
        return True
    if not member.is_attribute:
        return False
    if not parent.is_class:
        return member.path not in offered
    # What a constructor keeps is described by the class as its arguments.
    constructor = parent.members.get("__init__")
    if constructor is not None and constructor.lineno <= member.lineno <= constructor.endlineno:
        return True
    classes = [parent, *(base for base in parent.mro() if not base.is_alias)]
    named = re.compile(rf"\b{member.name}\b")
    return any(
        (kind.docstring and named.search(kind.docstring.value))
        or (member.name in kind.members and kind.members[member.name].docstring)
        for kind in classes
    )


def faults_of_sections(member: griffe.Object) -> Iterator[str]:
    """What is wrong in the sections that describe a function's parameters or a class's attributes."""
    for section in member.docstring.parsed:
        if section.kind.value not in ("parameters", "attributes"):
            continue
        named = {item.name.lstrip("*") for item in section.value}
        if member.is_function:
            taken = {parameter.name for parameter in member.parameters} - {"self", "cls"}
        else:
            taken = set(member.members)
        missing = sorted(taken - named)
        for item in section.value:
            second = [name for name in missing if re.search(rf"[.;] +{name}: ", item.description)]
            if second:
                yield f"the docstring of {member.path} describes {second[0]} in the line of {item.name}"
        if member.is_function and missing:
            yield f"Args of {member.path} leaves out {', '.join(missing)}"


def walk(parent: griffe.Object, offered: set[str]) -> Iterator[Fault]:
    """The faults of all public members below a module or class; `offered` is what packages offer by `__all__`."""
    for member in parent.members.values():
        if not is_public(member):
            continue
        messages = [] if is_described(member, parent, offered) else [f"{member.path} has no docstring"]
        if member.docstring and (member.is_function or member.is_class):
            messages += faults_of_sections(member)
        for message in messages:
            yield Fault(message, str(member.filepath), member.lineno or 1)
        if member.is_module or member.is_class:
            yield from walk(member, offered)


def faults(package: str, folder: str) -> list[Fault]:
    """All faults of a package that lies in a folder."""
    heard = _Heard()
    logger = logging.getLogger("griffe")
    logger.addHandler(heard)
    propagate, logger.propagate = logger.propagate, False
    try:
        root = griffe.load(
            package, search_paths=[folder], docstring_parser="google", allow_inspection=False, try_relative_path=False
        )
        members = list(_everything(root))
        offered = {_path(member, name) for member in members if member.is_module for name in member.exports or ()}
        for member in members:
            # Parsing is lazy, and warns.
            _ = member.docstring and member.docstring.parsed
        found = list(walk(root, offered))
    finally:
        logger.removeHandler(heard)
        logger.propagate = propagate
    return found + [_parsed(message) for message in dict.fromkeys(heard.messages)]


def _path(module: griffe.Object, name: str) -> str:
    """Where a name that a module offers is defined."""
    member = module.members.get(name)
    return member.target_path if member is not None and member.is_alias else f"{module.path}.{name}"


def _everything(parent: griffe.Object) -> Iterator[griffe.Object]:
    yield parent
    for member in parent.members.values():
        if is_public(member):
            yield from _everything(member)


def _parsed(message: str) -> Fault:
    """Griffe's `file:line: message`."""
    file, line, words = message.split(":", 2) if message.count(":") > 1 else ("", "1", message)
    return Fault(words.strip(), file, int(line) if line.isdigit() else 1)


def check(app: Sphinx) -> None:
    """Warn of every fault."""
    logger = sphinx_logging.getLogger(__name__)
    for fault in faults(app.config.api_package, app.config.api_folder):
        logger.warning("%s", fault.message, location=f"{fault.file}:{fault.line}", type="docstring")


def setup(app: Sphinx) -> dict[str, bool]:
    """Check before the build reads the pages."""
    app.connect("builder-inited", check)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
