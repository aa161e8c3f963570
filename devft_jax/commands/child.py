"""A command of this package that another one has started: it stops, as after Ctrl-C, when its parent has ended.

The parent holds the other end of its standard input, which the system closes however the parent ends.
"""

import os
import runpy
import signal
import threading


def _stop_without_parent(pipe: int) -> None:
    while os.read(pipe, 1):
        pass
    os.kill(os.getpid(), signal.SIGINT)


def main() -> None:
    """Run the command line in a process of its own and exit with its code."""
    pipe = os.dup(0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    # A question, such as a library's, has no answer.
    os.dup2(nothing, 0)
    os.close(nothing)
    threading.Thread(target=_stop_without_parent, args=(pipe,), name="devft-parent", daemon=True).start()
    # As `python -m devft_jax`.
    runpy.run_module("devft_jax", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
