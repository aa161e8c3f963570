"""The `devft` command: flags from the rooms' option dataclasses, errors as one sentence, exit codes.

Exit codes: 0 done; 2 bad input, nothing was started; 1 what could not go on; 128 + signal number for a run that was stopped
and can be resumed with the same command, 141 for output whose reader has gone.

Nothing heavy is imported here, so that help, versions and mistakes are answered at once.
"""

import dataclasses
import inspect
import itertools
import os
import re
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import devft_jax
from devft_jax.commands.flags import Section, flags_of, parse
from devft_jax.errors import InputError, RunError
from devft_jax.files import cache_folder, printable, write_atomically
from devft_jax.options import closest, operand, path, verbatim
from devft_jax.runtime import screen
from devft_jax.runtime.screen import complain, show
from devft_jax.runtime.stopping import own_process

TRACEBACK_FILE, KEPT = "traceback.txt", "holds where"

MOST_OF_A_REASON = 300
"""Characters of an unforeseen error's own text."""

CLOSED_PIPE = 141
"""128 + SIGPIPE, which a shell shows of a program whose reader has gone."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line in a process of its own and exit with its code."""
    own_process()
    screen.prepare()
    # What libraries fail to tidy up at the exit, such as event loops, is no news beside the sentence that was said.
    sys.unraisablehook = lambda unraisable: None
    code = run_command(sys.argv[1:] if arguments is None else arguments, prepare=configure_jax)
    error = screen.finish()
    if error is not None and code == 0:
        code = CLOSED_PIPE if isinstance(error, BrokenPipeError) else 1
        if code == 1:
            complain(f"devft: {screen.not_written(error)}")
    sys.exit(code)


def run_command(arguments: Sequence[str], prepare: Callable[[], None] | None = None) -> int:
    """Run one command and return its exit code; `prepare` is called before the first that computes."""
    warnings.showwarning = _show_warning
    words = [word for word in arguments if word != "--traceback"]
    wanted = len(words) < len(arguments)
    try:
        return _dispatch(words, prepare)
    except InputError as error:
        code, said = 2, str(error)
    except RunError as error:
        code, said = 1, str(error)
    except BrokenPipeError:
        # The reader of a pipe such as `devft list | head` has gone, and wants nothing said.
        screen.discard(sys.stdout)
        return CLOSED_PIPE
    except KeyboardInterrupt:
        code, said = 130, "interrupted; what was saved before stays whole."
    except Exception as error:
        code, said = 1, _unforeseen(error, words, wanted)
        if wanted:
            _show_traceback()
    complain(f"devft: {said}")
    return code


def _show_traceback() -> None:
    with suppress(OSError):
        show(traceback.format_exc(), stream=sys.stderr)


def _unforeseen(error: Exception, words: Sequence[str], shown: bool) -> str:
    """An error that nothing else put into words, in one sentence."""
    command = " ".join(["devft", *words[:1]])
    reason = " ".join(str(error).split())
    if _is_of_memory(error):
        return (
            f"`{command}` ran out of memory; lower batch_size, max_length or clients_per_step, or quantise the model "
            "(`devft plan` says what a run needs)."
        )
    # Libraries add notes of their own.
    kept = [note for note in getattr(error, "__notes__", ()) if note.endswith(KEPT)]
    where = "; ".join([*kept, *([] if shown else ["--traceback shows where"])]) or "that is a fault of devft"
    reason = reason if len(reason) <= MOST_OF_A_REASON else f"{reason[:MOST_OF_A_REASON]}..."
    return f"`{command}` ended by {type(error).__name__} ({reason}), which it should have put into words; {where}."


def _is_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory did not suffice, the host's or a device's."""
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error) or "out of memory" in str(error).lower()


@contextmanager
def _traceback_kept(folder: Path) -> Iterator[None]:
    """Writes where an unforeseen error came from into the run's folder, if that was made."""
    try:
        yield
    except (InputError, RunError, BrokenPipeError):
        raise
    except Exception as error:
        if folder.is_dir():
            with suppress(OSError):
                write_atomically(folder / TRACEBACK_FILE, traceback.format_exc())
                error.add_note(f"{folder / TRACEBACK_FILE} {KEPT}")
        raise


def _show_warning(message: Warning | str, *where: Any, **more: Any) -> None:
    """A warning as one line, without the source that raised it."""
    complain(f"warning: {message}")


