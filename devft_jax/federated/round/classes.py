"""A round whose participants hold different parts of the model.

    for each group of participants with the same part:
        state of the part     submodel(server, map), its factors cut to the class's ranks
        sums                  of the group's contributions                            devft_jax.federated.round.cohort
    step of every layer       from the sums of those who hold it                      devft_jax.federated.holders
    server, metrics           finalize(server, step)

The server's state is at full depth. What nobody holds does not change, nor do moments of the server there.

A message has only the rows that are sent, each at its own rank: down those of the part, because all of them run, up those
that train. If they are drawn, their numbers are sent, too, four bytes each.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from devft_jax.developmental import LayerMap
from devft_jax.errors import InputError
from devft_jax.federated.algorithm import Algorithm
from devft_jax.federated.holders import add_group, cut, kept_where_nobody_holds, nothing_held, sum_for_all
from devft_jax.federated.messages import message_bytes
from devft_jax.federated.round.assembly import Bank
from devft_jax.federated.round.cohort import Cohort
from devft_jax.federated.round.results import Group, Part, RoundResult
from devft_jax.federated.round.server import jit_finalize
from devft_jax.federated.work import ClientWork
from devft_jax.models.base import Base
from devft_jax.typing import PyTree

NUMBER_BYTES = 4
"""Bytes of a layer's number in a message."""


@dataclass(frozen=True)
class ClassGroup:
    """Participants that hold the same part of the model.

    Attributes:
      index: number of their class.
      base: the part's frozen layers, on the devices.
      layer_map: the part.
      ranks: rank of every row; None for the run's.
      inclusion: f[L], the probability with which the class trains each layer.
      frozen: number of the lowest rows that need no backward pass.
      drawn: whether rows were drawn, so that their numbers are sent.
      places: i64[K], the participants' places in the cohort.
      cohort: the participants.
      clients_per_step: clients of a chunk.
    """

    index: int
    base: Base
    layer_map: LayerMap
    ranks: tuple[int, ...] | None
    inclusion: np.ndarray
    frozen: int
    drawn: bool
    places: np.ndarray
    cohort: Sequence[ClientWork]
    clients_per_step: int


@dataclass(frozen=True)
class GroupCost:
    """What a group of a round was, for its costs.

    Attributes:
      index: number of the class.
      clients: number of participants.
      part: shapes and counts of its clients.
      bytes_up: bytes of one client's message.
      bytes_down: bytes of the message to one client.
      depth: layers that its model runs.
      frozen: number of the lowest rows that need no backward pass.
    """

    index: int
    clients: int
    part: Part
    bytes_up: int
    bytes_down: int
    depth: int
    frozen: int


def check_classes(algorithm: Algorithm) -> None:
    """Raise `InputError` for an algorithm that cannot take clients with different layers.

    Args:
      algorithm: what clients train and send.
    """
    if algorithm.by_layer:
        return
    raise InputError(
        f"algorithm {algorithm.name} cannot be used where clients hold different layers: its server must take a mean of the "
        "clients' factors layer by layer, and its clients keep nothing between rounds; use fedit, fedprox, fedavgm, "
        "fedadagrad, fedyogi or fedadam."
    )


def sent_bytes(message: PyTree, rows: Sequence[int], ranks: tuple[int, ...] | None, *, numbers: bool) -> int:
    """Bytes of a message of factors of which some rows are sent, each at its own rank.

    Args:
      message: factors [G, in, r], [G, r, out] of every projection, arrays or shapes.
      rows: the rows that are sent.
      ranks: rank of every row, at most r; None if all have rank r.
      numbers: whether the rows' numbers are sent, too.
    """
    leaves = jax.tree.leaves(message)
    total, groups = message_bytes(message), leaves[0].shape[0]
    most = 1 if ranks is None else max(ranks)
    sent = len(rows) if ranks is None else sum(ranks[row] for row in rows)
    return total * sent // (groups * most) + NUMBER_BYTES * len(rows) * numbers


