"""Docstrings are plain text, which becomes reStructuredText here, before Napoleon reads it.

They have paragraphs, lists, Google's sections, code in single backticks, and formulas and code set off by four spaces. In
reStructuredText `*`, `|` and `_` of ordinary text would be markup.
"""

import re

from sphinx.application import Sphinx

SECTION = re.compile(r"^(Args|Attributes|Returns|Yields|Raises|Note|Notes|Example|Examples|References):$")
NAMED = re.compile(r"^(\s+\*{0,2}[\w.]+(?: \([^)]*\))?:)( .*|)$")
BULLET = re.compile(r"^[-*] +(.*)$")
MARKUP = re.compile(r"([\\*|_])")
CODE = re.compile(r"`+([^`]+)`+")


def escaped(text: str) -> str:
    """A line with code in double backticks and no other markup."""
    parts, end = [], 0
    for code in CODE.finditer(text):
        parts += [MARKUP.sub(r"\\\1", text[end : code.start()]), f"``{code[1]}``"]
        after = text[code.end() : code.end() + 1]
        # Code ends at a word's border; a plural s needs an escaped space.
        parts += ["\\ "] if after.isalnum() else []
        end = code.end()
    return "".join(parts) + MARKUP.sub(r"\\\1", text[end:])


def indent(line: str) -> int:
    """The number of leading spaces."""
    return len(line) - len(line.lstrip(" "))


def joined(lines: list[str]) -> list[str]:
    """The lines with those joined between which a backtick's code continues."""
    written: list[str] = []
    for line in lines:
        if written and written[-1].count("`") % 2 and line.strip():
            written[-1] += " " + line.strip()
        else:
            written.append(line)
    return written


def restructured(lines: list[str]) -> list[str]:
    """The lines of a docstring as reStructuredText with Google's sections."""
    written: list[str] = []
    in_section = in_list = literal = False
    for line in joined(lines):
        before = written[-1].strip() if written else ""
        bullet = BULLET.match(line)
        if not line.strip():
            written.append("")
        elif indent(line) == 0:
            in_section, literal = bool(SECTION.match(line)), False
            # reStructuredText wants blank lines around a list.
            written += [""] if before and bool(bullet) != in_list else []
            in_list = bool(bullet)
            written.append(line if in_section else f"- {escaped(bullet[1])}" if bullet else escaped(line))
        elif literal:
            written.append(line)
        elif in_section:
            named = NAMED.match(line)
            written.append(named[1] + escaped(named[2]) if named else escaped(line))
        elif indent(line) >= 4 and not before:
            literal = True
            written += ["::", "", line]
        else:
            written.append(escaped(line))
    return written


def process(app: Sphinx, what: str, name: str, value: object, options: object, lines: list[str]) -> None:
    """Autodoc's event: change the docstring in place."""
    lines[:] = restructured(lines)


def setup(app: Sphinx) -> dict[str, bool]:
    """Come before Napoleon, which has priority 500."""
    app.connect("autodoc-process-docstring", process, priority=400)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