def configure_jax() -> None:
    """Set JAX up before it is first used: one host device per core, compiled programs kept between runs.

    Raises:
      InputError: the cache's name cannot be one.
    """
    import jax

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    jax.config.update("jax_num_cpu_devices", cores or 1)
    jax.config.update("jax_compilation_cache_dir", _programs_folder())
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    # A command computes the same whatever the environment asks of JAX in general.
    jax.config.update("jax_enable_x64", False)
    jax.config.update("jax_numpy_dtype_promotion", "standard")
    jax.config.update("jax_disable_jit", False)
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if platforms and "cpu" not in platforms.split(","):
        # What is computed once, and on the host's memory, needs the host beside the accelerator.
        jax.config.update("jax_platforms", f"{platforms},cpu")


def _programs_folder() -> str | None:
    """Where compiled programs are kept; None, with a warning, where nothing can be."""
    folder = cache_folder() / "programs"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        complain(
            f"warning: the cache {folder} cannot be written ({error.strerror}), so programs are compiled anew every time; "
            "name a writable folder by DEVFT_CACHE."
        )
        return None
    return str(folder)


def _require_devices() -> None:
    """Raise `InputError` where JAX has no device of the platform that the environment names."""
    import jax

    named = os.environ.get("JAX_PLATFORMS", "")
    reason = "no such device"
    try:
        # Where the host is among the platforms, JAX falls back on it without a word.
        if not named or "cpu" in named.split(",") or jax.devices()[0].platform != "cpu":
            jax.devices()
            return
    except RuntimeError as error:
        reason = " ".join(str(error).split())
    if not named:
        raise InputError(f"JAX finds no device ({reason}); set JAX_PLATFORMS=cpu to compute on the host.")
    raise InputError(
        f"JAX_PLATFORMS '{printable(named)}' names a platform that this machine does not have ({reason}); unset it, or "
        "write cpu."
    )


COMMANDS = {
    "run": "train, or go on with an unfinished run",
    "compare": "several methods over several seeds on the same clients: tables with intervals, and a page",
    "plan": "what a run would cost: bytes, FLOPs, memory, time; without weights or data",
    "replay": "train one client of one round again, step by step, to see where it breaks",
    "report": "a run's folder, finished or not, as one page: report.html",
    "export": "a run's adapter, merged model or stage's submodel, as PEFT and transformers load it",
    "generate": "answer prompts with a run's model, or any other, with and without its adapter",
    "list": "algorithms, growths, presets, data sets and templates",
}


def _usage() -> str:
    lines = [f"  {name:<8} {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "usage: devft COMMAND [options]",
            "",
            "Developmental federated tuning of language models, simulated in JAX.",
            "",
            *lines,
            "",
            "`devft COMMAND --help` explains every option with its unit and default; `devft --version` says the version.",
            "--traceback, with any command, shows where an error that was not foreseen came from.",
        ]
    )


def _dispatch(arguments: list[str], prepare: Callable[[], None] | None) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        show(_usage())
        return 0 if arguments else 2
    if arguments[0] in ("-V", "--version"):
        show(f"devft {devft_jax.__version__}")
        return 0
    command, rest = arguments[0], arguments[1:]
    if command not in COMMANDS:
        hint = closest(command, COMMANDS, f"choose from {', '.join(COMMANDS)}.")
        raise InputError(f"the command '{command}' does not exist; {hint}")
    if prepare is not None:
        prepare()
    commands = {
        "run": _run,
        "compare": _compare,
        "plan": _plan,
        "replay": _replay,
        "report": _report,
        "export": _export,
        "generate": _generate,
        "list": _list,
    }
    return commands[command](rest)


START = "Options win over those of --config, and these over those of --preset."


def parse_run(arguments: Sequence[str]) -> Any:
    """The `RunConfig` of a command line: a preset, then a file, then the flags, later ones winning."""
    description = f"Train, or go on with an unfinished run of the same configuration.\n\n{START}"
    return _parse(arguments, prog="devft run", description=description)[0]


def parse_plan(arguments: Sequence[str]) -> tuple[Any, Any]:
    """The `RunConfig` and the `PlanOptions` of a command line."""
    from devft_jax.planning.plan import PlanOptions

    description = (
        "What a run would cost, from shapes alone: bytes, FLOPs, memory and time of every stage, beside end-to-end "
        "training.\n\n"
        f"Takes every option of `devft run`. {START}"
    )
    return _parse(arguments, PlanOptions, prog="devft plan", description=description)


