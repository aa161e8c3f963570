"""A stage: begin, enter, shorten, end.

begin     the growth returns a LayerMap, its submodel is fused, and the adapter is mapped to it (Eq. 5 for DevFT)
shorten   after a round: a stage whose loss has flattened, or whose next stage promises as much per cost, ends early
end       what the submodel learned is transferred to every layer of its group
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from devft_jax.accounting.communication import picked_layers_bytes
from devft_jax.developmental import LayerMap, Transition
from devft_jax.federated.algorithm import Algorithm, same_server
from devft_jax.federated.messages import message_bytes
from devft_jax.federated.round.client import participant_shapes
from devft_jax.models.base import Base, parameter_count
from devft_jax.models.quantization import base_shapes
from devft_jax.reporting.layers import is_negative
from devft_jax.reporting.units import FLOPS, counted, readable
from devft_jax.storage.records import RoundRecord, StageRecord
from devft_jax.training.choosing import choose_stage
from devft_jax.training.class_rounds import class_records
from devft_jax.training.distilling import stage_distiller
from devft_jax.training.evaluate import evaluate_full, evaluate_stage, transferred, with_own_models
from devft_jax.training.fleet import new_stage_fleet, report_stage, send_home
from devft_jax.training.gain import measure_gain
from devft_jax.training.parts import Parts
from devft_jax.training.stages import after_round, is_measured
from devft_jax.training.state import State, new_stage_record
from devft_jax.typing import PyTree

STAGE_PROGRAMS = frozenset(
    ("distil", "chunk", "prefix", "zero_sums", "add", "finalize", "broadcast", "adapter_norms", "slope")
)
"""The programs of a stage, which have the shapes of its submodel."""


def begin_stage(parts: Parts, state: State, history: Sequence[RoundRecord]) -> bool:
    """Ask the growth for the next stage and enter it; False if there is none.

    Args:
      parts: the run's parts.
      state: the state after the previous stage; advanced.
      history: the records of the rounds so far.

    Raises:
      RunError: the growth's map does not fit the model, or the algorithm cannot train it.
    """
    stage, stage_rounds = state.stage + 1, state.totals.stage_rounds
    if stage >= len(stage_rounds):
        return False
    began = time.perf_counter()
    parts.notice.stage = stage
    before = state.layer_map.num_groups, state.layer_map.bare
    with parts.progress.doing(f"building stage {stage + 1}'s model"):
        transition = _enter(parts, state, stage, history)
    if transition is None:
        return False
    if (state.layer_map.num_groups, state.layer_map.bare) != before:
        # A run that measures gains needs the programs of its gradients again: of the full model, and of the next stage.
        again = {"slope"} if parts.config.stage_end == "gain" else set()
        parts.programs.drop(*STAGE_PROGRAMS.difference(again))
    record = new_stage_record(
        transition,
        state.layer_map,
        planned_rounds=stage_rounds[stage],
        submodel_bytes=_submodel_bytes(parts.algorithm, state),
        cached_layers=parts.hidden_states.layers,
    )
    distiller = stage_distiller(parts, state.layer_map)
    record.server_flops = None if distiller is None else distiller.flops(record.layers)
    record.simulated = new_stage_fleet(parts.fleet_rounds, state)
    record.classes = None if parts.classes is None else class_records(parts.classes, stage)
    state.totals.stages.append(record)
    state.totals.seconds.build += time.perf_counter() - began
    judged = evaluate_stage(parts, state)
    record.loss_start = None if judged is None else judged.loss
    _report_stage(parts, state, record)
    return True


def _enter(parts: Parts, state: State, stage: int, history: Sequence[RoundRecord]) -> Transition | None:
    """Choose the stage's submodel and put it into the state; None if the growth has no further stage."""
    submodels, algorithm = parts.submodels, parts.algorithm
    chosen = choose_stage(parts, state.full, state.totals, stage, history)
    if chosen is None:
        return None
    layer_map = chosen.layer_map
    if parts.classes is not None:
        state.class_maps = [*state.class_maps, layer_map]
        layer_map = LayerMap.identity(layer_map.num_layers)
    state.layer_map, state.stage, state.rounds_in_stage = layer_map, stage, 0
    state.bank.enter(layer_map)
    state.base = submodels.fused(layer_map, chosen.blocks, distil=stage_distiller(parts, layer_map))
    state.server = algorithm.submodel(state.full, layer_map)
    if algorithm.orient is not None:
        state.server = _oriented(parts, state)
    if algorithm.enter is not same_server:
        state.server = _entered(parts, state)
    jax.block_until_ready((state.base, state.server))
    parts.hidden_states.open(state, state.totals.stage_rounds[stage])
    return chosen.transition


def _oriented(parts: Parts, state: State) -> PyTree:
    """A stage's state, completed from the gradient of its untrained model's loss on public text."""
    assert parts.slopes is not None
    assert parts.algorithm.orient is not None
    corrections = parts.algorithm.view(state.server).delta
    layers = len(next(iter(corrections.values())))
    gradient = parts.slopes(state.base, layers, corrections).gradient
    return _completed(parts, parts.algorithm.orient, state.server, gradient)


def _entered(parts: Parts, state: State) -> PyTree:
    """A stage's state, completed from the frozen weights of the layers that have an adapter."""
    base = above(parts.submodels.on_one_device(state.base), state.layer_map)
    return _completed(parts, parts.algorithm.enter, state.server, base)


