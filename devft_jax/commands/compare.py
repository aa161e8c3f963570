"""`devft compare`: several methods over several seeds on the same clients."""

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from devft_jax.commands.parsing import START, parse_configuration
from devft_jax.runtime.screen import show

if TYPE_CHECKING:
    from devft_jax.comparing.request import CompareOptions
    from devft_jax.config.run_config import RunConfig

ABOUT = (
    "Compare methods over several seeds on the same clients, data order and budget. Every run has a folder of its own under "
    "--out; finished runs are read, not run again, and the same command resumes a stopped comparison. At the end it writes "
    "tables (means, 95 % intervals, paired differences) as text, CSV, JSON, Markdown and a page.\n\n"
    "Takes every option of `devft run`, for all arms; each arm sets its own algorithm and growth, and --seeds and --out "
    f"replace --seed and --out. {START}"
)

ARMS_OWN = ("algorithm", "growth", "seed", "out")
"""Options of a run that the comparison sets itself."""


def parse_compare(arguments: Sequence[str]) -> "tuple[RunConfig, CompareOptions]":
    """The configuration that all arms share, and the options of the comparison itself.

    Args:
      arguments: the words after `devft compare`.

    Returns:
      The configuration and the options; their types are checked.

    Raises:
      InputError: the words cannot be parsed.
    """
    from devft_jax.comparing.request import CompareOptions

    return parse_configuration(arguments, CompareOptions, command="devft compare", about=ABOUT, without=ARMS_OWN)


def command(arguments: Sequence[str]) -> int:
    """Run `devft compare` and return its exit code: 1 if a run failed, 128 + signal number if it was stopped.

    Args:
      arguments: the words after `devft compare`.
    """
    import jax

    from devft_jax.comparing.compare import compare
    from devft_jax.comparing.formats import to_text

    common, options = parse_compare(arguments)
    # This process only plans, so that the runs' own processes can use the whole accelerator.
    jax.config.update("jax_platforms", "cpu")
    made = compare(common, options, command=shlex.join(["devft", "compare", *arguments]))
    if made.comparison is None:
        return 128 + (made.stopped_by or 0)
    show(to_text(made.comparison))
    show(f"{made.folder}: comparison.html, comparison.md, comparison.csv, comparison.json, runs.csv and runs/")
    return 1 if made.failed else 0