def parse_compare(arguments: Sequence[str]) -> tuple[Any, Any]:
    """The `RunConfig` that all arms share and the `CompareOptions` of a command line."""
    from devft_jax.comparing.compare import CompareOptions

    description = (
        "Compare methods over seeds on the same clients, data order and budget. Every run is a folder of its own under "
        "--out: finished ones are read, not run again, and a stopped comparison goes on with the same command. Ends with "
        "tables (means, 95 % intervals, paired differences) as text, CSV, JSON, Markdown and a page.\n\n"
        "Takes every option of `devft run` for all arms; algorithm and growth are the arms' own, and --seeds and --out take "
        f"the place of --seed and --out. {START}"
    )
    own = ("algorithm", "growth", "seed", "out")
    return _parse(arguments, CompareOptions, prog="devft compare", description=description, without=own)


MOST_USED = (
    "preset",
    "config",
    "model",
    "data",
    "test_data",
    "algorithm",
    "growth",
    "capacities",
    "clients",
    "rounds",
    "out",
)
"""Options that open the help of a run: all that most people need."""


@dataclass(frozen=True, kw_only=True)
class StartOptions:
    """What the other options start from."""

    preset: str | None = None
    """Start from a preset of `devft list`, such as demo."""
    config: str | None = path(None)
    """Start from a YAML or JSON file of the same names, such as `rounds: 40`."""


def _parse(
    arguments: Sequence[str], extra: type | None = None, *, prog: str, description: str, without: Sequence[str] = ()
) -> tuple[Any, Any]:
    """The `RunConfig` of a command line, and the options of the dataclass `extra`, whose flags come first.

    Options of a run named in `without` have no flags and stay as the preset or the file has them.
    """
    from devft_jax.config.run_config import ROOMS, RunConfig, option_value, preset, read_config, validate_types

    shown = _asked_preset(arguments) if _asks_help(arguments) else None
    rooms = [(room, flags_of(room, shown, without)) for room in ROOMS]
    own = flags_of(extra) if extra is not None else []
    sections = [Section("start", flags_of(StartOptions)), *([Section(_title(extra), own)] if extra is not None else [])]
    sections += [Section(_title(room), flags) for room, flags in rooms]
    values = parse(prog, description, sections, arguments, MOST_USED)

    preset_name, file_name = values.pop("preset", None), values.pop("config", None)
    start = None if preset_name is None else preset(preset_name)
    if file_name is not None:
        start = read_config(file_name, start)
    others = {flag.name: values.pop(flag.name) for flag in own if flag.name in values}
    config = dataclasses.replace(
        start or RunConfig(), **{name: option_value(name, value, exact=True) for name, value in values.items()}
    )
    # A preset's options are nobody's choice for this run; those of a file and of flags are.
    config = config.with_given({*(start.given if file_name is not None and start is not None else ()), *values})
    validate_types(config)
    return config, None if extra is None else extra(**others)


def _asks_help(arguments: Sequence[str]) -> bool:
    return any(word in ("-h", "--help") for word in arguments)


def _asked_preset(arguments: Sequence[str]) -> Any:
    """The preset whose values a help shows as defaults; None where none is named."""
    from devft_jax.config.run_config import preset

    after = [following for word, following in itertools.pairwise(arguments) if word == "--preset"]
    named = [word.partition("=")[2] for word in arguments if word.startswith("--preset=")] + after
    return preset(named[0]) if named and not named[0].startswith("-") else None


def _title(room: type) -> str:
    """LearningRateOptions -> learning rate, which heads its options in `--help`."""
    return re.sub(r"(?<!^)(?=[A-Z])", " ", room.__name__.removesuffix("Options")).lower()


def _run(arguments: list[str]) -> int:
    config = parse_run(arguments)
    from devft_jax.training.run import default_folder, train

    _require_devices()
    with _traceback_kept(Path(config.out or default_folder(config))):
        run = train(config)
    return 0 if run.stopped_by is None else 128 + run.stopped_by


