"""Saves a run's `State` as one checkpoint in its folder, and restores it.

Arrays and record form one checkpoint; what clients keep is a file beside it with the rows that were written at least once.
"""

import dataclasses

import jax
import numpy as np

from devft_jax.errors import InputError
from devft_jax.federated.algorithm import Clients
from devft_jax.storage.records import CheckpointRecord, RunTotals
from devft_jax.storage.run_folder import RunFolder
from devft_jax.training.distilling import stage_distiller
from devft_jax.training.fingerprints import base_fingerprint, data_fingerprint, text_fingerprint
from devft_jax.training.parts import Parts
from devft_jax.training.rates import lengthen
from devft_jax.training.restoring import restore_bank, stage_shapes
from devft_jax.training.state import State


def save_state(folder: RunFolder, state: State) -> None:
    """Write a checkpoint of the whole state.

    Args:
      folder: the run's folder.
      state: a state within a stage.
    """
    record = CheckpointRecord(
        totals=state.totals,
        round=state.round,
        stage=state.stage,
        rounds_in_stage=state.rounds_in_stage,
        groups=state.layer_map.num_groups,
        bare=state.layer_map.bare,
        versions=sorted(state.versions) or None,
    )
    arrays = {
        "full": state.full,
        "server": state.server,
        "layer_map": state.layer_map,
        "last_round": state.last_round,
    }
    if state.versions:
        arrays["versions"] = [state.versions[version] for version in sorted(state.versions)]
    if state.class_maps:
        arrays["class_maps"] = state.class_maps
        record.class_maps = [[layer_map.num_groups, layer_map.bare] for layer_map in state.class_maps]
    if not state.bank.empty:
        # Rows pass through the stages that they missed when they are next used.
        arrays["maps"] = state.bank.maps
        record.maps = [[layer_map.num_groups, layer_map.bare] for layer_map in state.bank.maps]
    folder.checkpoints.save(state.round, arrays, record, bank=None if state.bank.empty else state.bank.save)


def resume(parts: Parts, folder: RunFolder, round_index: int) -> State:
    """The state of a checkpoint; the stage's submodel is fused again from its LayerMap, and distilled again.

    If `rounds` is larger than the checkpoint's, the last stage gets longer.

    Args:
      parts: the run's parts.
      folder: the run's folder.
      round_index: round of the checkpoint.

    Raises:
      InputError: the checkpoint is damaged or belongs to other data or texts or another base, or fewer rounds are requested.
    """
    folder.checkpoints.check(round_index)
    record = folder.checkpoints.read_record(round_index)
    totals = record.totals
    now = {
        "data": data_fingerprint(parts.data),
        "base": base_fingerprint(parts.model.base),
        "public text": text_fingerprint(parts.config, parts.probe),
    }
    for name, before in (("data", totals.data), ("base", totals.base), ("public text", totals.public_text)):
        if before != now[name]:
            raise InputError(
                f"the {name} of the run in {folder.path} has changed since it was started; "
                "restore it, or start a new run in another folder."
            )
    stage_rounds = _requested(totals, sum(parts.stage_rounds), folder)
    if stage_rounds != tuple(totals.stage_rounds):
        lengthen(parts.config, record, stage_rounds, parts.progress)
    if record.round < sum(stage_rounds):
        totals.resumed_after.append(record.round)
    _same_devices(parts, record)
    state = read_state(parts, folder, record)
    if state.rounds_in_stage < stage_rounds[state.stage]:
        parts.hidden_states.open(state, stage_rounds[state.stage])
    return state


def _requested(totals: RunTotals, wanted: int, folder: RunFolder) -> tuple[int, ...]:
    """The rounds of every stage for as many rounds as are requested; a run that ended early is lengthened from its plan."""
    best = totals.best
    if best is not None and best.planned_rounds is not None:
        if wanted == best.planned_rounds:
            return tuple(totals.stage_rounds)
        totals.stage_rounds[-1] += best.planned_rounds - sum(totals.stage_rounds)
        best.planned_rounds = None
    return _extended(tuple(totals.stage_rounds), wanted, folder)


def _extended(planned: tuple[int, ...], wanted: int, folder: RunFolder) -> tuple[int, ...]:
    """The stages of the interrupted run; additional rounds go to the last stage."""
    if wanted < sum(planned):
        raise InputError(
            f"rounds {wanted} is fewer than the {sum(planned)} of the run in {folder.path}; "
            "a run can be lengthened, not shortened."
        )
    return (*planned[:-1], planned[-1] + wanted - sum(planned))


def _same_devices(parts: Parts, record: CheckpointRecord) -> None:
    """Keep the number of clients trained at once if the devices are the same, and report what differs."""
    totals, cohort = record.totals, parts.cohort
    devices, shards = parts.device_count, parts.config.model_shards
    if parts.config.clients_per_step == "auto" and (totals.devices, totals.model_shards) == (devices, shards):
        cohort.clients_per_step = totals.clients_per_step
    if record.round == sum(totals.stage_rounds):
        return
    for name, before, now in (
        ("clients_per_step", totals.clients_per_step, cohort.clients_per_step),
        ("devices", totals.devices, devices),
        ("model_shards", totals.model_shards, shards),
    ):
        if before != now:
            parts.progress.warn(
                f"{name} was {before} and is {now}: results will be equal up to rounding but not bit for bit."
            )
    totals.clients_per_step, totals.devices, totals.model_shards = cohort.clients_per_step, devices, shards


def read_state(parts: Parts, folder: RunFolder, record: CheckpointRecord) -> State:
    """The state of a checkpoint as it was saved.

    Args:
      parts: the run's parts.
      folder: the run's folder.
      record: the checkpoint's record.

    Raises:
      InputError: the checkpoint is damaged.
    """
    clients, align = len(parts.data.clients), parts.config.gauge_alignment
    bank = parts.new_bank(parts.first_state, parts.algorithm.traits(Clients(clients)))
    layers = parts.model.config.layers
    shapes = stage_shapes(parts.algorithm, parts.init_server, record, clients=clients, layers=layers)
    arrays = folder.checkpoints.read_arrays(
        record.round, {**shapes, "last_round": jax.ShapeDtypeStruct((clients,), np.int32)}
    )
    restore_bank(folder, record.round, bank, arrays, align=align)
    layer_map = dataclasses.replace(arrays["layer_map"], align=align)
    blocks = parts.submodels.layers_to_fuse(record.stage)
    return State(
        full=arrays["full"],
        bank=bank,
        server=arrays["server"],
        versions=dict(zip(record.versions or (), arrays.get("versions", ()), strict=True)),
        layer_map=layer_map,
        last_round=np.array(arrays["last_round"]),
        base=parts.submodels.fused(layer_map, blocks, distil=stage_distiller(parts, layer_map)),
        round=record.round,
        stage=record.stage,
        rounds_in_stage=record.rounds_in_stage,
        totals=record.totals,
        class_maps=[dataclasses.replace(each, align=align) for each in arrays.get("class_maps", ())],
    )
