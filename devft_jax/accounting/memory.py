"""Peak memory, measured, with where the figure comes from."""

import resource
import sys

import jax


def peak_memory() -> tuple[int, str]:
    """Peak bytes since the process began, and their source.

    On an accelerator that reports it, the largest `peak_bytes_in_use` of the local devices; otherwise the process's peak
    resident set, which includes the interpreter and the host's copies.
    """
    statistics = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [entry["peak_bytes_in_use"] for entry in statistics if "peak_bytes_in_use" in entry]
    if peaks:
        return max(peaks), "device allocator"
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return resident * (1 if sys.platform == "darwin" else 1024), "process peak resident set"
