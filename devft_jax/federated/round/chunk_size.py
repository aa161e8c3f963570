"""How many clients are trained at once, if the configuration does not set it.

More clients in a chunk share the passes over the frozen weights and the cost of starting an operation, until caches or
memory are full.

On a CPU the number follows from shapes alone (`cpu_clients`): nothing is compiled or timed to find it, and equal runs have
equal chunks. It is the least with which a layer's products are so large that starting them costs little.

On an accelerator it is measured, one size at a time while the rounds go on (`SizeSearch`): every size trains a whole round,
so that only its compilation is spent on the search. From the best size so far `FACTORS[0]` times as many clients are tried
as long as that pays, and then the smaller factors. A size is tried if

    compile time of the best so far  <=  time of all remaining training / WORTH

and kept if a token then costs at most `BETTER` of what it costs with the best size so far.
"""

import math
from dataclasses import dataclass

# The rest of a run must be this many times longer than the compilation of another size.
WORTH = 10
BETTER = 0.95
# Multiples of the best size so far that are tried next, each until it no longer pays.
FACTORS = (4, 2)
# Share of a device's memory that a chunk's program may need by XLA's analysis.
FILL = 0.8
# Operations of a device's clients in one layer's products with frozen weights, from which on starting them costs little.
LAYER_FLOPS = 1.2e7


def cpu_clients(participants: int, devices: int, layer_flops: float) -> int:
    """Clients of a chunk on a CPU.

    Args:
      participants: of a round.
      devices: number of devices.
      layer_flops: operations of one client's pass in one layer's products with frozen weights.

    Returns:
      A multiple of the devices that divides the participants into chunks of almost equal size.
    """
    enough = devices * math.ceil(LAYER_FLOPS / layer_flops)
    chunks = -(-participants // enough)
    return -(-participants // (chunks * devices)) * devices


@dataclass(frozen=True)
class Trial:
    """The measured cost of a size in one round.

    Attributes:
      size: clients of a chunk.
      token_seconds: training time per token, without padding.
      compile_seconds: compile time of the program.
      program_bytes: memory of the program on one device, by XLA's analysis.
    """

    size: int
    token_seconds: float
    compile_seconds: float
    program_bytes: int


class SizeSearch:
    """The search for the best size, one round after the other.

    Args:
      most: the largest useful size; a larger chunk would only add padding.
      memory: bytes of one device; None if unknown.

    Attributes:
      start: the size of the first round; 0 before it.
      best: the best size so far; None before the first round.
    """

    def __init__(self, most: int, memory: int | None):
        self.start = 0
        self.best: Trial | None = None
        self._most, self._memory = most, memory
        self._factors, self._beyond = list(FACTORS), most + 1

    def after(self, found: Trial, seconds_left: float) -> int | None:
        """The size of the next round.

        Args:
          found: the cost of the size with which the last round was trained.
          seconds_left: training time of all remaining rounds of the run at that cost.

        Returns:
          The size to try; None if the search has ended, with its result in `best`.
        """
        self.start = self.start or found.size
        if self.best is None or found.token_seconds <= BETTER * self.best.token_seconds:
            self.best = found
        else:
            self._reject(found.size)
        while self._factors and self.best.size < self._most:
            larger = min(self._factors[0] * self.best.size, self._most)
            needed = self.best.program_bytes * larger / self.best.size
            fits = self._memory is None or needed <= FILL * self._memory
            if larger < self._beyond and fits and self.best.compile_seconds * WORTH <= seconds_left:
                return larger
            self._reject(larger)
        return None

    def before(self, size: int) -> int | None:
        """The size to go back to if one that was tried does not fit into memory; None if it was not tried by the search.

        Args:
          size: the size that does not fit.
        """
        return None if self.best is None or size <= self.best.size else self.best.size

    def _reject(self, size: int) -> None:
        self._beyond = min(self._beyond, size)
        self._factors.pop(0)


def next_smaller(size: int, devices: int) -> int | None:
    """Half as many clients on every device; None if each has one."""
    each = size // devices // 2
    return each * devices if each else None
