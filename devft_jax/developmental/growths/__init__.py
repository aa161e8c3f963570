"""The package's own growths, one module each, and the options of all of them."""

from dataclasses import dataclass

from devft_jax.developmental.growth import Growth, NamedGrowth
from devft_jax.developmental.growths import devft, end_to_end, progfed, skip_grow, top_grow
from devft_jax.developmental.growths.devft import DevFT, DevFTOptions
from devft_jax.developmental.growths.end_to_end import EndToEnd
from devft_jax.developmental.growths.progfed import ProgFed, ProgFedOptions
from devft_jax.developmental.growths.skip_grow import SkipGrow
from devft_jax.developmental.growths.top_grow import TopGrow
from devft_jax.developmental.options import CapacityOptions, TextOptions

__all__ = ["GROWTHS", "OPTIONS", "DevFT", "EndToEnd", "GrowthOptions", "ProgFed", "SkipGrow", "TopGrow", "make_growth"]

GROWTHS: dict[str, NamedGrowth] = {
    "devft": devft.GROWTH,
    "end-to-end": end_to_end.GROWTH,
    "progfed": progfed.GROWTH,
    "skip-grow": skip_grow.GROWTH,
    "top-grow": top_grow.GROWTH,
}
"""The package's own growths by name."""

OPTIONS = (CapacityOptions, TextOptions, DevFTOptions, ProgFedOptions)
"""The dataclasses that declare options of single growths."""


@dataclass(frozen=True, kw_only=True)
class GrowthOptions(DevFTOptions, ProgFedOptions):
    """All options from which a growth is made."""


def make_growth(options: GrowthOptions, num_layers: int) -> Growth:
    """The growth that the options name.

    Args:
      options: the growth options.
      num_layers: L, the depth of the model.

    Raises:
      ValueError: the options do not fit the model.
    """
    return GROWTHS[options.growth].make(options, num_layers)
