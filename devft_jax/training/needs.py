"""What a stage asks of the clients' devices, also where classes of clients hold different layers."""

from dataclasses import dataclass

import numpy as np

from devft_jax.accounting.memory import Work
from devft_jax.config.run_config import RunConfig
from devft_jax.data import length_buckets
from devft_jax.developmental import StageShape
from devft_jax.federated.round.client import LocalTraining
from devft_jax.fleets.demand import Demand, stage_demand
from devft_jax.training.classes import NO_CLASS, ClientClasses


@dataclass(frozen=True)
class Needs:
    """What a stage asks of N clients.

    Attributes:
      demands: of each class; a single one if all clients hold the same.
      of: i64[N], the class of every client, `NO_CLASS` for one that cannot take part.
    """

    demands: list[Demand]
    of: np.ndarray

    @property
    def memory(self) -> np.ndarray:
        """Bytes that each client needs, f64[N]; infinity for one that cannot take part."""
        return np.where(self.of == NO_CLASS, np.inf, self._values("memory")[self.of])

    @property
    def least(self) -> int:
        """Bytes that a client needs at least: those of the least demanding class."""
        return min(demand.memory for demand in self.demands)

    def down(self, clients: np.ndarray) -> np.ndarray:
        """Bytes of the server's message to clients, f64[K].

        Args:
          clients: i64[K], their indices.
        """
        return self._values("down")[self.of[clients]]

    def up(self, clients: np.ndarray) -> np.ndarray:
        """Bytes of clients' messages, f64[K].

        Args:
          clients: i64[K], their indices.
        """
        return self._values("up")[self.of[clients]]

    def example_flops(self, clients: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Operations of training on examples, f64 of the shape of `lengths`.

        Args:
          clients: i64[K], their indices.
          lengths: integers [K, ...], tokens of each example.
        """
        found, of = np.zeros(lengths.shape), self.of[clients]
        for index in np.unique(of).tolist():
            found[of == index] = self.demands[index].example_flops(lengths[of == index])
        return found

    def _values(self, name: str) -> np.ndarray:
        return np.array([getattr(demand, name) for demand in self.demands], float)


def demand_of(config: RunConfig, training: LocalTraining, shape: StageShape) -> Demand:
    """What a stage asks of a client's device, with examples of `max_length`, as a plan counts it.

    Args:
      config: the configuration.
      training: one client's local training, of the base at full depth.
      shape: the stage's shape.
    """
    return stage_demand(
        training,
        Work(1, config.local_steps, config.batch_size, length_buckets(config.max_length)[-1]),
        layers=shape.layers,
        frozen=shape.frozen if training.algorithm.layered else 0,
        bare=shape.bare,
        quantization=config.quantization,
        fused_precision=config.fused_precision,
    )


def needs_of(
    config: RunConfig,
    training: LocalTraining,
    classes: ClientClasses | None,
    stage: int,
    shape: StageShape,
    clients: int,
) -> Needs:
    """What a stage asks of the clients' devices.

    Args:
      config: the configuration.
      training: one client's local training, of the base at full depth.
      classes: of clients that hold different layers; None if all hold the same.
      stage: from 0.
      shape: the stage's shape, read if all clients hold the same.
      clients: N.
    """
    if classes is None:
        return Needs([demand_of(config, training, shape)], np.zeros(clients, np.int64))
    return Needs(classes.demands.demands(stage), classes.in_stage(stage))
