"""Names from outside as they may be shown: control characters cannot move a terminal's cursor or turn text around."""

import re

# C0 and C1 controls, line and paragraph separators, marks and overrides of text direction, and halves of surrogate pairs.
_HIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")


def printable(text: str, keep: str = "") -> str:
    r"""The text with every control character written as its escape, such as \x1b.

    Args:
      text: anything, also what is no valid Unicode.
      keep: characters that stay as they are, such as "\n".
    """
    return _HIDDEN.sub(lambda found: found[0] if found[0] in keep else _escaped(found[0]), text)


def _escaped(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