def _completed(parts: Parts, complete: Callable[[PyTree, Any], PyTree], server: PyTree, with_what: Any) -> PyTree:
    """A stage's state after a function of the algorithm, in host memory if the base does not fit on one device."""
    home = parts.submodels.home
    if home is None:
        return complete(server, with_what)
    with jax.default_device(home):
        completed = jax.device_get(complete(jax.device_get(server), with_what))
    return jax.device_put(completed)


def above(base: Base, layer_map: LayerMap) -> Base:
    """The base with only the layers that have an adapter."""
    return base.replace(blocks=jax.tree.map(lambda leaf: leaf[layer_map.bare :], base.blocks))


def _submodel_bytes(algorithm: Algorithm, state: State) -> int:
    """Bytes that a client with the base also needs: none, the numbers of selected layers, or fused layers."""
    # A participant that holds the examples of all clients is the server itself.
    if algorithm.pools or state.layer_map.runs_base:
        return 0
    if state.layer_map.selected() is not None:
        return picked_layers_bytes(state.layer_map.num_groups)
    return message_bytes(state.base.blocks)


def _report_stage(parts: Parts, state: State, record: StageRecord) -> None:
    """Report the layers and parameters of the stage that has just begun."""
    progress, earlier = parts.progress, state.totals.stages[:-1]
    totals = state.totals
    before = totals.base_loss if totals.start_loss is None else totals.start_loss
    before = earlier[-1].loss_full_after_transfer if earlier else before
    progress.stage(state.stage, len(state.totals.stage_rounds), record, before)
    trained = trained_parameters(parts, state)
    share = trained / parameter_count(base_shapes(parts.model.config, dtype=parts.training.compute.dtype))
    progress.say(f"  {trained:,} parameters are trained, {share:.2%} of the model's")
    if record.server_flops is not None:
        progress.say(f"  the fused layers were distilled on the server: {readable(record.server_flops, FLOPS)}")
    for number, each in enumerate(record.classes or (), 1):
        what = f"{each.layers} of {record.depth} layers" if each.trained == each.layers else f"{each.trained} of them train"
        progress.say(f"  class {number}: {what}, {counted(each.clients, 'client')}")
    if parts.fleet_rounds is not None and record.simulated is not None:
        report_stage(parts.fleet_rounds, record.simulated, progress)
    negative = [value for value in record.anchor_coefficients or () if value is not None and is_negative(value)]
    if negative:
        progress.warn(
            f"an anchor's weight is negative ({min(negative):.2f}), as Eq. 5 gives it for a group this large; "
            "--beta auto avoids it."
        )


def trained_parameters(parts: Parts, state: State) -> int:
    """Number of parameters that a participant of the stage optimises, without those of layers that are frozen."""
    algorithm, row = parts.algorithm, state.bank.stage_row(state.layer_map)
    broadcast = jax.eval_shape(lambda server: (algorithm.broadcast(server), algorithm.known(server)), state.server)
    train, _ = jax.eval_shape(algorithm.start, participant_shapes(algorithm, broadcast, row))
    rows = np.asarray(state.layer_map.train)
    learning = np.count_nonzero(rows) / len(rows) if algorithm.layered else 1
    return round(sum(leaf.size for leaf in jax.tree.leaves(train)) * learning)


def shorten_stage(parts: Parts, state: State, history: Sequence[RoundRecord]) -> None:
    """End the stage here if its loss has flattened, or if the next stage promises as much per cost.

    Args:
      parts: the run's parts.
      state: the state after a round; its `stage_rounds` and its stage's `gains` may change.
      history: the records of the rounds so far.
    """
    losses = [row.loss for row in history if row.stage == state.stage]
    planned, stage = state.totals.stage_rounds, state.stage
    gain = measure_gain(parts, state, history) if is_measured(parts.config, planned, stage, len(losses)) else None
    stage_rounds = list(after_round(parts.config, planned, stage, losses, next_pays=gain is not None and gain.ended))
    if stage_rounds != planned:
        state.totals.stage_rounds = stage_rounds
        why, heir = ("the mean loss has flattened", "the last stage")
        if gain is not None:
            why, heir = f"stage {stage + 2} promises as much", f"stage {stage + 2}"
        parts.progress.say(
            f"  {why}: stage {stage + 1} ends after {len(losses)} of {planned[stage]} rounds; the others go to {heir}"
        )


def end_stage(parts: Parts, state: State) -> None:
    """Transfer what the stage learned to every layer, and record how the loss changed by that."""
    parts.hidden_states.close()
    send_home(state)
    record = state.totals.stages[-1]
    submodel = evaluate_stage(parts, state)
    began = time.perf_counter()
    with parts.progress.doing(f"transferring what stage {state.stage + 1} learned to all layers"):
        state.full = jax.block_until_ready(transferred(parts, state))
        state.bank.leave()
    state.totals.seconds.build += time.perf_counter() - began
    judged = submodel if state.layer_map.is_identity else evaluate_full(parts, state, state.full)
    last = state.stage + 1 == len(state.totals.stage_rounds)
    if judged is not None and parts.algorithm.consensus is not None and last:
        judged = with_own_models(parts, state, judged)
    record.loss_end = None if submodel is None else submodel.loss
    if judged is not None:
        record.loss_full_after_transfer, record.accuracy_full_after_transfer = judged.loss, judged.accuracy
        record.personal = judged.personal
    parts.progress.stage_end(record)
