"""How many clients are trained at once, if the configuration does not set it.

More clients in a chunk share the passes over the frozen weights and the cost of starting a program, until caches or memory
are full. The best number depends on model, batch and machine, so it is measured: after its first round a run times
chunks of `FACTORS[0]` times as many clients as long as that pays, and then of the smaller factors: two clients at once
are often slower than one, and four faster. Each size is timed alternately with the best so far, on the same clients, because
the speed of a shared machine varies. Chunks that take a second are timed once each, and the choice between
them is less certain. A size is tried if

    over all sizes tried and this one, compile time of the best so far + time of trial runs
        <=  time of all remaining training / WORTH

so that short runs try nothing and no run spends much more than that share on trials. It is chosen if a client then costs at
most `BETTER` of its cost with the best size so far.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

# The rest of a run must be this many times longer than a trial.
WORTH = 10
BETTER = 0.95
# Multiples of the best size so far that are tried next, each until it no longer pays.
FACTORS = (4, 2)
# Share of a device's memory that a chunk's program may need by XLA's analysis.
FILL = 0.8
# The fastest run counts: a chunk of a small model takes milliseconds, and machines are shared.
MOST_TRIAL_RUNS, TRIAL_SECONDS = 7, 1.0


@dataclass(frozen=True)
class Trial:
    """The measured cost of a size.

    Attributes:
      client_seconds: training time per client.
      compile_seconds: compile time of the program.
      program_bytes: memory of the program on one device, by XLA's analysis.
    """

    client_seconds: float
    compile_seconds: float
    program_bytes: int


def padding(clients: int, size: int) -> float:
    """Clients trained per participant, padding included, in chunks of `size`: at least 1."""
    return math.ceil(clients / size) * size / clients


def trial_runs(chunk_seconds: float) -> int:
    """How many times a chunk that takes `chunk_seconds` is run for timing."""
    return min(MOST_TRIAL_RUNS, math.ceil(TRIAL_SECONDS / max(chunk_seconds, TRIAL_SECONDS / MOST_TRIAL_RUNS)))


def choose(
    trial: Callable[[int, int], tuple[Trial, Trial] | None],
    *,
    start: int,
    most: int,
    clients: int,
    first: Trial,
    memory: int | None,
) -> int:
    """Choose the number of clients of a chunk.

    Args:
      trial: measures two sizes alternately, on as many clients as the second has; None if that does not fit into memory.
      start: the size of the first round, a multiple of the devices.
      most: the largest useful size; a larger chunk would only add padding.
      clients: number of client trainings still to come in the run.
      first: the measured cost of `start` in the first round.
      memory: bytes of one device; None if unknown.
    """
    size, best, spent = start, first, 0.0
    factors, beyond = list(FACTORS), most + 1
    while factors and size < most:
        larger = min(factors[0] * size, most)
        seconds = larger * best.client_seconds
        cost = best.compile_seconds + 2 * trial_runs(seconds) * seconds
        worth = (spent + cost) * WORTH <= clients * best.client_seconds
        fits = memory is None or best.program_bytes * larger / size <= FILL * memory
        both = trial(size, larger) if larger < beyond and worth and fits else None
        if both is not None:
            best, found = both
            runs = trial_runs(larger * found.client_seconds)
            spent += found.compile_seconds + runs * larger * (best.client_seconds + found.client_seconds)
            if found.client_seconds <= BETTER * best.client_seconds:
                size, best = larger, found
                continue
        beyond = min(beyond, larger)
        factors.pop(0)
    return size


def next_smaller(size: int, devices: int) -> int | None:
    """Half as many clients on every device; None if each has one."""
    each = size // devices // 2
    return each * devices if each else None
