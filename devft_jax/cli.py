"""The `devft` command: flags from the rooms' option dataclasses, errors as one sentence, exit codes.

Exit codes: 0 done; 2 bad input, nothing was started; 1 a run that could not go on; 128 + signal number for a run that was
stopped and can be resumed with the same command.
"""

import dataclasses
import os
import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import jax

from devft_jax.errors import InputError, RunError
from devft_jax.options import flags_of


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line in a process of its own and exit with its code."""
    configure_jax()
    sys.exit(run_command(sys.argv[1:] if arguments is None else arguments))


def run_command(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code."""
    warnings.showwarning = _show_warning
    try:
        return _dispatch(list(arguments))
    except InputError as error:
        print(f"devft: {error}", file=sys.stderr)
        return 2
    except RunError as error:
        print(f"devft: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # The reader of a pipe such as `devft list | head` has gone; Python would complain once more at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("devft: interrupted; what was saved before stays whole.", file=sys.stderr)
        return 130


def _show_warning(message: Warning | str, *where: Any, **more: Any) -> None:
    """A warning as one line, without the source that raised it."""
    print(f"warning: {message}", file=sys.stderr, flush=True)


def configure_jax() -> None:
    """Set JAX up before it is first used: one host device per core, compiled programs kept between runs."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    jax.config.update("jax_num_cpu_devices", cores or 1)
    cache = os.environ.get("DEVFT_CACHE", str(Path.home() / ".cache" / "devft_jax"))
    jax.config.update("jax_compilation_cache_dir", str(Path(cache) / "programs"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


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
            "`devft COMMAND --help` explains every option with its unit and default.",
        ]
    )


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0 if arguments else 2
    command, rest = arguments[0], arguments[1:]
    if command not in COMMANDS:
        raise InputError(f"the command '{command}' does not exist; choose from {', '.join(COMMANDS)}.")
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


def _comma_tuples() -> Any:
    """A tyro registry in which tuples are written with commas: --capacities 2,4,8,16."""
    import tyro

    registry = tyro.constructors.ConstructorRegistry()

    @registry.primitive_rule
    def _(info: Any) -> Any:
        from typing import get_args, get_origin

        if get_origin(info.type) is not tuple:
            return None
        item = get_args(info.type)[0]
        if item not in (int, float, str):
            return None

        def parse(words: list[str]) -> tuple[Any, ...]:
            return tuple(item(part) for part in words[0].split(",") if part)

        return tyro.constructors.PrimitiveConstructorSpec(
            nargs=1,
            metavar=f"{item.__name__.upper()},...",
            instance_from_str=parse,
            is_instance=lambda value: isinstance(value, tuple),
            str_from_instance=lambda value: [",".join(str(part) for part in value)],
        )

    return registry


def _take_option(arguments: list[str], flag: str) -> tuple[str | None, list[str]]:
    """The value of `--flag value` or `--flag=value`, and the arguments without it."""
    for index, word in enumerate(arguments):
        if word == flag:
            if index + 1 == len(arguments) or arguments[index + 1].startswith("--"):
                raise InputError(f"{flag} needs a value; write it behind the flag.")
            return arguments[index + 1], arguments[:index] + arguments[index + 2 :]
        if word.startswith(f"{flag}="):
            return word.split("=", 1)[1], arguments[:index] + arguments[index + 1 :]
    return None, arguments


START = (
    "--preset NAME starts from a preset, --config FILE from a YAML or JSON file of the same names; flags given besides win."
)


def parse_run(arguments: Sequence[str]) -> Any:
    """The `RunConfig` of a command line: a preset, then a file, then the flags, later ones winning."""
    description = f"Train, or go on with an unfinished run of the same configuration.\n\n{START}"
    return _parse(arguments, prog="devft run", description=description)[0]


def parse_plan(arguments: Sequence[str]) -> tuple[Any, Any]:
    """The `RunConfig` and the `PlanOptions` of a command line."""
    from devft_jax.plan import PlanOptions

    description = (
        "What a run would cost, from shapes alone: bytes, FLOPs, memory and time of every stage, beside end-to-end "
        "training.\n\n"
        f"Takes every option of `devft run`. {START}"
    )
    return _parse(arguments, PlanOptions, prog="devft plan", description=description)


def parse_compare(arguments: Sequence[str]) -> tuple[Any, Any]:
    """The `RunConfig` that all arms share and the `CompareOptions` of a command line."""
    from devft_jax.compare import CompareOptions

    description = (
        "Compare methods over seeds on the same clients, data order and budget. Every run is a folder of its own under "
        "--out: finished ones are read, not run again, and a stopped comparison goes on with the same command. Ends with "
        "tables (means, 95 % intervals, paired differences) as text, CSV, JSON, Markdown and a page.\n\n"
        "Takes every option of `devft run` for all arms; algorithm and growth are the arms' own, and --seeds and --out take "
        f"the place of --seed and --out. {START}"
    )
    own = ("algorithm", "growth", "seed", "out")
    return _parse(arguments, CompareOptions, prog="devft compare", description=description, without=own)


def _parse(
    arguments: Sequence[str], extra: type | None = None, *, prog: str, description: str, without: Sequence[str] = ()
) -> tuple[Any, Any]:
    """The `RunConfig` of a command line, and the options of the dataclass `extra`, whose flags come first.

    Options of a run named in `without` have no flags and stay as the preset or the file has them.
    """
    import tyro

    from devft_jax.config import ROOMS, RunConfig, preset, read_config, validate_types

    preset_name, rest = _take_option(list(arguments), "--preset")
    file_name, rest = _take_option(rest, "--config")
    start = RunConfig() if preset_name is None else preset(preset_name)
    if file_name is not None:
        start = read_config(file_name, start)
        validate_types(start)

    flags = {_title(room): flags_of(room, start, without) for room in ROOMS}
    if extra is not None:
        flags = {_title(extra): flags_of(extra, extra()), **flags}
    rooms = dataclasses.make_dataclass(
        "Flags",
        [(title, Annotated[options, tyro.conf.OmitArgPrefixes], options()) for title, options in flags.items()],
        frozen=True,
    )
    parsed: Any = tyro.cli(
        rooms,
        prog=prog,
        description=description,
        args=rest,
        registry=_comma_tuples(),
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    values: dict[str, Any] = {}
    for title in flags:
        values.update(vars(getattr(parsed, title)))
    if extra is None:
        return RunConfig(**values), None
    others = {field.name: values.pop(field.name) for field in dataclasses.fields(extra)}
    return dataclasses.replace(start, **values), extra(**others)


def _title(room: type) -> str:
    """LearningRateOptions -> learning_rate, which heads its options in `--help`."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", room.__name__.removesuffix("Options")).lower()


