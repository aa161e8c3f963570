"""The record of a growth that can be selected by name: what it is, what is sent, and which options it reads.

JAX is not imported here, and the growths of the package are imported only when they are made, so that they can be listed
without it.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from devft_jax.developmental.growth import Growth


@dataclass(frozen=True)
class NamedGrowth:
    """A growth that can be selected by name.

    Attributes:
      reference: what it is and its source, in one line.
      message: what is sent.
      state: what is kept between rounds besides the adapter.
      make: (growth options, number of layers L) -> the growth; raises ValueError for options that do not fit.
      reads: the options of single growths (those declared with `of="growth"`) that this one reads. Of the other options, it
        reads all except those in `ignores`. An option that is given but not read is refused.
      ignores: options of all growths that have no effect on this one.
      because: the reason, written to follow "which" in a sentence.
    """

    reference: str
    message: str
    state: str
    make: Callable[[Any, int], "Growth"]
    reads: tuple[str, ...] = ()
    ignores: tuple[str, ...] = ()
    because: str = ""


@dataclass(frozen=True)
class OwnGrowth(NamedGrowth):
    """A growth of the package.

    Attributes:
      module: name of its module, whose docstring describes it and whose function `make` makes it.
    """

    module: str = ""


def own(module: str, **record: Any) -> OwnGrowth:
    """The record of a growth of the package, whose module is imported when the growth is made.

    Args:
      module: name of the module, which has a function `make`.
      record: the other attributes of `NamedGrowth`.
    """

    def make(options: Any, num_layers: int) -> "Growth":
        made: Growth = importlib.import_module(module).make(options, num_layers)
        return made

    return OwnGrowth(make=make, module=module, **record)
