"""`devft run`: train, or resume an unfinished run of the same configuration."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from devft_jax.commands.failures import traceback_kept
from devft_jax.commands.jax_setup import require_devices
from devft_jax.commands.parsing import START, parse_configuration
from devft_jax.runtime.joining import asked_for, join
from devft_jax.runtime.options import HostOptions

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
    return parse_command(arguments)[0]


def parse_command(arguments: Sequence[str]) -> "tuple[RunConfig, HostOptions]":
    """`parse_run`, and how the run's processes find each other.

    Args:
      arguments: the words after `devft run`.

    Returns:
      The configuration and the options; their types are checked.

    Raises:
      InputError: the words cannot be parsed.
    """
    about = f"Train, or resume an unfinished run of the same configuration.\n\n{START}"
    return parse_configuration(arguments, HostOptions, command="devft run", about=about)


def command(arguments: Sequence[str]) -> int:
    """Run `devft run` and return its exit code: 128 + signal number if it was stopped.

    Args:
      arguments: the words after `devft run`.
    """
    config, hosts = parse_command(arguments)
    hosts = asked_for(hosts)
    from devft_jax.reporting.progress import Progress

    with Progress().doing("starting JAX"):
        from devft_jax.training.run import default_folder, train

        join(hosts)
        require_devices()
    with traceback_kept(Path(config.out or default_folder(config))):
        run = train(config)
    return 0 if run.stopped_by is None else 128 + run.stopped_by
