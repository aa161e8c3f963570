"""Peak anonymous memory of this process, by sampling: the memory of a step without the pages of mapped files. Linux only."""

import contextlib
import ctypes
import gc
import threading
from collections.abc import Iterator
from pathlib import Path


def status(field: str) -> int:
    """Bytes of one field of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


@contextlib.contextmanager
def peak_memory() -> Iterator[list[int]]:
    """A list whose only element, after the block, is the largest rise of anonymous memory in bytes."""
    gc.collect()
    # Freed memory that malloc still holds from earlier steps would hide what this one allocates.
    ctypes.CDLL(None).malloc_trim(0)
    before, peaks, done = status("RssAnon"), [0], threading.Event()

    def sample() -> None:
        while not done.wait(0.002):
            peaks[0] = max(peaks[0], status("RssAnon") - before)

    sampler = threading.Thread(target=sample, daemon=True)
    sampler.start()
    try:
        yield peaks
    finally:
        peaks[0] = max(peaks[0], status("RssAnon") - before)
        done.set()
        sampler.join()
