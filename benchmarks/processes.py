"""The processes of the programs, and a description of the machine."""

import contextlib
import json
import os
import platform
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class ProgramError(Exception):
    """A program ended without an answer."""


class Process:
    """A running program.

    Attributes:
      start_seconds: from its start until it was ready: interpreter, imports, model and data.
      versions: of its packages.
    """

    def __init__(self, name: str, command: list[str], folder: Path):
        self.name = name
        self.folder = Path(tempfile.mkdtemp(dir=folder))
        # No compiled programs of earlier runs are reused, and only the flags set the number of threads.
        environment = {key: value for key, value in os.environ.items() if key not in THREADS}
        environment |= {"DEVFT_CACHE": str(self.folder / "cache"), "JAX_PLATFORMS": "cpu"}
        environment |= {"HF_HUB_OFFLINE": "1", "FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0"}
        began = time.perf_counter()
        with (self.folder / "log").open("w") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
            )
        self.versions: dict[str, str] = self._answer()["versions"]
        self.start_seconds = time.perf_counter() - began

    def ask(self, command: str) -> dict[str, Any]:
        """Send a command and wait for its answer.

        Raises:
          ProgramError: the program ended instead; with the last line that it printed.
        """
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            print(command, file=self.process.stdin, flush=True)
        return self._answer()

    def adapters(self) -> tuple[dict[str, np.ndarray], float]:
        """The last round's aggregated adapters and mean loss."""
        path = self.folder / "adapters.npz"
        loss = self.ask(f"adapters {path}")["loss"]
        with np.load(path) as stored:
            return dict(stored), loss

    def stop(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            printed = (self.folder / "log").read_text(errors="replace").strip().splitlines() or ["nothing was printed"]
            raise ProgramError(f"it ended with code {code}: {printed[-1]}")
        return json.loads(line)


def machine() -> str:
    """The processor, cores and memory in one line."""
    fields = dict(line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line)
    model = {key.strip(): value.strip() for key, value in fields.items()}.get("model name", platform.machine())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{len(os.sched_getaffinity(0))} cores of {model}, {memory:.0f} GiB, {platform.system()} {platform.release()}"


def idle_share(seconds: float) -> float:
    """Share of the machine's CPU time that is idle over the next `seconds` seconds, 0 to 1."""

    def counters() -> tuple[int, int]:
        ticks = [int(part) for part in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        return ticks[3] + ticks[4], sum(ticks)

    idle, total = counters()
    time.sleep(seconds)
    idle_after, total_after = counters()
    return (idle_after - idle) / max(total_after - total, 1)
