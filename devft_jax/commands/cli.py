"""The `devft` command: which command is meant, errors as one sentence, exit codes.

Exit codes: 0 done; 2 bad input, nothing was started; 1 what could not go on; 128 + signal number for a run that was stopped
and can be resumed with the same command, 141 for output whose reader has gone.

Each command is a module of this package with a function `command`. Nothing heavy is imported here, so that help, versions
and mistakes are answered at once.
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
from devft_jax.commands.jax_setup import configure_jax
from devft_jax.errors import InputError, RunError
from devft_jax.options import closest
from devft_jax.runtime import screen
from devft_jax.runtime.screen import complain, show
from devft_jax.runtime.stopping import own_process

CLOSED_PIPE = 141
"""128 + SIGPIPE, which a shell shows of a program whose reader has gone."""

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
"""What each command does; its module in this package has its name."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line in a process of its own and exit with its code.

    Args:
      arguments: the words after `devft`; by default those of the process.
    """
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
    """Run one command.

    Args:
      arguments: the words after `devft`.
      prepare: called before the command's module is imported; not for help, the version or an unknown command.

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
        # The reader of a pipe such as `devft list | head` has gone, and wants nothing said.
        screen.discard(sys.stdout)
        return CLOSED_PIPE
    except KeyboardInterrupt:
        code, said = 130, "interrupted; what was saved before stays whole."
    except Exception as error:
        code, said = 1, sentence_of(error, words, shown=wanted)
        if wanted:
            _show_traceback()
    complain(f"devft: {said}")
    return code


def command_of(name: str) -> Callable[[Sequence[str]], int]:
    """The function that runs a command and returns its exit code; imports the command's module.

    Args:
      name: a key of `COMMANDS`.
    """
    return importlib.import_module(f"{__package__}.{name}").command


def _show_traceback() -> None:
    with suppress(OSError):
        show(traceback.format_exc(), stream=sys.stderr)


def _show_warning(message: Warning | str, *where: Any, **more: Any) -> None:
    """A warning as one line, without the source that raised it."""
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
            "`devft COMMAND --help` explains every option with its unit and default; `devft --version` says the version.",
            "--traceback, with any command, shows where an unexpected error came from.",
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
    if prepare is not None:
        prepare()
    return command_of(name)(rest)
