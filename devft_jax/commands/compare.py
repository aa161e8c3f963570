"""`devft compare`: several methods over several seeds on the same clients."""

import dataclasses
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from devft_jax.commands.flags import Section, flags_of
from devft_jax.commands.parsing import START, parse_sections, title_of
from devft_jax.runtime.joining import asked_for, join
from devft_jax.runtime.screen import show

if TYPE_CHECKING:
    from devft_jax.benchmarking.options import BenchmarkOptions
    from devft_jax.comparing.options import CompareOptions
    from devft_jax.config.run_config import RunConfig
    from devft_jax.runtime.options import HostOptions

ABOUT = (
    "Compare methods over several seeds on the same clients, data order and budget. Every run has a folder of its own under "
    "--out; finished runs are read, not run again, and the same command resumes a stopped comparison. At the end it writes "
    "tables (means, 95 % intervals, paired differences) as text, CSV, JSON, Markdown and a page. With --tasks the final "
    "models are also scored on benchmarks, as by `devft evaluate`. --at-once makes several runs at the same time, and "
    "--hosts lets several processes share them.\n\n"
    "Takes every option of `devft run`, for all arms; each arm sets its own algorithm and growth, and --seeds and --out "
    f"replace --seed and --out. {START}"
)

ARMS_OWN = ("algorithm", "growth", "seed", "out")
"""Options of a run that the comparison sets itself."""
FILES = "benchmark_files"
"""Option of a run that is listed with the comparison's own tasks, because both read these files."""


def parse_compare(arguments: Sequence[str]) -> "tuple[RunConfig, CompareOptions, BenchmarkOptions]":
    """The configuration that all arms share, the options of the comparison itself, and the tasks.

    Args:
      arguments: the words after `devft compare`.

    Returns:
      The configuration, the options and the tasks; their types are checked.

    Raises:
      InputError: the words cannot be parsed.
    """
    return parse_command(arguments)[:3]


def parse_command(arguments: Sequence[str]) -> "tuple[RunConfig, CompareOptions, BenchmarkOptions, HostOptions]":
    """`parse_compare`, and how the processes that share the runs find each other.

    Args:
      arguments: the words after `devft compare`.

    Returns:
      The configuration, the options, the tasks and the processes; their types are checked.

    Raises:
      InputError: the words cannot be parsed.
    """
    from devft_jax.benchmarking.options import BenchmarkOptions
    from devft_jax.comparing.options import BENCHMARK_OPTIONS, CompareOptions
    from devft_jax.runtime.options import HostOptions

    none = BenchmarkOptions(tasks=())
    others = [field.name for field in dataclasses.fields(BenchmarkOptions) if field.name not in BENCHMARK_OPTIONS]
    own, tasks = Section(title_of(CompareOptions), flags_of(CompareOptions)), flags_of(BenchmarkOptions, none, others)
    joining = flags_of(HostOptions)
    sections = [
        own,
        Section("several processes, on one host or several, that share the runs", joining),
        Section("scores of the final models on benchmark tasks", tasks),
    ]
    common, values = parse_sections(arguments, sections, command="devft compare", about=ABOUT, without=(*ARMS_OWN, FILES))
    asked = {flag.name: values.pop(flag.name) for flag in tasks if flag.name in values}
    hosts = HostOptions(**{flag.name: values.pop(flag.name) for flag in joining if flag.name in values})
    common, benchmarks = _with_files(common, dataclasses.replace(none, **asked))
    return common, CompareOptions(**values), benchmarks, hosts


def _with_files(common: "RunConfig", asked: "BenchmarkOptions") -> "tuple[RunConfig, BenchmarkOptions]":
    """Both with the benchmarks' files, where the runs have tasks of their own; otherwise the files are the comparison's."""
    if common.evaluate_tasks is None:
        return common, asked
    files = asked.benchmark_files or common.benchmark_files
    if files is not None:
        common = dataclasses.replace(common, benchmark_files=files).with_given({*common.given, FILES})
    return common, dataclasses.replace(asked, benchmark_files=files if asked.tasks else None)


def command(arguments: Sequence[str]) -> int:
    """Run `devft compare` and return its exit code: 1 if a run failed, 128 + signal number if it was stopped.

    Args:
      arguments: the words after `devft compare`.
    """
    common, options, benchmarks, hosts = parse_command(arguments)
    hosts = asked_for(hosts)
    import jax

    from devft_jax.comparing.compare import compare
    from devft_jax.comparing.formats import to_text

    # This process only plans, so that the runs' own processes can use the whole accelerator.
    jax.config.update("jax_platforms", "cpu")
    join(hosts)
    made = compare(common, options, benchmarks, command=shlex.join(["devft", "compare", *arguments]))
    if made.stopped_by is not None:
        return 128 + made.stopped_by
    # Process 0 alone has the results.
    if made.comparison is None:
        return 1 if made.failed else 0
    show(to_text(made.comparison))
    show(f"{made.folder}: comparison.html, comparison.md, comparison.csv, comparison.json, runs.csv and runs/")
    return 1 if made.failed else 0