def run_classes(
    cohort: Cohort,
    server: PyTree,
    bank: Bank,
    groups: Sequence[ClassGroup],
    *,
    lr: float,
    keys: Callable[[np.ndarray], jax.Array],
    rule: str,
    mode: str,
) -> tuple[RoundResult, list[GroupCost]]:
    """One round of participants that hold different parts of the model.

    Args:
      cohort: trains participants.
      server: the algorithm's state at full depth.
      bank: the clients' rows, which must be empty.
      groups: the participants, each in one group.
      lr: the round's learning rate.
      keys: ids u32[C] -> key[C], the clients' random keys in the round.
      rule: how layers that only some hold are averaged: active, all or ht.
      mode: how a fused row returns to its layers, a mode of `inherit`.

    Returns:
      The round's result with the participants in the cohort's order, and what every group was.

    Raises:
      ChunkTooLargeError: a chunk does not fit into memory.
    """
    parts = [
        cohort.part(
            group.base,
            bank,
            Group(cut(cohort.algorithm.submodel(server, group.layer_map), group.ranks), group.cohort, lr, keys),
            train_rows=np.asarray(group.layer_map.train),
            frozen=group.frozen,
            clients_per_step=group.clients_per_step,
        )
        for group in groups
    ]
    costs = [_cost(group, part) for group, part in zip(groups, parts, strict=True)]
    statistics = _in_order([part.outputs.statistics for part in parts], groups)
    metrics = dict[str, jax.Array]()
    if statistics.finite.any():
        server, metrics = _step(cohort, server, groups, parts, rule, mode)
    lengths = Counter[int]()
    for part in parts:
        lengths.update(part.examples_by_length)
    result = RoundResult(
        server=server,
        losses=np.asarray(statistics.loss),
        update_norms=np.asarray(statistics.update_norm),
        finite=np.asarray(statistics.finite),
        metrics={name: float(value) for name, value in metrics.items()},
        bytes_up=sum(cost.clients * cost.bytes_up for cost in costs),
        bytes_down=sum(cost.clients * cost.bytes_down for cost in costs),
        examples_by_length=dict(lengths),
        bytes_cumulative=0,
        adapter=parts[0].adapter,
        train=parts[0].train,
    )
    return result, costs


def _step(
    cohort: Cohort, server: PyTree, groups: Sequence[ClassGroup], parts: Sequence[Part], rule: str, mode: str
) -> tuple[PyTree, dict[str, jax.Array]]:
    """The server's step from what all groups returned, with the algorithm's metrics and the number of layers held."""
    lora = cohort.algorithm.view(server).lora
    held = nothing_held(lora, parts[0].sums.total[1])
    for group, part in zip(groups, parts, strict=True):
        held = add_group(
            held,
            lora,
            part.sums,
            group.layer_map,
            jnp.asarray(group.inclusion, jnp.float32),
            ranks=group.ranks,
            rule=rule,
            mode=mode,
            selects=group.layer_map.selected() is not None,
        )
    sums = jax.tree.map(lambda leaf: leaf[None], sum_for_all(held, rule))
    stepped, metrics = cohort.programs.call("finalize", jit_finalize(cohort.algorithm), server, sums)
    return (
        kept_where_nobody_holds(stepped, server, held.weight),
        metrics | {"layers_held": jnp.sum(held.weight[:, 0] > 0)},
    )


def _in_order(statistics: Sequence[PyTree], groups: Sequence[ClassGroup]) -> PyTree:
    """The participants' statistics in the cohort's order."""
    order = np.argsort(np.concatenate([group.places for group in groups]))
    joined = jax.tree.map(lambda *leaves: np.concatenate(leaves), *statistics)
    return jax.tree.map(lambda leaf: leaf[order], joined)


def _cost(group: ClassGroup, part: Part) -> GroupCost:
    """The messages of a group."""
    train = np.asarray(group.layer_map.train)
    rows = range(len(train))
    return GroupCost(
        index=group.index,
        clients=len(group.places),
        part=part,
        bytes_up=sent_bytes(part.up, np.flatnonzero(train).tolist(), group.ranks, numbers=group.drawn),
        bytes_down=sent_bytes(part.down, rows, group.ranks, numbers=group.drawn),
        depth=group.layer_map.depth,
        frozen=group.frozen,
    )
