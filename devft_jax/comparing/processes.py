"""Processes of a comparison: each command of this package runs in one of its own, with its output in a file."""

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from devft_jax.reporting import Progress
from devft_jax.runtime.options import JOINED_BY
from devft_jax.runtime.stopping import StopRequest

REPORT_EVERY = 30.0
"""Seconds between the lines that report how far a process is."""


class Ending:
    """How processes that are supervised in other threads are ended.

    Attributes:
      gently: set when they shall save their work and stop, as after a stop request.
      at_once: set when they shall stop without finishing it.
    """

    def __init__(self) -> None:
        self.gently, self.at_once = threading.Event(), threading.Event()


def child_environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a process of this package, which is none of several.

    Args:
      more: variables that are added.
    """
    # The folder that contains the package.
    sources = str(Path(__file__).resolve().parents[2])
    paths = [sources, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **(more or {})}
    for variable in JOINED_BY.values():
        environment.pop(variable, None)
    return environment


def supervise(
    command: Sequence[str],
    log: Path,
    progress: Progress,
    stop: StopRequest,
    *,
    shown: str = "  round ",
    saves: str = "the run has saved its round",
    name: str = "",
    environment: Mapping[str, str] | None = None,
    cores: Sequence[int] | None = None,
    ending: Ending | None = None,
) -> int:
    """Run a process and wait for it; a stop request is passed on, and the process saves its work before it ends.

    Args:
      command: the program and its arguments.
      log: file for its output.
      progress: the progress output.
      stop: whether the comparison was asked to stop.
      shown: start of the lines of the output that report how far it is.
      saves: what the process does before it stops, for the message.
      name: begins its lines, where several processes have lines; empty for one at a time.
      environment: variables of the process, in addition to those of this one.
      cores: numbers of the CPU cores that it may use; None for all.
      ending: how it is ended from another thread.

    Returns:
      Its exit code.
    """
    ending = ending or Ending()
    process = _started(command, log, child_environment(environment), cores)
    passed_on, reported, reported_at = False, "", time.monotonic()
    try:
        while True:
            try:
                return process.wait(timeout=0.2)
            except subprocess.TimeoutExpired:
                pass
            if ending.at_once.is_set():
                raise KeyboardInterrupt
            if (stop.signal is not None or ending.gently.is_set()) and not passed_on:
                progress.say(_named(name, f"  stopping when {saves}; Ctrl-C again stops at once"))
                process.send_signal(signal.SIGINT)
                passed_on = True
            if time.monotonic() - reported_at > REPORT_EVERY:
                reported_at = time.monotonic()
                lines = [line for line in _lines(log) if line.strip()]
                # Before the first, whatever it says of its preparations.
                newest = next((line for line in reversed(lines) if line.startswith(shown)), "".join(lines[-1:]))
                if newest != reported:
                    progress.say(_named(name, newest))
                reported = newest
    finally:
        if process.poll() is None:
            process.terminate()
            process.send_signal(signal.SIGINT)
            process.wait()
        if process.stdin is not None:
            process.stdin.close()


def _started(
    command: Sequence[str], log: Path, environment: Mapping[str, str], cores: Sequence[int] | None
) -> "subprocess.Popen[bytes]":
    # An older file is removed, not overwritten: it could be a link.
    log.unlink(missing_ok=True)
    with open(log, "x", encoding="utf-8") as output:
        # In a session of its own, so that Ctrl-C at the terminal reaches it only once, through this process.
        process = subprocess.Popen(
            command,
            # Closed when this process ends, however it does (see `devft_jax.commands.child`).
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    if cores is not None:
        # While Python starts; its later threads have the same cores. Where a container forbids it, it keeps this one's.
        with contextlib.suppress(OSError):
            os.sched_setaffinity(process.pid, cores)
    return process


def _named(name: str, line: str) -> str:
    return f"{name}: {line.strip()}" if name else line


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
