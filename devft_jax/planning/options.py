"""The options of a plan."""

import math
import re
from dataclasses import dataclass

from devft_jax.errors import InputError
from devft_jax.options import check_options, option

SMALLEST_MEMORY = 10**6
"""Sizes below this many bytes are refused, because their unit was probably forgotten."""
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """What the plan assumes and prints, besides the run's own options."""

    flops_per_second: float | None = option(None, above=0, remedy="1e14 suits a data-centre GPU")
    """Rate of training, floating-point operations per second of all devices together; by default the measured rate of this
    machine's matrix products, which takes a second to measure and is stored. 1e14 suits a data-centre GPU."""
    memory: str | None = None
    """Memory of a device, such as 24GB or 80GiB: the plan then says which stages fit into it."""
    compile: bool = False
    """Compile every stage's program from its shapes, which takes from seconds to minutes, and print XLA's figure of its
    memory beside the formula's."""
    json: bool = False
    """Print the plan as JSON."""

    def check(self) -> None:
        """Check the assumptions.

        Raises:
          InputError: the rate or the memory is not valid.
        """
        check_options(self)
        if self.memory is not None:
            parse_memory(self.memory)


def parse_memory(text: str) -> int:
    """Bytes of a size such as 24GB (powers of 1000), 80GiB (powers of 1024) or 16000000000.

    Args:
      text: the size.

    Raises:
      InputError: the text is not a size, or the size is below a megabyte, as for 24 without a unit.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]I?)?B?\s*", text.upper())
    size = math.nan if found is None else float(found[1]) * UNITS[found[2] or ""]
    if not 0 < size < math.inf:
        raise InputError(f"memory '{text}' is not a size; write one such as 24GB or 80GiB.")
    if size < SMALLEST_MEMORY:
        raise InputError(f"memory '{text}' is less than a megabyte; give its unit, such as 24GB or 80GiB.")
    return int(size)
