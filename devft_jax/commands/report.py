"""`devft report`: write the report of a run as one page."""

from collections.abc import Sequence
from dataclasses import dataclass

from devft_jax.commands.parsing import parse_options
from devft_jax.options import operand, path
from devft_jax.runtime.screen import show


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """Write a run's report as one self-contained page; the run may be finished, stopped or still running."""

    folder: str = operand(path=True)
    """The run's folder; nothing else in it is changed."""
    out: str | None = path(None)
    """File to write: absent or an older report; by default report.html in the run's folder."""


def command(arguments: Sequence[str]) -> int:
    """Run `devft report` and return its exit code.

    Args:
      arguments: the words after `devft report`.
    """
    asked = parse_options("devft report", ReportOptions, arguments)
    from devft_jax.reporting.report_file import write_report

    show(str(write_report(asked.folder, asked.out)))
    return 0
