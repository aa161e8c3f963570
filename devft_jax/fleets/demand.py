"""What a stage asks of a client's device: memory, bytes and operations of the client's own submodel, from shapes."""

import functools
from dataclasses import dataclass

import jax
import numpy as np

from devft_jax.accounting.communication import round_messages
from devft_jax.accounting.flops import Adaptation, training_flops
from devft_jax.accounting.memory import Work, stage_memory
from devft_jax.federated.round.client import LocalTraining
from devft_jax.models.architecture import ModelConfig


@dataclass(frozen=True)
class Demand:
    """What a participant of a stage needs.

    Attributes:
      memory: bytes of training, by the formula of `devft_jax.accounting.memory`.
      down: bytes of the server's message; of the largest if clients differ in rank.
      up: bytes of the client's message; of the largest if clients differ in rank.
      config: the architecture.
      depth: layers that run.
      adaptation: the trained part.
      frozen: number of the lowest adapted layers that do not learn.
    """

    memory: int
    down: int
    up: int
    config: ModelConfig
    depth: int
    adaptation: Adaptation
    frozen: int

    def example_flops(self, lengths: np.ndarray) -> np.ndarray:
        """Operations of training on examples of these lengths, once each, f64 of the same shape.

        Args:
          lengths: integers, tokens of each example.
        """
        found, places = np.unique(lengths, return_inverse=True)
        counts = [
            length
            * training_flops(self.config, layers=self.depth, adaptation=self.adaptation, length=length, frozen=self.frozen)
            for length in found.tolist()
        ]
        return np.array(counts, float)[places].reshape(lengths.shape)


@functools.lru_cache(maxsize=64)
def stage_demand(
    training: LocalTraining,
    work: Work,
    *,
    layers: int,
    frozen: int,
    bare: int,
    quantization: str,
    fused_precision: str,
) -> Demand:
    """What a stage asks of a participant.

    Args:
      training: one client's local training, of the base at full depth.
      work: what one client trains; its `clients` is 1, its `length` padded.
      layers: layers of the stage's submodel that have an adapter.
      frozen: number of the lowest of them that do not learn.
      bare: number of layers below them that run without an adapter.
      quantization: as the option of that name.
      fused_precision: as the option of that name.
    """
    algorithm, config = training.algorithm, training.config
    messages = round_messages(algorithm, config, layers)
    train, given = jax.eval_shape(algorithm.start, messages.participant)
    memory = stage_memory(
        training,
        work,
        layers=layers,
        frozen=frozen,
        bare=bare,
        quantization=quantization,
        fused_precision=fused_precision,
        simulator=False,
    )
    return Demand(
        memory=memory.total,
        down=messages.bytes_down,
        up=messages.bytes_up,
        config=config,
        depth=layers + bare,
        adaptation=Adaptation.of(jax.eval_shape(algorithm.adapter, train, given), train, layers + bare),
        frozen=frozen,
    )
