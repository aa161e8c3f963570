"""After FedQuad (Li et al., IEEE TMC 2026): a client trains its top layers, as many as its device's memory holds.

    client of a class with d layers     adapters of the run's rank on the layers L - d .. L - 1; below them the base
    server                              the mean of each layer over those who train it

A variant from descriptions of the paper: its full text and code were not at hand. There devices may also keep the
activations of some layers in fewer bits, and a pair of depth and such layers is chosen by the expected gain per second; here
activations are never quantised, and the depth follows from memory or from given shares.
"""

from devft_jax.developmental.growths.legend import TopLayers, made
from devft_jax.developmental.options import ClassOptions


def make(options: ClassOptions, num_layers: int) -> TopLayers:
    """FedQuad with the given options.

    Args:
      options: the growth options.
      num_layers: L, the depth of the model.

    Raises:
      ValueError: the options do not fit the model.
    """
    return made(options, num_layers, 1.0)
