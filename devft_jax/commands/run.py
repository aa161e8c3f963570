"""`devft run`: train, or resume an unfinished run of the same configuration."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from devft_jax.commands.failures import traceback_kept
from devft_jax.commands.jax_setup import require_devices
from devft_jax.commands.parsing import START, NoOptions, parse_configuration

if TYPE_CHECKING:
    from devft_jax.config.run_config import RunConfig


def parse_run(arguments: Sequence[str]) -> "RunConfig":
    """The configuration of a command line: a preset, then a file, then the flags; later values override earlier ones.

    Args:
      arguments: the words after `devft run`.

    Returns:
      The configuration; its types are checked.

    Raises:
      InputError: the words cannot be parsed.
    """
    about = f"Train, or resume an unfinished run of the same configuration.\n\n{START}"
    return parse_configuration(arguments, NoOptions, command="devft run", about=about)[0]


def command(arguments: Sequence[str]) -> int:
    """Run `devft run` and return its exit code: 128 + signal number if it was stopped.

    Args:
      arguments: the words after `devft run`.
    """
    config = parse_run(arguments)
    from devft_jax.reporting.progress import Progress

    with Progress().doing("starting JAX"):
        from devft_jax.training.run import default_folder, train

        require_devices()
    with traceback_kept(Path(config.out or default_folder(config))):
        run = train(config)
    return 0 if run.stopped_by is None else 128 + run.stopped_by
