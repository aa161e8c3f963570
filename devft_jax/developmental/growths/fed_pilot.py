"""After Fed-pilot (Zhang et al., arXiv:2410.10200, 2024): a client trains the most informative layers that its memory holds.

    client of a class with m layers     the full model with all adapters; trained are the layers S that maximise sum v_l with

                                        (L - min S) + q |S|  <=  m (1 + q)

    server                              the mean of each layer over those who train it

The left side is the memory of training S: activations from the lowest trained layer upward, and q = `layer_cost` for the
gradients and moments of a layer's adapter, both in units of a layer's activations; the budget is that of the top m layers.
The value v_l is the layer's Fisher information on public text (`probe_data`), as for fed-hello. A variant from a description
of the paper: its code is not public. There v combines statistics of the clients and the server, is renewed during training,
and the server gives layers that were seldom updated more weight; here `holders` is the rule. A plan counts messages of m
layers and a backward pass as far down as the budget reaches; a run sends those of S.
"""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from devft_jax.developmental.class_growth import ClassGrowth
from devft_jax.developmental.classes import ClassShape
from devft_jax.developmental.knapsack import best_layers
from devft_jax.developmental.maps import LayerMap
from devft_jax.developmental.options import PilotOptions


@dataclasses.dataclass(frozen=True, kw_only=True)
class FedPilot(ClassGrowth):
    """The full model, of which every class trains the layers of most information.

    Attributes:
      layer_cost: q, memory of training a layer's adapter in units of a layer's activations.
      fisher: f[L], the layers' Fisher information; None until `prepared` has measured it.
    """

    layer_cost: float = 0.1
    fisher: tuple[float, ...] | None = None

    @property
    def measured(self) -> bool:
        """Whether the layers' information is known."""
        return self.fisher is not None

    def prepared(self, measure: Callable[..., np.ndarray]) -> "FedPilot":
        """This growth with the layers' Fisher information, which is requested once.

        Args:
          measure: ("fisher") -> f32[L].
        """
        if self.measured:
            return self
        return dataclasses.replace(self, fisher=tuple(map(float, measure("fisher"))))

    def class_shape(self, count: int, num_layers: int) -> ClassShape:
        """The most that such a client may train, and the lowest layer that it may reach.

        Args:
          count: number of top layers whose memory is the budget.
          num_layers: L, the depth of the model.
        """
        # One layer alone reaches furthest down.
        reach = int(count * (1 + self.layer_cost) - self.layer_cost + 1e-9)
        return ClassShape(num_layers, count, frozen=max(0, num_layers - reach), picks=True)

    def held(self, count: int, num_layers: int, draws: np.ndarray | None) -> LayerMap:
        """The full model, of which the chosen layers train.

        Args:
          count: number of top layers whose memory is the budget.
          num_layers: L, the depth of the model.
          draws: not used.

        Raises:
          ValueError: the Fisher information has not been measured, or is not finite.
        """
        if self.fisher is None or not np.isfinite(self.fisher).all():
            raise ValueError("fed-pilot has no finite Fisher information of its layers: call prepared(measure) first.")
        costs = np.full(num_layers, self.layer_cost)
        train = np.zeros(num_layers, bool)
        train[best_layers(np.array(self.fisher), costs, 1.0, count * (1 + self.layer_cost))] = True
        return dataclasses.replace(LayerMap.identity(num_layers), train=jnp.asarray(train))


def make(options: PilotOptions, num_layers: int) -> FedPilot:
    """Fed-pilot with the given options.

    Args:
      options: the growth options.
      num_layers: L, the depth of the model.

    Raises:
      ValueError: the options do not fit the model.
    """
    growth = FedPilot(counts=options.class_layers, layer_cost=options.layer_cost)
    growth.counts_in(num_layers)
    return growth
