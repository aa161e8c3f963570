"""Processes of a comparison: each command of this package runs in one of its own, with its output in a file."""

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from devft_jax.reporting import Progress
from devft_jax.runtime.options import JOINED_BY
from devft_jax.runtime.stopping import StopRequest

REPORT_EVERY = 30.0
"""Seconds between the lines that report how far a process is."""


def supervise(
    command: Sequence[str],
    log: Path,
    progress: Progress,
    stop: StopRequest,
    *,
    shown: str = "  round ",
    saves: str = "the run has saved its round",
) -> int:
    """Run a process and wait for it; a stop request is passed on, and the process saves its work before it ends.

    Args:
      command: the program and its arguments.
      log: file for its output.
      progress: the progress output.
      stop: whether the comparison was asked to stop.
      shown: start of the lines of the output that report how far it is.
      saves: what the process does before it stops, for the message.

    Returns:
      Its exit code.
    """
    # The folder that contains the package.
    sources = str(Path(__file__).resolve().parents[2])
    paths = [sources, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    # Each is one process.
    for variable in JOINED_BY.values():
        environment.pop(variable, None)
    # An older file is removed, not overwritten: it could be a link.
    log.unlink(missing_ok=True)
    with open(log, "x", encoding="utf-8") as output:
        # In a session of its own, so that Ctrl-C at the terminal reaches it only once, through this process.
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    passed_on, reported, reported_at = False, "", time.monotonic()
    try:
        while True:
            try:
                return process.wait(timeout=0.2)
            except subprocess.TimeoutExpired:
                pass
            if stop.signal is not None and not passed_on:
                progress.say(f"  stopping when {saves}; Ctrl-C again stops at once")
                process.send_signal(signal.SIGINT)
                passed_on = True
            if time.monotonic() - reported_at > REPORT_EVERY:
                reported_at = time.monotonic()
                lines = [line for line in _lines(log) if line.strip()]
                # Before the first, whatever it says of its preparations.
                newest = next((line for line in reversed(lines) if line.startswith(shown)), "".join(lines[-1:]))
                if newest != reported:
                    progress.say(newest)
                reported = newest
    finally:
        if process.poll() is None:
            process.terminate()
            process.send_signal(signal.SIGINT)
            process.wait()


def _lines(log: Path) -> list[str]:
    return log.read_text(encoding="utf-8", errors="replace").splitlines()


def last_words(log: Path, code: int) -> str:
    """Why a process ended, in a sentence.

    Args:
      log: file of its output.
      code: its exit code.
    """
    if code < 0:
        name = signal.Signals(-code).name
        return f"its process was ended by {name}{', perhaps for lack of memory' if name == 'SIGKILL' else ''}."
    lines = [line for line in _lines(log) if line.strip()]
    sentences = [line.removeprefix("devft: ") for line in lines if line.startswith("devft: ")]
    if code > 128 and not sentences:
        return "it was stopped."
    return (sentences or lines or [f"it ended with code {code}."])[-1]
