"""A command of this package that another one has started: it stops, as after Ctrl-C, when its parent has ended.

The parent holds the other end of its standard input, which the system closes however the parent ends.
"""

import os
import signal
import threading


def _stop_without_parent() -> None:
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGINT)


def main() -> None:
    """Run the command line in a process of its own and exit with its code."""
    threading.Thread(target=_stop_without_parent, name="devft-parent", daemon=True).start()
    from devft_jax.__main__ import main as command

    command()


if __name__ == "__main__":
    main()
