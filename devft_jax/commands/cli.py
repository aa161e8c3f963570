"""The `devft` command line: which command to run, errors as one sentence, exit codes.

Exit codes: 0 success; 2 bad input, nothing was started; 1 failure while running; 128 + signal number for a run that was
stopped and can be resumed with the same command; 141 if the reader of the output has closed the pipe.

Each command is a module of this package with a function `command`. No heavy library is imported here, so that help,
versions and mistyped commands are answered immediately.
"""

import importlib
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import devft_jax
from devft_jax.commands.failures import sentence_of
from devft_jax.commands.flags import asks_help
from devft_jax.commands.jax_setup import configure_jax
from devft_jax.errors import InputError, RunError
from devft_jax.options import closest
from devft_jax.runtime import screen
from devft_jax.runtime.screen import complain, show
from devft_jax.runtime.stopping import leave, own_process

CLOSED_PIPE = 141
"""128 + SIGPIPE, the exit code that a shell shows for a program whose output pipe was closed."""

COMMANDS = {
    "run": "train, or resume an unfinished run",
    "compare": "compare methods over several seeds on the same clients: tables with intervals, and a page",
    "plan": "estimate a run's bytes, FLOPs, memory and time; needs no weights or data",
    "probe": "measure which submodels of a model are worth training, before anything is trained",
    "replay": "train one client of one round again, step by step, to find where values stop being finite",
    "report": "write the report of a run, finished or not, as one page: report.html",
    "export": "write a run's adapter, merged model or a stage's submodel in the formats of PEFT and transformers",
    "generate": "answer prompts with a run's model or any other, with and without its adapter",
    "judge": "answer open-ended questions (Vicuna-Bench, MT-Bench) and have the answers rated or compared by a judge",
    "evaluate": "score models on benchmarks: MMLU, TruthfulQA, IFEval, BBH and any task of lm-evaluation-harness",
    "list": "list algorithms, growths, presets, data sets and templates",
}
"""What each command does; the module of the same name in this package implements it."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line as a process and exit with its code.

    Args:
      arguments: the words after `devft`; by default those of the process.
    """
    own_process()
    screen.prepare()
    # Errors that libraries raise while they clean up at exit, such as event loops, would only follow the message.
    sys.unraisablehook = lambda unraisable: None
    code = run_command(sys.argv[1:] if arguments is None else arguments, prepare=configure_jax)
    error = screen.finish()
    if error is not None and code == 0:
        code = CLOSED_PIPE if isinstance(error, BrokenPipeError) else 1
        if code == 1:
            complain(f"devft: {screen.not_written(error)}")
    leave(code)
    sys.exit(code)


def run_command(arguments: Sequence[str], prepare: Callable[[], None] | None = None) -> int:
    """Run one command.

    Args:
      arguments: the words after `devft`.
      prepare: called before the command's module is imported; not called for help, lists, the version or an unknown command.

    Returns:
      The exit code.
    """
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
        # The reader of a pipe such as `devft list | head` has closed it; no message is needed.
        screen.discard(sys.stdout)
        return CLOSED_PIPE
    except KeyboardInterrupt:
        code, said = 130, "interrupted; everything saved before is complete."
    except Exception as error:
        code, said = 1, sentence_of(error, words, shown=wanted)
        if wanted:
            _show_traceback()
    complain(f"devft: {said}")
    return code


def command_of(name: str) -> Callable[[Sequence[str]], int]:
    """The function that runs a command and returns its exit code; it imports the command's module.

    Args:
      name: a key of `COMMANDS`.
    """
    return importlib.import_module(f"{__package__}.{name}").command


def _show_traceback() -> None:
    with suppress(OSError):
        show(traceback.format_exc(), stream=sys.stderr)


def _show_warning(message: Warning | str, *where: Any, **more: Any) -> None:
    """Print a warning as one line, without the source line that raised it."""
    complain(f"warning: {message}")


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
            "`devft COMMAND --help` explains every option with its unit and default; `devft --version` prints the version.",
            "--traceback, with any command, prints the traceback of an unexpected error.",
        ]
    )


def _dispatch(words: list[str], prepare: Callable[[], None] | None) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        show(_usage())
        return 0 if words else 2
    if words[0] in ("-V", "--version"):
        show(f"devft {devft_jax.__version__}")
        return 0
    name, rest = words[0], words[1:]
    if name not in COMMANDS:
        hint = closest(name, COMMANDS, f"choose from {', '.join(COMMANDS)}.")
        raise InputError(f"the command '{name}' does not exist; {hint}")
    # JAX takes longer to import than a help text or a list takes to write.
    if prepare is not None and name != "list" and not asks_help(rest):
        prepare()
    return command_of(name)(rest)
