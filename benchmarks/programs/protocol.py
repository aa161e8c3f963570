"""The protocol of the programs: the work that each reads, and the commands that each answers.

A program runs in its own process and interpreter, and imports this module, which needs only numpy.

    started by   <python> <program>.py --work FOLDER [--clients N] [--threads N]
    reads        one command a line from standard input: round, adapters PATH, stop
    writes       one JSON object a line to standard output: {"versions": ...} when ready, then an answer to each command

Every round starts from the work's initial adapters and trains every client on the same batches in the same order, so that
all rounds of all programs are the same work. Output of libraries goes to standard error.

Axis letters: C clients, S local steps, B batch, T tokens, L layers, r rank.
"""

import argparse
import contextlib
import ctypes
import gc
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol, TextIO

import numpy as np

TARGETS = ("q", "k", "v", "o")
"""The adapted projections of every work."""

PACKAGES = ("jax", "jaxlib", "optax", "drjax", "torch", "transformers", "peft", "pfl", "flwr", "ray", "numpy")

Arrays = dict[str, np.ndarray]


class Work:
    """A work as `works.py` wrote it.

    Attributes:
      model: folder with config.json and model.safetensors in Hugging Face's layout, float32.
      adapters: the initial factors by name, "q.a" f32[L, in, r] and "q.b" f32[L, r, out] and so on.
      order: i64[C, S, B], the examples of every client's steps.
      clients: C.
      steps: S.
      batch: B.
      tokens: of a round, without padding.
      name: of the work.
      rank: of the adapters.
      alpha: of the adapters.
      learning_rate: of AdamW.
      beta1: of AdamW.
      beta2: of AdamW.
      epsilon: of AdamW.
      weight_decay: of AdamW.
    """

    def __init__(self, folder: Path, clients: int | None = None):
        settings = json.loads((folder / "work.json").read_text())
        self.model = folder / "model"
        self.name: str = settings["name"]
        self.rank: int = settings["rank"]
        self.alpha: float = settings["alpha"]
        self.learning_rate: float = settings["learning_rate"]
        self.beta1: float = settings["beta1"]
        self.beta2: float = settings["beta2"]
        self.epsilon: float = settings["epsilon"]
        self.weight_decay: float = settings["weight_decay"]
        with np.load(folder / "adapters.npz") as stored:
            self.adapters: Arrays = dict(stored)
        with np.load(folder / "examples.npz") as stored:
            self.order = stored["order"][:clients]
            used = self.order.size
            self.rows, self.lengths = stored["tokens"][:used], stored["lengths"][:used]
            self.prompt_lengths = stored["prompt_lengths"][:used]
        self.clients, self.steps, self.batch = self.order.shape
        self.tokens = int(self.lengths[self.order].sum())

    def gather(self, examples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Examples i64[...] padded on the right with 0 to the longest of them.

        Returns:
          Tokens i32[..., T], and answer bool[..., T]: the tokens that the loss covers, never the first of a row.
        """
        length = int(self.lengths[examples].max())
        tokens = self.rows[examples, :length]
        position = np.arange(length)
        prompts = np.maximum(self.prompt_lengths[examples], 1)[..., None]
        answer = (position >= prompts) & (position < self.lengths[examples][..., None])
        return tokens, answer

    def steps_of(self, client: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """A client's batches, each (tokens i32[B, T], answer bool[B, T]) padded to the longest of its own."""
        return [self.gather(examples) for examples in self.order[client]]


class Program(Protocol):
    """A program that answers the commands."""

    def round(self) -> None:
        """One federated round from the initial adapters, finished when the call returns."""

    def figures(self) -> dict[str, float]:
        """Measurements of the last round that the program makes itself, by name."""
        return {}

    def result(self) -> tuple[Mapping[str, Any], float]:
        """The last round's aggregated adapters, with the names and shapes of the work's, and the mean loss of all its
        steps."""


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The program's command line."""
    parser = argparse.ArgumentParser(description="A program of the comparison; benchmarks/rounds.py runs it.")
    parser.add_argument("--work", type=Path, required=True, help="folder that benchmarks/works.py wrote")
    parser.add_argument("--clients", type=int, help="number of clients of the work to use; by default all")
    parser.add_argument("--threads", type=int, help="threads of a torch program; by default one per core")
    parser.add_argument(
        "--at-once", type=int, help="clients that plain JAX trains at once (vmap_round.py only); by default all"
    )
    parser.add_argument(
        "--layers", type=int, help="number of the model's first layers to use (devft.py only); by default all"
    )
    return parser.parse_args(arguments)


def serve(make: Callable[[Work, argparse.Namespace], Program]) -> None:
    """Run a program: read the work, make the program, answer commands until `stop`."""
    options, answers = parse(), own_output()
    answer(make(Work(options.work, options.clients), options), answers)


def own_output() -> TextIO:
    """Standard output, reserved for answers: from here on, all other output goes to standard error."""
    sys.stdout.flush()
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return answers


def answer(program: Program, answers: TextIO) -> None:
    """Answer commands from standard input until it ends or says stop."""

    def say(**values: Any) -> None:
        print(json.dumps(values), file=answers, flush=True)

    say(versions=versions())
    for line in sys.stdin:
        command, _, argument = line.strip().partition(" ")
        if command == "stop":
            return
        if command == "round":
            say(**measured(program))
        elif command == "adapters":
            adapters, loss = program.result()
            write_arrays(Path(argument), adapters)
            say(loss=loss)
        else:
            raise ValueError(f"command {command!r} is unknown; use round, adapters PATH or stop.")


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Arrays by name as one .npz file."""
    np.savez(path, allow_pickle=False, **{name: np.asarray(array) for name, array in arrays.items()})


def measured(program: Program) -> dict[str, float]:
    """Run one round: its wall and CPU seconds, and the peak resident memory of the process and its children in bytes."""
    reset_peaks()
    cpu, began = cpu_seconds(), time.perf_counter()
    program.round()
    wall = time.perf_counter() - began
    spent = {"wall": wall, "cpu": cpu_seconds() - cpu, "peak": sum(peak(pid) for pid in family())}
    return {**spent, **program.figures()}


def versions() -> dict[str, str]:
    """Versions of the interpreter and of the packages that a program's speed depends on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def family() -> list[int]:
    """This process and all its descendants."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))):
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found = [os.getpid()]
    for pid in found:
        found += children.get(pid, [])
    return found


def cpu_seconds() -> float:
    """CPU time of all threads of this process, and of its descendants, also of those that have ended, to a clock tick."""
    ticks = os.sysconf("SC_CLK_TCK")
    own = os.times()
    others = [fields for pid in family()[1:] if (fields := _stat(pid))]
    spent = sum(int(part) for fields in others for part in fields[11:15]) / ticks
    return time.process_time() + own.children_user + own.children_system + spent


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from the state on: [1] is the parent, [11:15] the CPU ticks; None if it has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


def reset_peaks() -> None:
    """Return freed memory and reset the recorded peaks of this process and its descendants."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    for pid in family():
        Path(f"/proc/{pid}/clear_refs").write_text("5")


def peak(pid: int) -> int:
    """Bytes of a process's peak resident memory since it was last reset; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)