def _run(arguments: list[str]) -> int:
    from devft_jax.run import train

    run = train(parse_run(arguments))
    return 0 if run.stopped_by is None else 128 + run.stopped_by


def _compare(arguments: list[str]) -> int:
    import shlex

    from devft_jax.compare import compare
    from devft_jax.reporting.comparison import to_text

    common, options = parse_compare(arguments)
    # This process only plans; the runs' own processes have the accelerator to themselves.
    jax.config.update("jax_platforms", "cpu")
    made = compare(common, options, command=shlex.join(["devft", "compare", *arguments]))
    if made.comparison is None:
        return 128 + (made.stopped_by or 0)
    print(to_text(made.comparison))
    print(f"{made.folder}: comparison.html, comparison.md, comparison.csv, comparison.json, runs.csv and runs/")
    return 1 if made.failed else 0


def _plan(arguments: list[str]) -> int:
    import json

    from devft_jax.plan import make_plan, to_plain, to_text

    config, options = parse_plan(arguments)
    plan = make_plan(config, options)
    print(json.dumps(to_plain(plan), indent=1) if options.json else to_text(plan))
    return 0


def _replay(arguments: list[str]) -> int:
    import tyro

    from devft_jax.run import replay

    def options(
        folder: tyro.conf.Positional[str],
        client: str,
        round: int,
    ) -> tuple[str, str, int]:
        """Train one client of one round again, step by step, to see where it breaks.

        Args:
          folder: the run's folder.
          client: the client's name, as the split's table shows it.
          round: the round, from 1.
        """
        return folder, client, round

    folder, client, round_index = tyro.cli(options, prog="devft replay", args=arguments)
    again = replay(folder, client=client, round=round_index)
    print(f"client '{again.client}', stage {again.stage}, round {again.round}")
    print("step        loss   gradient     update")
    for step in again.steps:
        print(f"{step.step:>4}  {step.loss:>10.5f}  {step.gradient_norm:>9.4g}  {step.update_norm:>9.4g}")
    print(again.first_break or "every value is finite")
    return 0


def _report(arguments: list[str]) -> int:
    import tyro

    from devft_jax.report import write_report

    def options(folder: tyro.conf.Positional[str], out: str | None = None) -> str:
        """Write a run's report as one self-contained page; the run may be finished, stopped or under way.

        Args:
          folder: the run's folder; nothing else in it is changed.
          out: the file to write, absent or an older report; by default report.html in the folder.
        """
        return str(write_report(folder, out))

    print(tyro.cli(options, prog="devft report", args=arguments))
    return 0


def _export(arguments: list[str]) -> int:
    import tyro

    from devft_jax.export import Form, export

    def options(
        source: tyro.conf.Positional[str],
        out: str,
        form: Form = "adapter",
        stage: int | None = None,
        client: str | None = None,
        model: str | None = None,
        dtype: str = "bfloat16",
    ) -> str:
        """Write a run, or a PEFT adapter with its base, as a folder that PEFT or transformers loads.

        Args:
          source: the run's folder, of an unfinished run too; or a PEFT adapter's, for the form merged.
          out: the folder to write; absent, empty, or an earlier export of the same request.
          form: adapter (PEFT), merged (the model with it), submodel (a stage's, merged) or submodel-adapter (both apart).
          stage: the stage, from 1, as of its newest checkpoint; by default the run's newest checkpoint.
          client: whose model, in a run where every client has its own, such as one of local-only.
          model: the base, as for `devft run`; by default the one that the run or the adapter names.
          dtype: stored type of a model's weights: bfloat16, float32 or float16.
        """
        return str(export(source, out, form=form, stage=stage, client=client, model=model, dtype=dtype))

    print(tyro.cli(options, prog="devft export", args=arguments))
    return 0


def _generate(arguments: list[str]) -> int:
    from devft_jax.generate import command

    return command(arguments)


def _list(arguments: list[str]) -> int:
    import tyro

    from devft_jax.listing import listing

    def nothing() -> None:
        """Algorithms and growths with what they send and keep; presets, data sets, templates and partitions."""

    tyro.cli(nothing, prog="devft list", args=arguments)
    print(listing())
    return 0
