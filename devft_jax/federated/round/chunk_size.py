"""How many clients are trained at once where the configuration leaves it open.

More clients in a chunk share the passes over the frozen weights and the cost of starting a program, until caches or memory
are full. Which number is best depends on model, batch and machine, so it is measured: after its first round a run times
chunks of `FACTORS[0]` times as many clients for as long as that pays, and then of the smaller factors: two clients at once
are often slower than one, and four faster. Each is timed in turns with the best so far on the same clients, since a machine
that others use is now faster and now slower; chunks that take a second have one turn each, and what is chosen between such
is as uncertain as that. A size is tried where

    over all sizes tried and this one, compile time of the best so far + time of trial runs
        <=  time of all training that is left / WORTH

so that short runs try nothing and no run spends much more than that share on trials. It is taken where a client then costs
at most `BETTER` of what it does with the best so far.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

# How many times dearer what is left of a run must be than a trial.
WORTH = 10
BETTER = 0.95
# How many times the best size so far is tried next, until each in turn no longer pays.
FACTORS = (4, 2)
# Share of a device's memory that a chunk's program may take by XLA's analysis.
FILL = 0.8
# The fastest counts: a chunk of a small model takes milliseconds, and machines are shared.
MOST_TRIAL_RUNS, TRIAL_SECONDS = 7, 1.0


@dataclass(frozen=True)
class Trial:
    """One size, tried: seconds that a client takes, that compiling took, and bytes of the program on one device."""

    client_seconds: float
    compile_seconds: float
    program_bytes: int


def padding(clients: int, size: int) -> float:
    """How many clients are trained for each that takes part, where chunks of `size` are filled up: 1 or more."""
    return math.ceil(clients / size) * size / clients


def trial_runs(chunk_seconds: float) -> int:
    """How often a chunk that takes so long is run to be timed."""
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
    """The number of clients of a chunk.

    Args:
      trial: tries two sizes in turns on as many clients as the second has; None where that does not fit into memory.
      start: what the first round ran, a multiple of the devices. most: beyond it there would only be padding.
      clients: that are left to be trained in the run, each as often as it takes part.
      first: what the first round said of `start`. memory: bytes of one device, if they are known.
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
    """Half as many clients on every device; None where each has one."""
    each = size // devices // 2
    return each * devices if each else None
