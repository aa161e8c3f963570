"""The `devft` command, also as `python -m devft_jax`; Ctrl-C works while it is still loading."""

import os
import signal


def main() -> None:
    """Run the command line in a process of its own and exit with its code."""
    handled = signal.signal(signal.SIGINT, _interrupted)
    from devft_jax.commands.cli import main as command

    signal.signal(signal.SIGINT, handled)
    command()


def _interrupted(number: int, frame: object) -> None:
    """Exit at once. Nothing has been started, and an exception could be caught by a module that is being imported."""
    os.write(2, b"devft: interrupted; nothing was started.\n")
    os._exit(128 + number)


if __name__ == "__main__":
    main()
