"""Classes of clients in a run: which client is in which class, and what the participants of a round hold.

A client's class is the largest that its device's memory holds, if there is a fleet; otherwise, or if `class_shares` are
given, it is drawn by the seed and the client's id, so that adding or removing clients never changes another's class.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from devft_jax.accounting.communication import picked_layers_bytes, round_messages, submodel_bytes
from devft_jax.accounting.memory import Work, stage_quantization
from devft_jax.config.run_config import RunConfig
from devft_jax.data import length_buckets
from devft_jax.developmental import Growth, LayerMap
from devft_jax.developmental.classes import ClassShape
from devft_jax.errors import InputError
from devft_jax.federated.algorithm import Algorithm
from devft_jax.federated.holders import cut
from devft_jax.federated.round.classes import check_classes, sent_bytes
from devft_jax.federated.round.client import LocalTraining
from devft_jax.federated.sampling import Purpose, uniform_draws
from devft_jax.fleets.demand import Demand, stage_demand
from devft_jax.fleets.profile import Fleet

NO_CLASS = -1
"""The class of a client whose device holds no class."""


@dataclass(frozen=True)
class ClassDemands:
    """What the classes ask of clients, stage by stage.

    Attributes:
      config: a valid configuration.
      growth: with classes.
      training: one client's local training, of the base at full depth.
    """

    config: RunConfig
    growth: Growth
    training: LocalTraining

    @property
    def layers(self) -> int:
        """L, the depth of the model."""
        return self.training.config.layers

    def shapes(self, stage: int) -> tuple[ClassShape, ...]:
        """The classes of a stage, the weakest first.

        Args:
          stage: from 0.
        """
        return self.growth.classes(stage, self.layers)

    def ranks(self, index: int, stage: int) -> tuple[int, ...] | None:
        """The rank of every row of a class; None for the run's.

        Args:
          index: number of the class.
          stage: from 0.
        """
        shape, rank = self.shapes(stage)[index], self.config.rank
        own = rank if self.config.class_ranks is None else self.config.class_ranks[index]
        ranks = shape.ranks(own) or (own,) * shape.layers
        return None if set(ranks) == {rank} else ranks

    def first_alike(self, stage: int) -> np.ndarray:
        """For every class of a stage the first class that holds the same, i64[C].

        Args:
          stage: from 0.
        """
        alike = [(shape, self.ranks(index, stage)) for index, shape in enumerate(self.shapes(stage))]
        return np.array([alike.index(each) for each in alike])

    def demands(self, stage: int) -> list[Demand]:
        """What each class asks of a client's device in a stage.

        Args:
          stage: from 0.
        """
        return [
            class_demand(self.config, self.training, shape, self.ranks(index, stage))
            for index, shape in enumerate(self.shapes(stage))
        ]

    def submodel(self, index: int, stage: int) -> int:
        """Bytes of the frozen layers, or of their numbers, that a client with the base receives once.

        Args:
          index: number of the class.
          stage: from 0.
        """
        shape, config, model = self.shapes(stage)[index], self.config, self.training.config
        # The numbers of layers that are drawn are part of the messages.
        if shape.drawn or shape.depth == self.layers:
            return 0
        if shape.picks:
            return picked_layers_bytes(shape.layers)
        stored = stage_quantization(model, shape.layers, config.quantization, config.fused_precision)
        return submodel_bytes(model, shape.layers, dtype=self.training.compute.dtype, quantization=stored)


@functools.lru_cache(maxsize=64)
def class_demand(config: RunConfig, training: LocalTraining, shape: ClassShape, ranks: tuple[int, ...] | None) -> Demand:
    """What a class asks of a client's device.

    Args:
      config: the configuration.
      training: one client's local training, of the base at full depth.
      shape: the class's shape.
      ranks: rank of every row; None for the run's.
    """
    own = replace(training, algorithm=with_ranks(training.algorithm, ranks))
    demand = stage_demand(
        own,
        Work(1, config.local_steps, config.batch_size, length_buckets(config.max_length)[-1]),
        layers=shape.layers,
        frozen=shape.frozen,
        bare=shape.bare,
        quantization=config.quantization,
        fused_precision=config.fused_precision,
    )
    messages = round_messages(own.algorithm, training.config, shape.layers)
    # Any rows that train have the same size, unless their ranks differ; then all of them train.
    sent = range(shape.layers - shape.trained, shape.layers)
    return replace(
        demand,
        up=sent_bytes(messages.up, sent, ranks, numbers=shape.drawn),
        down=sent_bytes(messages.participant.down, range(shape.layers), ranks, numbers=shape.drawn),
    )


@functools.lru_cache(maxsize=64)
def with_ranks(algorithm: Algorithm, ranks: tuple[int, ...] | None) -> Algorithm:
    """An algorithm whose submodels have the ranks of a class.

    Args:
      algorithm: the run's.
      ranks: rank of every row; None for the algorithm itself.
    """
    if ranks is None:
        return algorithm
    return replace(algorithm, submodel=lambda server, layer_map: cut(algorithm.submodel(server, layer_map), ranks))


@dataclass(frozen=True)
class ClientClasses:
    """The classes of a run's clients.

    Attributes:
      demands: what the classes ask of clients.
      of: i64[N], the class of every client, `NO_CLASS` for one whose device holds none.
      ids: u32[N], the clients' ids.
    """

    demands: ClassDemands
    of: np.ndarray
    ids: np.ndarray

    def in_stage(self, stage: int) -> np.ndarray:
        """The class of every client, with classes that hold the same in a stage taken as one, i64[N].

        Args:
          stage: from 0.
        """
        alike = self.demands.first_alike(stage)
        return np.where(self.of == NO_CLASS, NO_CLASS, alike[self.of])

    def submodels(self, clients: np.ndarray, last_round: np.ndarray, stage: int, before: Sequence[int]) -> np.ndarray:
        """Bytes of frozen layers that clients receive because they have not yet, i64[K].

        Args:
          clients: i64[K], their indices.
          last_round: i64[N], the round (from 1) in which each client last received a message; 0 for never.
          stage: from 0.
          before: rounds before each stage so far.
        """
        index = self.in_stage(stage)[clients]
        sizes = np.array([self.demands.submodel(each, stage) for each in range(len(self.demands.shapes(stage)))])
        since = np.array(before)[np.minimum(index, len(before) - 1)]
        return np.where(last_round[clients] <= since, sizes[index], 0)

    def draws(self, positions: np.ndarray, round_index: int) -> np.ndarray:
        """The numbers from which layers are drawn, f64[K, L], of every client or equal for all clients of a class.

        Args:
          positions: i64[K], indices of the participants.
          round_index: the round, from 0.
        """
        config, layers = self.demands.config, self.demands.layers
        if config.layer_draws == "client":
            return uniform_draws(config.seed, Purpose.LAYERS, round_index, self.ids[positions], layers)
        count = len(self.demands.shapes(0))
        # A second stream, so that no class has the draws of a client.
        ids = np.arange(count, dtype=np.uint32)
        return uniform_draws(config.seed, Purpose.CLASSES, round_index + 1, ids, layers)[self.of[positions]]

    def maps(
        self, growth: Growth, positions: np.ndarray, round_index: int, stage: int, maps: Sequence[LayerMap]
    ) -> list[tuple[int, LayerMap, np.ndarray]]:
        """The parts that the participants of a round hold: class, map and the participants' places in the cohort, i64[K].

        Args:
          growth: the run's growth, with its measurements of layers.
          positions: i64[K], indices of the participants.
          round_index: the round, from 0.
          stage: from 0.
          maps: the growth's maps of all stages so far.
        """
        layers, shapes = self.demands.layers, self.demands.shapes(stage)
        classes = self.in_stage(stage)[positions]
        draws = self.draws(positions, round_index) if any(shape.drawn for shape in shapes) else None
        found: dict[tuple[int, bytes, bytes], tuple[int, LayerMap, list[int]]] = {}
        for place, index in enumerate(classes.tolist()):
            own = draws[place] if draws is not None and shapes[index].drawn else None
            held = growth.class_map(index, stage, layers, maps, own)
            key = index, np.asarray(held.assign).tobytes(), np.asarray(held.train).tobytes()
            found.setdefault(key, (index, held, []))[2].append(place)
        # By class, so that programs of one class run one after the other.
        ordered = sorted(found.values(), key=lambda each: (each[0], each[2][0]))
        return [(index, held, np.array(places)) for index, held, places in ordered]


def open_classes(
    config: RunConfig, growth: Growth, training: LocalTraining, ids: np.ndarray, fleet: Fleet | None, stages: int
) -> ClientClasses | None:
    """The classes of a run's clients; None if all clients hold the same.

    Args:
      config: a valid configuration.
      growth: the run's growth.
      training: one client's local training, of the base at full depth.
      ids: u32[N], the clients' ids.
      fleet: the clients' devices; None without a fleet.
      stages: number of stages.

    Raises:
      InputError: the algorithm or other options do not allow classes, or shares or ranks do not fit their number.
    """
    layers = training.config.layers
    count = len(growth.classes(0, layers))
    if not count:
        return None
    _check(config, training.algorithm, count)
    demands = ClassDemands(config, growth, training)
    if config.class_shares is None and fleet is not None:
        # In the last stage every class has reached what it holds in the end.
        needs = np.array([demand.memory for demand in demands.demands(stages - 1)])
        fits = fleet.memory[:, None] >= needs
        of = np.where(fits.any(axis=1), count - 1 - fits[:, ::-1].argmax(axis=1), NO_CLASS)
    else:
        bounds = np.cumsum(config.class_shares or (1.0,) * count)
        draws = uniform_draws(config.seed, Purpose.CLASSES, 0, ids, 1)[:, 0]
        of = np.minimum(np.searchsorted(bounds / bounds[-1], draws, side="right"), count - 1)
    return ClientClasses(demands, of, ids)


def _check(config: RunConfig, algorithm: Algorithm, count: int) -> None:
    """Raise `InputError` for options that do not fit classes of clients."""
    check_classes(algorithm)
    shown = f"growth {config.growth}" + (" with by_tier" if config.by_tier else "")
    usual = {"channel": "none", "initialization": "lora", "model_shards": 1, "aggregation": "synchronous"}
    unfit = [name for name, value in {**usual, "gauge_alignment": False}.items() if getattr(config, name) != value]
    for name in [*unfit, *(["stage_end"] if config.stage_end == "gain" else [])]:
        raise InputError(
            f"{name} {getattr(config, name)} cannot be used with {shown}, whose clients hold different layers; leave it out."
        )
    for name in ("class_shares", "class_ranks"):
        given = getattr(config, name)
        if given is not None and len(given) != count:
            raise InputError(
                f"{name} {','.join(map(str, given))} has {len(given)} values for {count} classes of clients; give one for "
                "each."
            )
    if config.class_ranks is not None and max(config.class_ranks) > config.rank:
        raise InputError(
            f"class_ranks {','.join(map(str, config.class_ranks))} has a rank above rank {config.rank}; raise rank to the "
            "largest of them."
        )