def _compare(arguments: list[str]) -> int:
    import shlex

    import jax

    from devft_jax.comparing.compare import compare
    from devft_jax.comparing.tables import to_text

    common, options = parse_compare(arguments)
    # This process only plans; the runs' own processes have the accelerator to themselves.
    jax.config.update("jax_platforms", "cpu")
    made = compare(common, options, command=shlex.join(["devft", "compare", *arguments]))
    if made.comparison is None:
        return 128 + (made.stopped_by or 0)
    show(to_text(made.comparison))
    show(f"{made.folder}: comparison.html, comparison.md, comparison.csv, comparison.json, runs.csv and runs/")
    return 1 if made.failed else 0


def _plan(arguments: list[str]) -> int:
    import json

    from devft_jax.planning.plan import make_plan, to_plain, to_text

    config, options = parse_plan(arguments)
    plan = make_plan(config, options)
    show(json.dumps(to_plain(plan), indent=1) if options.json else to_text(plan))
    return 0


def _parse_options(command: str, room: type, arguments: Sequence[str]) -> Any:
    """The options of one dataclass, whose docstring says what the command does."""
    about = inspect.cleandoc(room.__doc__ or "")
    return room(**parse(command, about, [Section("options", flags_of(room))], arguments))


def _replay(arguments: list[str]) -> int:
    asked = _parse_options("devft replay", ReplayOptions, arguments)
    from devft_jax.training.run import replay

    _require_devices()
    again = replay(asked.folder, client=asked.client, round=asked.round)
    show(f"client '{again.client}', stage {again.stage}, round {again.round}")
    if not again.took_part:
        show("it was not in this round; this is what it would have done")
    show("step        loss   gradient     update")
    for step in again.steps:
        show(f"{step.step:>4}  {step.loss:>10.5f}  {step.gradient_norm:>9.4g}  {step.update_norm:>9.4g}")
    show(again.first_break or "every value is finite")
    return 0


@dataclass(frozen=True, kw_only=True)
class ReplayOptions:
    """Train one client of one round again, step by step, to see where it breaks."""

    folder: str = operand(path=True)
    """The run's folder."""
    client: str = verbatim()
    """The client's name, as the split's table shows it."""
    round: int
    """The round, from 1."""


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """Write a run's report as one self-contained page; the run may be finished, stopped or under way."""

    folder: str = operand(path=True)
    """The run's folder; nothing else in it is changed."""
    out: str | None = path(None)
    """The file to write, absent or an older report; by default report.html in the folder."""


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Write a run, or a PEFT adapter with its base, as a folder that PEFT or transformers loads."""

    source: str = operand(path=True)
    """The run's folder, of an unfinished run too; or a PEFT adapter's, for the form merged."""
    out: str = path()
    """The folder to write; absent, empty, or an earlier export of the same request."""
    form: Literal["adapter", "merged", "submodel", "submodel-adapter"] = "adapter"
    """Adapter (PEFT), merged (the model with it), submodel (a stage's, merged) or submodel-adapter (both apart)."""
    stage: int | None = None
    """The stage, from 1, as of its newest checkpoint; by default the run's newest checkpoint."""
    client: str | None = verbatim(None)
    """Whose model, in a run where every client has its own, such as one of local-only."""
    model: str | None = path(None)
    """The base, as for `devft run`; by default the one that the run or the adapter names."""
    dtype: str = "auto"
    """Stored type of a model's weights: auto (as in the base), bfloat16, float32 or float16."""


@dataclass(frozen=True)
class ListOptions:
    """Algorithms and growths with what they send and keep; presets, data sets, templates and partitions."""


def _report(arguments: list[str]) -> int:
    asked = _parse_options("devft report", ReportOptions, arguments)
    from devft_jax.reporting.report_file import write_report

    show(str(write_report(asked.folder, asked.out)))
    return 0


def _export(arguments: list[str]) -> int:
    asked = _parse_options("devft export", ExportOptions, arguments)
    from devft_jax.exporting.export import export

    _require_devices()
    options = {field.name: getattr(asked, field.name) for field in dataclasses.fields(asked)}
    show(str(export(options.pop("source"), options.pop("out"), **options)))
    return 0


def _generate(arguments: list[str]) -> int:
    from devft_jax.commands.generate import command

    return command(arguments, prepare=_require_devices)


def _list(arguments: list[str]) -> int:
    _parse_options("devft list", ListOptions, arguments)
    from devft_jax.commands.list import listing

    show(listing())
    return 0
