"""Rounds in which classes of clients hold different parts of the model: their groups, costs and records."""

from collections.abc import Sequence
from functools import partial

import numpy as np

from devft_jax.accounting.flops import Adaptation, training_flops
from devft_jax.developmental import LayerMap
from devft_jax.developmental.classes import ClassShape
from devft_jax.federated.round.classes import ClassGroup, GroupCost, run_classes
from devft_jax.federated.round.results import RoundResult
from devft_jax.federated.sampling import client_keys
from devft_jax.federated.work import Participants
from devft_jax.models.base import Base
from devft_jax.storage.records import ClassRecord
from devft_jax.training.classes import ClientClasses
from devft_jax.training.distilling import stage_distiller
from devft_jax.training.measured import measured_growth
from devft_jax.training.parts import Parts
from devft_jax.training.state import State


def train_classes(parts: Parts, state: State, members: Participants, rate: float) -> tuple[RoundResult, list[GroupCost]]:
    """Train a round's participants, each with what its class holds.

    Args:
      parts: the run's parts, with classes.
      state: the state before the round; not changed.
      members: the participants.
      rate: learning rate of the round.

    Returns:
      The round's result, and the costs of every group of participants.
    """
    config = parts.config
    return run_classes(
        parts.cohort,
        state.server,
        state.bank,
        _groups(parts, state, members),
        lr=rate,
        keys=partial(client_keys, config.seed, np.uint32(state.round)),
        rule=config.holders,
        mode=config.transfer,
    )


def _groups(parts: Parts, state: State, members: Participants) -> list[ClassGroup]:
    classes, stage = parts.classes, state.stage
    assert classes is not None
    shapes, growth = classes.demands.shapes(stage), measured_growth(parts, state.totals)
    groups = []
    for index, layer_map, places in classes.maps(growth, members.positions, state.round, stage, state.class_maps):
        shape = shapes[index]
        groups.append(
            ClassGroup(
                index=index,
                base=_base(parts, state, index, shape, layer_map),
                layer_map=layer_map,
                ranks=classes.demands.ranks(index, stage),
                inclusion=growth.inclusion(index, stage, layer_map.num_layers),
                frozen=shape.frozen,
                drawn=shape.drawn,
                places=places,
                cohort=[members[place] for place in places.tolist()],
                clients_per_step=_at_once(parts, shape),
            )
        )
    return groups


def _at_once(parts: Parts, shape: ClassShape) -> int:
    """Clients of a chunk: as configured, or one on every device where each client may hold its own layers."""
    config, least = parts.config, parts.cohort.devices
    alone = shape.drawn and config.layer_draws == "client"
    return least if alone or config.clients_per_step == "auto" else parts.cohort.clients_per_step


def _base(parts: Parts, state: State, index: int, shape: ClassShape, layer_map: LayerMap) -> Base:
    """The frozen layers of a part; those that stay the same are made once."""
    if layer_map.runs_base:
        return parts.base
    if shape.drawn:
        return parts.submodels.picked(layer_map)
    if index not in state.class_bases:
        # The class that stays at a stage has the number of that stage.
        blocks = parts.submodels.layers_to_fuse(min(index, state.stage))
        state.class_bases[index] = parts.submodels.fused(layer_map, blocks, distil=stage_distiller(parts, layer_map))
    return state.class_bases[index]


def class_flops(parts: Parts, costs: Sequence[GroupCost]) -> int:
    """Operations of a round's training, over all participants.

    Args:
      parts: the run's parts.
      costs: of every group of participants.
    """
    return sum(
        examples
        * length
        * training_flops(
            parts.model.config,
            layers=cost.depth,
            adaptation=Adaptation.of(cost.part.adapter, cost.part.train, cost.depth),
            frozen=cost.frozen,
            length=length,
        )
        for cost in costs
        for length, examples in cost.part.examples_by_length.items()
    )


def rounds_before(state: State) -> list[int]:
    """Rounds before each stage so far.

    Args:
      state: the run's state, within a stage.
    """
    return np.cumsum([0, *(stage.rounds for stage in state.totals.stages[:-1])]).tolist()


def class_records(classes: ClientClasses, stage: int) -> list[ClassRecord]:
    """The classes of a stage, for its record.

    Args:
      classes: the run's classes.
      stage: from 0.
    """
    shapes, demands = classes.demands.shapes(stage), classes.demands.demands(stage)
    return [
        ClassRecord(
            layers=shape.layers,
            trained=shape.trained,
            bare=shape.bare,
            ranks=None if (ranks := classes.demands.ranks(index, stage)) is None else list(ranks),
            clients=int(np.count_nonzero(classes.of == index)),
            memory_bytes=demand.memory,
            message_up=demand.up,
            message_down=demand.down,
        )
        for index, (shape, demand) in enumerate(zip(shapes, demands, strict=True))
    ]
