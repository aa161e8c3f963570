"""The classes of clients in a plan: what a client of each holds, sends and needs."""

from dataclasses import dataclass

import numpy as np

from devft_jax.training.classes import ClientClasses


@dataclass(frozen=True)
class ClassPlan:
    """A class of clients in a stage.

    Attributes:
      layers: layers with an adapter.
      trained: number of these that train.
      bare: layers that run below them without an adapter.
      ranks: rank of each, if it is not the run's for all.
      clients: number of clients in the class.
      message_up: bytes that a client sends in a round.
      message_down: bytes that a client receives in a round.
      submodel: bytes of frozen layers that a client receives once.
      memory: bytes of a client's device.
      round_flops: operations of a client in a round.
    """

    layers: int
    trained: int
    bare: int
    ranks: tuple[int, ...] | None
    clients: int
    message_up: int
    message_down: int
    submodel: int
    memory: int
    round_flops: int


def class_plans(classes: ClientClasses, stage: int, *, steps: int, batch: int, length: int) -> tuple[ClassPlan, ...]:
    """The classes of a stage.

    Args:
      classes: the clients' classes.
      stage: from 0.
      steps: local steps of a round.
      batch: examples of a step.
      length: tokens of an example.
    """
    demands, planned = classes.demands, []
    for index, (shape, demand) in enumerate(zip(demands.shapes(stage), demands.demands(stage), strict=True)):
        planned.append(
            ClassPlan(
                layers=shape.layers,
                trained=shape.trained,
                bare=shape.bare,
                ranks=demands.ranks(index, stage),
                clients=int(np.count_nonzero(classes.of == index)),
                message_up=demand.up,
                message_down=demand.down,
                submodel=demands.submodel(index, stage),
                memory=demand.memory,
                round_flops=int(steps * batch * demand.example_flops(np.array([length]))[0]),
            )
        )
    return tuple(planned)
