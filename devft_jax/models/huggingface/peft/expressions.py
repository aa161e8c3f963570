"""Matches regular expressions from outside within a time limit.

An adapter's configuration may name modules by expressions. Python's matcher tries every way in which one could match, which
takes extremely long for some short expressions and cannot be interrupted. They are therefore matched in a separate
process, which can be stopped.
"""

import json
import subprocess
import sys
from collections.abc import Sequence

from devft_jax.errors import InputError

SECONDS = 5.0
"""Time limit for all expressions of a configuration together."""

# Reads [expressions, texts]; writes, for every expression, the positions of the texts that match as a whole, or an
# error message.
_MATCHER = """
import json, re, sys
def matched(expression, texts):
    try:
        match = re.compile(expression).fullmatch
    except (re.error, RecursionError, OverflowError, MemoryError) as error:
        return str(error) or type(error).__name__
    return [position for position, text in enumerate(texts) if match(text)]
expressions, texts = json.load(sys.stdin)
json.dump([matched(expression, texts) for expression in expressions], sys.stdout)
"""


def full_matches(expressions: Sequence[str], texts: Sequence[str], names: Sequence[str]) -> list[list[int]]:
    """For every expression, the positions of the texts that match as a whole, ascending.

    Args:
      expressions: regular expressions.
      texts: the texts to match.
      names: names of the expressions, for messages: the field, its text, and the file.

    Raises:
      InputError: one is not a regular expression, or matching all takes longer than `SECONDS`.
    """
    if not expressions:
        return []
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _MATCHER],
            input=json.dumps([list(expressions), list(texts)]),
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=True,
        )
    except subprocess.TimeoutExpired as error:
        raise InputError(
            f"{names[0]} is, or is beside, a regular expression that takes longer than {SECONDS:.0f} seconds to match; "
            "name the modules one by one instead."
        ) from error
    except (OSError, subprocess.CalledProcessError) as error:
        raise InputError(f"{names[0]} cannot be matched ({type(error).__name__}); name the modules one by one.") from error
    found = json.loads(done.stdout)
    for name, positions in zip(names, found, strict=True):
        if isinstance(positions, str):
            raise InputError(f"{name} is not a regular expression ({positions}); correct it.")
    return found
