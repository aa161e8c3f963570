"""Makes names from outside safe to show in a terminal, in a table for spreadsheets, and in Markdown.

Control characters cannot move a terminal's cursor or reverse text; a cell is never a formula, and text never markup.
"""

import re

# C0 and C1 controls, line and paragraph separators, marks and overrides of text direction, and halves of surrogate pairs.
_HIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")
# Characters that a spreadsheet takes for the start of a formula.
_FORMULA = tuple("=+-@\uff1d\uff0b\uff0d\uff20")
# Markup characters; an underscore inside a word is not one.
_MARKUP = re.compile(r"[\\`*\[\]|~]|(?<!\w)_|_(?!\w)|^(?:[+>-](?=\s)|#)")
# URLs become links without markup.
_ADDRESS = re.compile(r"(?i)\b(https?|ftp|mailto|www)([:.])")


def printable(text: str, keep: str = "") -> str:
    r"""The text with every control character written as its escape, such as \x1b.

    Args:
      text: any text, even invalid Unicode.
      keep: characters that are not escaped, such as "\n".
    """
    return _HIDDEN.sub(lambda found: found[0] if found[0] in keep else _escaped(found[0]), text)


def as_cell(value: object) -> object:
    """A value for a CSV file; text that a spreadsheet would evaluate as a formula gets an apostrophe in front.

    Numbers are not changed.

    Args:
      value: text, a number or None.
    """
    if not isinstance(value, str):
        return value
    shown = printable(value, keep="\n")
    # Tabs and carriage returns are escaped by now; spreadsheets skip leading spaces, and accept full-width signs.
    return f"'{shown}" if value[:1] in ("\t", "\r") or shown.lstrip()[:1] in _FORMULA else shown


def as_markdown(text: str) -> str:
    """Text for a line or a cell of Markdown, in which nothing is a link, markup, HTML or a cell border.

    Args:
      text: any text.
    """
    plain = _MARKUP.sub(r"\\\g<0>", printable(text))
    return _ADDRESS.sub(r"\g<1>\\\g<2>", plain.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;"))


def as_code_block(text: str) -> str:
    """Text as a fenced block of Markdown, whatever fences it contains itself.

    Args:
      text: any text.
    """
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}\n{printable(text, keep=chr(10))}\n{fence}"


def _escaped(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
